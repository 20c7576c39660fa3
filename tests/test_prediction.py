"""Prediction: pictures in, scores, maps and verdicts out; kits; thresholds."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import skimage.data
import torch
from conftest import make_clip, make_places, save, scored
from PIL import Image
from scipy.stats import beta

from flows.cli import main
from tasks.common.errors import BadInput
from tasks.detectors.encoders import build_encoder
from tasks.detectors.load import build_detector
from tasks.detectors.metauas import MetaUASSettings
from tasks.detectors.metauas_plus import MetaUASPlusSettings
from tasks.detectors.patch_residual import PatchResidualSettings
from tasks.detectors.registry import DETECTORS
from tasks.detectors.settings import EncoderSettings
from tasks.detectors.stored import settings_as_json, settings_from_json
from tasks.detectors.weights import save_model
from tasks.detectors.winclip import WinCLIPSettings
from tasks.ingestion.ingest import ingest_folder
from tasks.packaged.detectors import MODELS
from tasks.prediction.calibration import calibrated
from tasks.prediction.files import files_of, names_of
from tasks.prediction.models import Named, named, of_pipeline
from tasks.prediction.outputs import FULL
from tasks.prediction.pictures import MOST_PIXELS, as_picture
from tasks.prediction.predictor import Predictor
from tasks.prediction.tiles import WHOLE, Grid, boxes, grid_for, joined
from tasks.sampling.episodes import EpisodeFiles, read_episodes
from tasks.sampling.sample import sample
from tasks.sampling.settings import SamplingSettings, Use
from tasks.scoring.score import Contender
from tasks.scoring.scores import Work, read_scored


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The detector that comes with the package, which a test prompts."""
    return Predictor.load()


def small(settings: object | None = None) -> Predictor:
    """One that needs no training, at 64 pixels."""
    settings = settings or PatchResidualSettings(resolution=64, top_share=0.01)
    detector = build_detector(settings, build_encoder(settings.encoder, settings.resolution))
    return Predictor(Named("patch-residual", {"patch-residual": settings}, detector))


def prompt_and_queries(layout: Path) -> tuple[Path, list[Path]]:
    return layout / "bricks/train/good/0.png", sorted((layout / "bricks/test").rglob("*.png"))


# -- scores ----------------------------------------------------------------------------------------------------------------------------


def test_a_picture_gets_the_score_of_the_evaluation(layout: Path, tmp_path: Path) -> None:
    """From Python, from the command, and from scoring the pipeline's episodes: the same detector, prompts and pictures."""
    manifests, files = tmp_path / "manifests", EpisodeFiles.of(tmp_path / "episodes", "one")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests), workers=1)
    sample(SamplingSettings(shots=(2,), seeds=(0,), protocols=("class-specific",)), Use((), ("parts",)), manifests=manifests, files=files)
    one = named("multi-scale-residual")
    contender = Contender("multi-scale-residual", one.detector.eval(), one.looks.resolution, None, Work(tmp_path / "work"))
    items = list(read_scored(scored([contender], files, tmp_path / "scores")["multi-scale-residual"]))
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


def test_a_detector_that_reads_scores_without_a_prompt_and_with_words(tmp_path: Path, layout: Path) -> None:
    settings = WinCLIPSettings(EncoderSettings("open_clip", make_clip(tmp_path / "clip"), "folder"), resolution=64)
    detector = build_detector(settings, build_encoder(settings.encoder, 64))
    own = Predictor(Named("winclip", {"winclip": settings}, detector))
    _prompt, queries = prompt_and_queries(layout)
    assert own.ready and own(queries).scores.shape == (4,)
    words = own.prompt([], category="brick")(queries).scores
    assert (words != own.prompt([], category="stone")(queries).scores).any()
    own.save(tmp_path / "kit")
    assert Predictor.load(tmp_path / "kit")(queries).scores == pytest.approx(own(queries).scores, abs=1e-6)


# -- tiles -----------------------------------------------------------------------------------------------------------------------------


def test_large_pictures_are_cut_and_others_are_not() -> None:
    assert grid_for(1080, 1920) == grid_for(2048, 2048) == WHOLE
    assert grid_for(3000, 4000) == Grid(3, 4) and grid_for(100, 2049) == Grid(1, 3)


@pytest.mark.parametrize(("height", "width", "grid"), [(96, 130, Grid(3, 4)), (7, 5, Grid(2, 2)), (40, 40, WHOLE)])
def test_tiles_cover_a_picture_and_join_to_it(height: int, width: int, grid: Grid) -> None:
    whole = np.random.default_rng(0).random((height, width)).astype(np.float32)
    places = boxes((height, width), grid)
    parts = [whole[box.top : box.bottom, box.left : box.right] for box in places]
    assert len(places) == grid.tiles and np.allclose(joined(parts, places, height, width), whole, atol=1e-6)
    assert grid == WHOLE or sum(part.size for part in parts) > whole.size  # they overlap


def test_a_small_defect_of_a_large_picture_is_found_in_tiles_where_the_whole_shows_little(predictor: Predictor) -> None:
    photo = np.asarray(Image.fromarray(skimage.data.brick()).resize((2112, 1408), Image.Resampling.BICUBIC))
    normal, moved = photo[:-8, :-8], photo[8:, 8:]
    query = moved.copy()
    query[600:630, 1000:1030] = 255 - query[600:630, 1000:1030]
    gaps = {}
    for grid in (WHOLE, Grid(2, 3)):
        scores, maps = predictor.prompt(normal, grid=grid)([moved, query], batch_size=4)
        print(grid, scores)
        gaps[grid] = scores[1] - scores[0]
        row, column = np.unravel_index((maps[1] - maps[0]).argmax(), maps[1].shape)
    assert maps[1].shape == query.shape and 560 <= row <= 670 and 960 <= column <= 1070
    assert gaps[Grid(2, 3)] > 2 * max(gaps[WHOLE], 0.001)


def test_a_picture_of_12_million_pixels_takes_less_than_2_gib(tmp_path: Path) -> None:
    """By a process of its own, whose peak is read as it ends."""
    large = np.tile(skimage.data.gravel(), (6, 8))[:3000, :4000]
    prompt, query = save(large, tmp_path / "prompt.png"), save(np.roll(large, 50, axis=0), tmp_path / "query.png")
    program = (
        "import resource, sys; from flows.cli import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)"
    )
    arguments = ["predict", "--prompt", str(prompt), str(query), "--out", str(tmp_path / "out"), "--maps", "png", "--overlays"]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stderr.split()[-1]) < 2048
    with Image.open(tmp_path / "out/maps/query_png.png") as map_:
        assert map_.size == (4000, 3000) and map_.mode.startswith("I;16")


# -- thresholds ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rate"), [(200, 0.01), (99, 0.01), (40, 0.05), (1000, 0.001)])
def test_a_threshold_is_the_score_of_the_conformal_rank(count: int, rate: float) -> None:
    """Of the pictures and a fresh one, each rank is as likely: at most a share `rate` of the ranks is above."""
    scores = np.random.default_rng(0).permutation(count).astype(float)
    threshold = calibrated(scores, [0.0], rate)
    above = int((scores > threshold.value).sum())
    assert (above + 1) / (count + 1) <= rate + 1e-12 and (above + 2) / (count + 1) > rate
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], above + 1, count - above))


def test_too_few_normal_pictures_for_a_rate_are_refused() -> None:
    with pytest.raises(BadInput, match=r"98 normal pictures are too few for a rate of 1 % false alarms: it needs 99, .* the lowest is 1 %"):
        calibrated([0.0] * 98, [0.0], 0.01)
    for rate in (0.0, 0.9, -1.0, float("nan")):
        with pytest.raises(BadInput, match="false alarms: a fraction between"):
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
    assert len(threshold.normals) == 3 and threshold.value == max(threshold.normals)
    assert own.prompt(layout / "bricks/train/good/1.png").threshold is None


# -- kits ------------------------------------------------------------------------------------------------------------------------------


def kits(tmp_path: Path) -> list[Named]:
    """Detectors of every kind that a kit may hold: packaged, a model folder's, with weights from a file, upon another."""
    torch.manual_seed(0)
    settings = MetaUASSettings(resolution=64, decoder_channels=(16,) * 5)
    model = build_detector(settings, build_encoder(settings.encoder, 64))
    save_model(tmp_path / "models" / "metauas", model, {"detector": "metauas", "settings": settings_as_json(settings)})
    return [
        *(named(name) for name in MODELS),
        named(tmp_path / "models" / "metauas"),
        of_pipeline("metauas+", {"metauas": settings, "metauas+": MetaUASPlusSettings()}, tmp_path / "models"),
        named("subspace"),
    ]


def test_a_kit_gives_the_scores_of_what_it_was_made_of_and_needs_nothing_else(layout: Path, tmp_path: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    pictures = [as_picture(query) for query in queries]
    expected = {}
    for place, one in enumerate(kits(tmp_path)):
        own = Predictor(one).prompt([prompt, layout / "bricks/train/good/1.png"], grid=Grid(1, 2) if place == 0 else None)
        own.save(tmp_path / "kits" / str(place))
        expected[place] = own(pictures).scores
    shutil.rmtree(layout)
    shutil.rmtree(tmp_path / "models")
    for place, scores in expected.items():
        assert Predictor.load(tmp_path / "kits" / str(place))(pictures).scores == pytest.approx(scores, abs=1e-6)


def test_a_kit_holds_no_picture_and_no_path(layout: Path, tmp_path: Path) -> None:
    own = small().prompt(layout / "bricks/train/good/0.png")
    own.save(tmp_path / "kit")
    content = "".join(file.read_text() for file in (tmp_path / "kit").iterdir() if file.suffix != ".safetensors")
    assert str(tmp_path) not in content and sorted(file.name for file in (tmp_path / "kit").iterdir()) == [
        "card.md",
        "kit.json",
        "memory.safetensors",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda kit: (kit / "memory.safetensors").write_bytes(b""), "memory.safetensors: missing or damaged"),
        (lambda kit: (kit / "model.safetensors").unlink(), "model.safetensors: missing or damaged"),
        (lambda kit: (kit / "kit.json").write_text("{"), "kit.json: not what this version writes"),
        (lambda kit: (kit / "kit.json").write_text("[]"), "kit.json: not what this version writes"),
        (lambda kit: edit(kit, form=2), "kit.json: of form 2"),
        (lambda kit: edit(kit, detector="none"), "kit.json: not what this version writes"),
        (lambda kit: edit(kit, settings={"patch-residual": {"resolution": 7}}), "kit.json: not what this version writes"),
        (lambda kit: edit(kit, settings={"patch-residual": {"other": 7}}), "no setting 'other'"),
        (lambda kit: edit(kit, settings={"metauas": {}}, detector="metauas"), "does not fit the detector's settings"),
    ],
)
def test_a_kit_that_is_damaged_or_anothers_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    small().prompt(skimage.data.brick()[:96, :96]).save(tmp_path / "kit")
    spoil(tmp_path / "kit")  # type: ignore[operator]
    with pytest.raises(BadInput, match=message):
        Predictor.load(tmp_path / "kit")


def edit(kit: Path, **changes: object) -> None:
    content = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**content, **changes}))


def test_a_folder_that_is_no_kit_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    own = small().prompt(skimage.data.brick()[:96, :96])
    with pytest.raises(BadInput, match="is there and no kit"):
        own.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    own.save(tmp_path / "kit")
    own.save(tmp_path / "kit")  # over itself


@pytest.mark.parametrize("name", DETECTORS)
def test_settings_come_back_from_json_as_they_were(name: str) -> None:
    published = DETECTORS[name].published
    for settings in (DETECTORS[name].settings(), *([published.settings] if published else [])):
        assert settings_from_json(DETECTORS[name].settings, settings_as_json(settings)) == settings


# -- bad input -------------------------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG whose head says 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(skimage.data.brick()[:64, :64]).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (encoded("PNG")[:900], "may be truncated"),
        (encoded("JPEG")[:700], "may be truncated"),
        (encoded("GIF"), "not a picture"),
        (bomb(), f"more than {MOST_PIXELS:,}"),
        ("missing.png", "missing.png: no such file"),
        (np.zeros((4, 4, 4), np.uint8), "of shape"),
        (np.zeros((0, 4), np.uint8), "of shape"),
        (np.full((4, 4), np.nan), "from 0 to 1"),
        (np.full((4, 4), 2.0), "from 0 to 1"),
        (np.zeros((4, 4), np.int64), "of int64"),
        (7, "a int is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(given: object, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        as_picture(given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_are_found_by_name_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.tiff", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in files_of([str(tmp_path)])] == ["a.JPG", "b.png", "c.tiff"]
    assert [file.name for file in files_of([str(tmp_path / "*.png"), str(tmp_path / "b.png"), str(tmp_path / "notes.txt")])] == [
        "b.png",
        "notes.txt",
    ]
    for name, message in ((tmp_path / "no.png", "no such file"), (tmp_path / "*.gif", "nothing matches")):
        with pytest.raises(BadInput, match=message):
            files_of([str(name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="a folder without a picture"):
        files_of([str(tmp_path / "empty")])


def test_what_is_written_of_two_pictures_of_one_name_is_two_files() -> None:
    names = list(names_of([Path("a/x.png"), Path("a/x.jpg"), Path("b/x.png")]))
    assert [str(name) for name in names] == ["a/x_png", "a/x_jpg", "b/x_png"]


def test_models_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for model, message in (
        ("none-such", "neither a folder nor a detector that is ready"),
        (tmp_path / "folder", "neither a model's nor a kit"),
    ):
        with pytest.raises(BadInput, match=message):
            Predictor.load(model)
    with pytest.raises(BadInput, match=r"inctrl'?: neither a folder"):
        Predictor.load("inctrl")  # it has to be trained
    with pytest.raises(BadInput, match="no prompt: multi-scale-residual needs at least one"):
        Predictor.load()([skimage.data.brick()])
    with pytest.raises(BadInput, match="no prompt"):
        Predictor.load().prompt([])


# -- the command -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def predict(*arguments: object) -> Answer:
    """Runs the command in this process, which has imported what takes it seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["changepair", "predict", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def test_a_kit_of_the_command_tells_normal_from_anomalous_and_says_so_by_its_exit_code(layout: Path, here: Path) -> None:
    prompt, _queries = prompt_and_queries(layout)
    made = predict(
        "--model",
        "metric-residual",
        "--prompt",
        prompt,
        "--calibrate",
        layout / "bricks",
        "--false-alarms",
        0.25,
        "--write-kit",
        "kit",
    )
    assert made.returncode == 0 and "threshold " in made.stderr and "25 % false alarms, set by" in made.stderr and not made.stdout
    shown = predict("--kit", "kit", layout / "bricks/test", "--out", "out", "--maps", "npy", "--overlays")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["score", "verdict", "picture"] and len(lines) == 5
    table = (here / "out/scores.csv").read_text().splitlines()
    assert table[0] == "picture,score,threshold,verdict" and len(table) == 5
    assert shown.returncode == (1 if "anomalous" in shown.stdout else 0)
    assert np.load(here / "out/maps/hole/0_png.npy").shape == (96, 96)
    with Image.open(here / "out/overlays/hole/0_png.png") as overlay:
        assert overlay.size == (96, 96) and overlay.mode == "RGB"
    good = predict("--kit", "kit", prompt)
    assert good.returncode == 0 and "normal" in good.stdout
    bad = save(np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8), here / "noise.png")
    assert predict("--kit", "kit", bad).returncode == 1


def test_a_truncated_picture_is_told_and_the_others_are_scored(layout: Path, here: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    queries[1].write_bytes(queries[1].read_bytes()[:2000])
    result = predict("--prompt", prompt, layout / "bricks/test", "--format", "csv", "--out", "out", "--maps", "png")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "may be truncated" in result.stderr
    rows = result.stdout.splitlines()
    assert rows[0] == "picture,score,threshold,verdict" and [row.split(",")[0] for row in rows[1:]] == [str(queries[i]) for i in (0, 2, 3)]
    map_ = np.asarray(Image.open(here / "out/maps/hole/0_png.png"))
    assert map_.dtype == np.uint16 and 0 < map_.max() <= FULL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "no.png", "part.png"], "part.png: no such file"),
        (["part"], "part: a folder without a picture"),
        (["ok.png"], "no prompt: multi-scale-residual needs at least one normal picture"),
        ([], "no picture to score"),
        (["--kit", "part", "ok.png"], "part: no kit"),
        (["--kit", "part", "--prompt", "ok.png", "ok.png"], "--prompt: a kit has its own"),
        (["--prompt", "ok.png", "ok.png", "--maps", "png"], "--maps: say with --out"),
        (["--prompt", "ok.png", "ok.png", "--batch-size", "0"], "--batch-size: at least 1"),
        (["--prompt", "ok.png", "--calibrate", "ok.png"], "--calibrate: the threshold would be lost"),
        (["--prompt", "ok.png", "--tiles", "0x3", "ok.png"], "rows x columns"),
        (["--prompt", "ok.png", "ok.png", "--model", "nowhere"], "neither a folder nor a detector"),
        (["--prompt", "ok.png", "ok.png", "--out", "ok.png/x"], "ok.png"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(here: Path, arguments: list[str], message: str) -> None:
    (here / "part").mkdir()
    save(skimage.data.brick()[:64, :64], here / "ok.png")
    result = predict(*arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
