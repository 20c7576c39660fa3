"""Prediction: pictures in, scores and maps out; thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage.data
import torch
from conftest import CLIP, make_clip, make_places, scored
from PIL import Image
from predictors import predict, prompt_and_queries, small
from scipy.stats import beta

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.sheets import heated
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.prediction import predictor as predictor_module
from changepair.tasks.prediction.calibration import TOLERANCE, calibrated
from changepair.tasks.prediction.models import Named, named
from changepair.tasks.prediction.predictor import Predictor
from changepair.tasks.sampling.episodes import EpisodeFiles, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.score import Contender
from changepair.tasks.scoring.scores import ScoresFolder, read_scored


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The detector that comes with the package, which a test prompts."""
    return Predictor.load()


def test_a_picture_gets_the_score_of_the_evaluation(layout: Path, tmp_path: Path) -> None:
    """From Python, from the command, and from scoring the pipeline's episodes: the same detector, prompts and pictures."""
    manifests, files = tmp_path / "manifests", EpisodeFiles.of(tmp_path / "episodes", "one")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    sample(SamplingSettings(shots=(2,), seeds=(0,), protocols=("class-specific",)), Use((), ("parts",)), manifests=manifests, files=files)
    one = named("packaged")
    contender = Contender("metric-residual", one.detector.eval(), one.looks.resolution, None, ScoresFolder(tmp_path / "work"))
    items = list(read_scored(scored([contender], files, tmp_path / "scores")["metric-residual"]))
    for item, episode in zip(items, read_episodes(files.episodes), strict=True):
        scores, maps = Predictor.load().prompt(episode.prompts)(episode.queries, batch_size=3)
        assert scores == pytest.approx(item.scores, abs=1e-6)
        assert item.maps is not None and maps[0].shape == (96, 96) and maps[0].max() <= item.maps[0].max() + 1e-6
        prompts = [part for prompt in episode.prompts for part in ("--prompt", prompt)]
        lines = [json.loads(line) for line in predict(*prompts, "--format", "json", *episode.queries).stdout.splitlines()]
        assert [line["picture"] for line in lines] == list(episode.queries)
        assert [line["score"] for line in lines] == pytest.approx(scores, abs=1e-6)


def test_no_score_depends_on_the_batch_or_on_what_a_picture_is_given_as(layout: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    own = small().prompt(prompt)
    pixels = [np.asarray(Image.open(query).convert("RGB")) for query in queries]
    expected, maps = own(queries, batch_size=1)
    for given in (
        [str(query) for query in queries],
        [query.read_bytes() for query in queries],
        [Image.open(query) for query in queries],
        pixels,
        [pixel[..., 0] for pixel in pixels],  # grey
        [torch.from_numpy(pixel / np.float32(255)).permute(2, 0, 1) for pixel in pixels],
        torch.from_numpy(np.stack(pixels) / np.float32(255)).permute(0, 3, 1, 2),
        np.stack(pixels),
    ):
        scores, others = own(given, batch_size=3)
        assert scores == pytest.approx(expected, abs=1e-6)
        assert all(np.allclose(one, other, atol=1e-6) for one, other in zip(maps, others, strict=True))
    assert own(queries[0]).scores == pytest.approx(expected[:1], abs=1e-6)  # one alone


def test_a_map_is_on_the_pictures_own_pixels_and_finds_the_defect(predictor: Predictor) -> None:
    gravel = skimage.data.gravel()
    query = gravel[100:400, 60:500].copy()
    query[40:80, 300:360] = 20
    scores, (map_,) = predictor.prompt(gravel[:200, :300])(query)
    assert map_.shape == query.shape and map_.dtype == np.float32 and map_.min() >= 0 and map_.max() <= 1
    row, column = np.unravel_index(map_.argmax(), map_.shape)
    assert 30 <= row <= 90 and 290 <= column <= 370
    assert scores[0] > predictor(gravel[100:400, 60:500])[0][0] + 0.05


@pytest.mark.parametrize("resize", ["squash", "aligned", "crop"])
def test_every_way_to_make_a_square_gives_a_map_of_the_whole_picture(resize: str) -> None:
    own = small(PatchResidualSettings(EncoderSettings(resize=resize), resolution=64))  # type: ignore[arg-type]
    wide = np.tile(skimage.data.brick()[:80, :80], (1, 2))
    damaged = wide.copy()
    damaged[30:50, 70:90] = 255
    (map_,) = own.prompt(wide)(damaged).maps
    row, column = np.unravel_index(map_.argmax(), map_.shape)
    assert map_.shape == (80, 160) and 20 <= row <= 60 and 60 <= column <= 100


def test_more_prompts_find_more_normal_and_their_order_does_not_count(layout: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    stones = layout / "stones/train/good/0.png"
    alone, both, turned = (small().prompt(prompts)(queries).scores for prompts in ([prompt], [prompt, stones], [stones, prompt]))
    assert (both <= alone + 1e-6).all() and both == pytest.approx(turned, abs=1e-6)


@pytest.mark.parametrize("memory", [0, 90])
def test_many_prompts_are_encoded_in_parts_and_have_one_bounded_memory(
    memory: int, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PatchResidualSettings(resolution=64, tiles=(1, 2), memory=memory)
    prompts, queries = sorted(layout.rglob("train/good/*.png")), prompt_and_queries(layout)[1]
    whole = small(settings).prompt(prompts)
    monkeypatch.setattr(predictor_module, "PROMPTS", 3)
    parts = small(settings).prompt(prompts)
    assert len(prompts) > 6 and all(torch.equal(*pair) for pair in zip(whole.prompted.memory, parts.prompted.memory, strict=True))
    assert (whole.prompted.memory[0].shape[-1] == memory) == (memory > 0)
    parts.save(tmp_path / "kit")
    assert np.array_equal(Predictor.load(tmp_path / "kit")(queries).scores, whole(queries).scores)


def test_a_detector_that_reads_scores_without_a_prompt_and_with_words(tmp_path: Path, layout: Path) -> None:
    make_clip(tmp_path / "clip")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    settings = WinCLIPSettings(EncoderSettings("open_clip", "tiny-clip", str(tmp_path / "clip/open_clip_model.safetensors")), resolution=64)
    detector = create_detector(settings, build_encoder(settings.encoder, 64))
    own = Predictor(Named("winclip", {"winclip": settings}, detector))
    _prompt, queries = prompt_and_queries(layout)
    assert own.ready and own(queries).scores.shape == (4,)
    words = own.prompt([], category="brick")(queries).scores
    assert (words != own.prompt([], category="stone")(queries).scores).any()
    own.save(tmp_path / "kit")
    assert Predictor.load(tmp_path / "kit")(queries).scores == pytest.approx(own(queries).scores, abs=1e-6)


@pytest.mark.parametrize(("count", "rate"), [(200, 0.01), (99, 0.01), (40, 0.05), (1000, 0.001)])
def test_a_threshold_is_the_score_of_the_conformal_rank(count: int, rate: float) -> None:
    """Of the pictures and a fresh one, each rank is as likely: at most a share `rate` of the ranks is above."""
    scores = np.random.default_rng(0).permutation(count).astype(float)
    threshold = calibrated(scores, [0.0], rate)
    above = int((scores > threshold.value).sum())
    assert (above + 1) / (count + 1) <= rate + 1e-12 and (above + 2) / (count + 1) > rate
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], above + 1, count - above))


def test_too_few_normal_pictures_for_a_rate_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"98 normal pictures cannot set a threshold for 1 % false alarms: it needs 99; with 98 the lowest rate is 1\.01 %"
    ):
        calibrated([0.0] * 98, [0.0], 0.01)
    for rate in (0.0, 0.9, -1.0, float("nan")):
        with pytest.raises(BadInput, match="false alarms: must be between"):
            calibrated([0.0] * 98, [0.0], rate)


def test_false_alarms_are_as_many_as_was_asked_for(tmp_path: Path) -> None:
    """Solar cells without a defect: of 20 draws, 200 set the threshold for 1 %, and 500 others are held against it."""
    pytest.importorskip("elpv_dataset", reason="the extra `samples` is not installed")
    from elpv_dataset.utils import load_dataset

    images, probabilities, _types = load_dataset()
    normal = [np.asarray(image) for image, probability in zip(images, probabilities, strict=True) if probability == 0]
    own = small().prompt(normal[:2])
    scores = own(normal[2:1002], batch_size=32).scores
    rates = []
    for draw in range(20):
        order = np.random.default_rng(draw).permutation(len(scores))[:700]
        threshold = calibrated(scores[order[:200]].tolist(), [0.0], 0.01)
        rates.append(float(np.mean([threshold.exceeded(score) for score in scores[order[200:]]])))
    print(f"false alarms over 20 draws: {100 * np.mean(rates):.2f} % ({100 * min(rates):.1f} to {100 * max(rates):.1f})")
    assert 0.002 <= np.mean(rates) <= 0.03 and np.mean([0.002 <= rate <= 0.03 for rate in rates]) >= 0.8


def test_prompts_among_the_normal_pictures_set_no_threshold(layout: Path) -> None:
    own = small().prompt(layout / "bricks/train/good/0.png")
    threshold = own.calibrate(sorted((layout / "bricks/train/good").glob("*.png")), false_alarms=0.25)
    assert len(threshold.normals) == 3 and threshold.value == pytest.approx(max(threshold.normals) + TOLERANCE)
    assert own.prompt(layout / "bricks/train/good/1.png").threshold is None


def test_a_map_is_calm_up_to_what_normal_pictures_reach_and_warm_above() -> None:
    """One colour scale: what is below is as blue as the picture or bluer, what is above is more red than blue, the more the higher."""
    grey = np.full((8, 8, 3), 120, dtype=np.uint8)
    calm = [heated(grey, np.full((8, 8), share * 0.2, np.float32), 0.2)[0, 0].astype(int) for share in (0.0, 0.5, 1.0)]
    warm = [heated(grey, np.full((8, 8), share * 0.2, np.float32), 0.2)[0, 0].astype(int) for share in (1.01, 1.5, 2.0, 5.0)]
    assert calm[0].tolist() == [120] * 3 and all(red <= green <= blue <= 150 for red, green, blue in calm)
    assert all(red > blue + 40 for red, _green, blue in warm)
    assert warm[0][1] > warm[1][1] > warm[2][1] and warm[2].tolist() == warm[3].tolist()  # yellow turns to red


def test_an_overlay_of_a_normal_picture_has_no_warm_colour(layout: Path) -> None:
    own = small().prompt(layout / "bricks/train/good/0.png")
    normals = sorted((layout / "bricks").rglob("good/*.png"))[1:]
    threshold = own.calibrate(normals, false_alarms=0.25)
    bad = layout / "bricks/test/hole/0.png"

    def warm(file: Path) -> float:
        [one] = own.each([file])
        drawn = heated(one.picture, one.map, own.top).astype(int)
        return float((drawn[..., 0] > drawn[..., 2] + 20).mean())  # the pictures are grey

    assert own.top == threshold.top > 0
    assert sum(warm(file) == 0 for file in normals) >= len(normals) - 2 and warm(bad) > 0.01
