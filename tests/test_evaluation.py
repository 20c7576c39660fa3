"""Evaluation: shared work against scoring each episode on its own, tables, spread and galleries."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_clip, make_places
from PIL import Image
from sklearn.metrics import roc_auc_score

from tasks.common.errors import BadInput
from tasks.common.stopping import Stopped
from tasks.detectors.encoders import build_encoder
from tasks.detectors.load import build_detector
from tasks.detectors.models.patch_residual import PatchResidual
from tasks.detectors.settings import EncoderSettings, MetaUASSettings, PatchResidualSettings, WinCLIPSettings
from tasks.ingestion.ingest import ingest_folder
from tasks.reporting.galleries import best_threshold, caption, write_galleries
from tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes
from tasks.sampling.sample import sample
from tasks.sampling.settings import SamplingSettings, Use
from tasks.scoring.figures import FIGURES, PIXEL_FIGURES
from tasks.scoring.measure import evaluate_target
from tasks.scoring.pixels import Truth, truth_of
from tasks.scoring.results import ALL, Measure, Measured, figure_rows, read_draws, read_figures, results_of, table, write_results
from tasks.scoring.score import Contender, read_pictures, score_category
from tasks.scoring.settings import EvaluationSettings
from tasks.scoring.spread import DRAWS


@pytest.fixture
def files(layout: Path) -> EpisodeFiles:
    manifests, files = layout.parent / "manifests", EpisodeFiles.of(layout.parent / "episodes", "small")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests), workers=1)
    other = layout.parent / "other" / "train" / "good"
    other.mkdir(parents=True)
    picture = (layout / "bricks/train/good/0.png").read_bytes()
    (other / "0.png").write_bytes(picture + b"\0")
    ingest_folder("other", other.parents[1], licence="own", places=make_places(manifests), workers=1)
    sample(SamplingSettings(shots=(1, 2, 4), seeds=(0, 1)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    return files


@pytest.fixture(scope="module")
def contenders() -> list[Contender]:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(), 64)
    patch = build_detector(PatchResidualSettings(resolution=64, top_share=0.01), encoder).eval()
    metauas = build_detector(MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16)), encoder).eval()
    return [Contender("patch-residual", patch, 64, None), Contender("metauas", metauas, 64, 3)]


@torch.inference_mode()
def alone(contender: Contender, episode: Episode) -> np.ndarray:
    """An episode's scores with nothing shared: each query by itself through the detector's public call."""
    detector, scores = contender.detector, []
    for image in episode.queries[: contender.queries]:
        query, prompts = (_pixels(images) for images in ([image], list(episode.prompts)))
        if episode.protocol == "class-agnostic":
            signature = [torch.nn.functional.normalize(detector.encoder(pictures)[-1].mean((2, 3)), dim=1) for pictures in (query, prompts)]
            prompts = prompts[[int((signature[0] @ signature[1].T).argmax())]]
        scores.append(float(detector.score(query, prompts)[0]))
    return np.array(scores)


def _pixels(images: list[str]) -> torch.Tensor:
    from tasks.common.pictures import read_picture

    return torch.from_numpy(np.stack([read_picture(Path(image), 64) for image in images])).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sharing_work_changes_no_score(files: EpisodeFiles, contenders: list[Contender], batch_size: int) -> None:
    episodes = [episode for episode in read_episodes(files.episodes) if episode.category == "stones"]
    [found] = score_category(contenders, episodes, masks=None, resolution=32, batch_size=batch_size, device="cpu")
    assert len(found) == 2 * len(episodes)
    for scored in found:
        contender = next(item for item in contenders if item.name == scored.detector)
        assert scored.images == scored.episode.queries[: contender.queries] and scored.pixels is None
        assert scored.scores == pytest.approx(alone(contender, scored.episode), abs=1e-4)


def masks_of(episode: Episode) -> Callable[[int, int], Truth]:
    """A mask for every query: its left third, of every other one."""
    mask = np.zeros((32, 32), dtype=bool)
    mask[:, :10] = True
    everything = [mask if place % 2 else np.zeros_like(mask) for place in range(len(episode.queries))]
    return lambda start, stop: truth_of(everything[start:stop], (32, 32))


def test_several_passes_and_any_batches_give_what_one_gives(
    files: EpisodeFiles, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [episode for episode in read_episodes(files.episodes) if episode.category == "bricks"]
    masks, told = masks_of(episodes[0]), []
    [once] = score_category(contenders, episodes, masks=masks, resolution=32, batch_size=4, device="cpu")
    monkeypatch.setattr("tasks.scoring.score.HELD_SCORES", 4 * len(episodes[0].queries) * 32 * 32)
    passes = list(score_category(contenders, episodes, masks=masks, resolution=32, batch_size=3, device="cpu", report=told.append))
    assert len(passes) == len(episodes) and told == sorted(told) and told[-1] == 1
    apart = {(item.detector, item.episode): item for batch in passes for item in batch}
    for scored in once:
        other = apart[scored.detector, scored.episode]
        assert scored.scores == pytest.approx(other.scores, abs=1e-5)
        assert scored.pixels is not None and other.pixels is not None and scored.pixels.exact and other.pixels.exact
        figures = scored.pixels.figures("exact")
        assert set(figures) == set(PIXEL_FIGURES) and other.pixels.figures("exact") == pytest.approx(figures, abs=1e-3)


def test_sigterm_ends_the_scoring_after_a_batch(files: EpisodeFiles, contenders: list[Contender], polite: None) -> None:
    episodes = [episode for episode in read_episodes(files.episodes) if episode.category == "bricks"]
    told: list[float] = []

    def report(share: float) -> None:
        told.append(share)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"^evaluate parts; its scores are taken anew$"):
        list(score_category(contenders, episodes, masks=None, resolution=32, batch_size=1, device="cpu", report=report))
    assert len(told) == 1 and told[0] < 1


def test_an_episode_too_large_to_hold_is_counted_into_histograms(
    files: EpisodeFiles, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [episode for episode in read_episodes(files.episodes) if episode.category == "bricks"][:2]
    masks = masks_of(episodes[0])
    [exact] = score_category(contenders, episodes, masks=masks, resolution=32, batch_size=4, device="cpu")
    monkeypatch.setattr("tasks.scoring.score.HELD_SCORES", 4 * len(episodes[0].queries) * 32 * 32 - 1)
    coarse = [
        item for batch in score_category(contenders, episodes, masks=masks, resolution=32, batch_size=4, device="cpu") for item in batch
    ]
    by_key = {(item.detector, item.episode): item for item in coarse}
    for scored in exact:
        room = by_key[scored.detector, scored.episode].pixels
        assert room is not None and scored.pixels is not None and not room.exact
        figures = scored.pixels.figures("exact")
        assert all(low - 1e-6 <= figures[name] <= high + 1e-6 for name, (low, high) in room.bounds().items())


def test_a_score_that_is_no_number_is_told_with_its_picture(files: EpisodeFiles, contenders: list[Contender]) -> None:
    class Lost(PatchResidual):
        def conclude(self, *arguments: object, **more: object) -> tuple[torch.Tensor, torch.Tensor]:
            scores, maps = super().conclude(*arguments, **more)  # type: ignore[arg-type]
            return scores * float("nan"), maps

    episodes = read_episodes(files.episodes)[:1]
    lost = Contender("metauas", Lost(contenders[0].detector.encoder, stages=(2, 3, 4)), 64, None)
    with pytest.raises(BadInput, match=re.escape(f"metauas: its score of {episodes[0].queries[0]} is not a number; train it again")):
        list(score_category([lost], episodes, masks=None, resolution=32, batch_size=4, device="cpu"))


def test_a_target_is_measured_and_its_tables_are_written(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path) -> None:
    told: list[float] = []
    result = evaluate_target("parts", contenders, files, EvaluationSettings(resolution=64, shown=2), "cpu", told.append)
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    results = results_of(result.measured, [result.scores], ["class-specific", "class-agnostic"])
    write_results(tmp_path, results)
    assert json.loads((tmp_path / "metrics.json").read_text()) == results.metrics
    assert set(results.metrics["parts"]) == {"patch-residual", "metauas"} and set(results.metrics["parts"]["metauas"]) == {
        "image_auroc",
        "pixel_aupro",
    }
    rows = read_figures(tmp_path / "figures.csv")
    assert rows == results.figures
    assert len(rows) == 2 * 2 * 3 * 3 * 7  # detectors, protocols, shots; both categories and all; figures
    for row in rows:
        assert 0 <= row.low <= row.high <= 1 and 0 <= row.mean <= 1 and row.seeds == 2
    overall = {(row.detector, row.protocol, row.shots, row.figure): row for row in rows if row.category == ALL}
    assert overall["patch-residual", "class-specific", 4, "pixel_auroc"].mean > 0.8  # an inverted rectangle in real textures is found
    assert overall["metauas", "class-specific", 4, "pixel_auroc"].queries == 6 and [
        (line["detector"], line["shots"]) for line in table(rows) if line["protocol"] == "class-specific"
    ] == [(detector, shots) for detector in ("patch-residual", "metauas") for shots in ("1", "2", "4")]

    scores = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(scores) == 2 * 12 * (4 + 3)
    first = [
        row
        for row in scores
        if (row["category"], row["protocol"], row["shots"], row["seed"], row["detector"])
        == ("bricks", "class-specific", 1, 0, "patch-residual")
    ]
    again = roc_auc_score([row["label"] for row in first], [row["score"] for row in first])
    measured = next(
        item
        for item in result.measured
        if item.detector == "patch-residual"
        and (item.episode.category, item.episode.protocol, item.episode.shots, item.episode.seed) == ("bricks", "class-specific", 1, 0)
    )
    assert measured.figures["image_auroc"].value == pytest.approx(again)

    # MetaUAS scores three of each four queries: compared on those.
    compared = next(row for row in results.comparisons if (row.protocol, row.shots, row.figure) == ("class-specific", 1, "image_auroc"))
    assert (compared.detector, compared.other, compared.queries) == ("patch-residual", "metauas", 6)
    assert measured.shared_queries == 3 and compared.low <= compared.difference <= compared.high
    values = [
        np.mean(
            [
                item.shared["image_auroc"].value
                for item in result.measured
                if (item.detector, item.episode.protocol, item.episode.shots) == (name, "class-specific", 1)
            ]
        )
        for name in ("patch-residual", "metauas")
    ]
    assert compared.difference == pytest.approx(values[0] - values[1], abs=1e-6)
    draws = read_draws(tmp_path / "draws.parquet").to_pylist()
    row = next(
        row
        for row in draws
        if (row["detector"], row["protocol"], row["shots"], row["figure"]) == ("metauas", "class-agnostic", 2, "pixel_ap")
    )
    assert np.quantile(row["draws"], [0.025, 0.975]) == pytest.approx(
        [overall["metauas", "class-agnostic", 2, "pixel_ap"].low, overall["metauas", "class-agnostic", 2, "pixel_ap"].high], abs=1e-5
    )


def test_the_gallery_shows_each_detectors_best_borderline_and_worst(
    files: EpisodeFiles, contenders: list[Contender], tmp_path: Path
) -> None:
    result = evaluate_target("parts", contenders, files, EvaluationSettings(resolution=64, shown=2), "cpu")
    gallery = result.gallery
    assert len(gallery.overlays) == 4 and all(set(shown.maps) == {"patch-residual", "metauas"} for shown in gallery.overlays)
    for detector in ("patch-residual", "metauas"):
        kinds = {
            kind: [pick for pick in gallery.picks if (pick.detector, pick.kind) == (detector, kind)]
            for kind in ("best", "borderline", "worst")
        }
        assert all(len(picks) == 2 for picks in kinds.values())
        right = [(pick.score > pick.threshold) == (pick.shown.label == 1) for pick in kinds["best"]]
        assert all(right)
        for pick in gallery.picks:
            assert detector in pick.shown.maps and caption(pick).startswith("anomalous" if pick.shown.label else "normal")
    written = write_galleries(tmp_path / "galleries", [gallery])
    assert [file.name for file in written] == ["overlays-parts.png", "patch-residual-parts.png", "metauas-parts.png"]
    with Image.open(written[1]) as sheet:
        assert sheet.size == (4 * 132 + 4, 6 * 154 + 26)


@pytest.mark.parametrize(
    ("labels", "scores", "threshold"), [([0, 1], [0.1, 0.5], 0.3), ([0, 1, 1], [0.4, 0.3, 0.9], 0.3), ([1, 1], [0.2, 0.2], 0.2)]
)
def test_the_threshold_is_where_f1_is_best(labels: list[int], scores: list[float], threshold: float) -> None:
    assert best_threshold(np.array(labels) == 1, np.array(scores)) == pytest.approx(threshold)


def test_pixel_figures_are_absent_where_there_are_no_masks(files: EpisodeFiles, contenders: list[Contender], layout: Path) -> None:
    for truth in layout.rglob("ground_truth"):
        shutil.rmtree(truth)
    manifests = layout.parent / "manifests"
    ingest_folder("parts", layout, licence="own", places=make_places(manifests), workers=1)
    sample(SamplingSettings(shots=(1,), seeds=(0,)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    result = evaluate_target("parts", contenders, files, EvaluationSettings(resolution=64, shown=2), "cpu")
    assert all(set(item.figures) == set(FIGURES[:3]) for item in result.measured)
    assert all(row["pixel_auroc"] == "" for row in table(figure_rows(result.measured)))
    assert len(result.gallery.overlays) == 4 and all(set(shown.maps) == {"patch-residual", "metauas"} for shown in result.gallery.overlays)


def measured_as(detector: str, category: str, seed: int, **figures: float) -> Measured:
    episode = Episode("parts", category, "class-specific", 1, seed, (), ("q",), (1,))
    measures = {name: Measure(value, np.full(DRAWS, value, dtype=np.float32)) for name, value in figures.items()}
    return Measured(detector, episode, 4, measures, measures, 4)  # type: ignore[arg-type]


def test_a_figure_is_the_mean_over_categories_and_its_spread_over_seeds() -> None:
    measured = [
        measured_as("metauas", category, seed, image_auroc=value)
        for category, seed, value in (("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.9), ("b", 1, 0.7))
    ]
    overall, first, second = figure_rows(measured)
    assert (overall.category, overall.mean, overall.std, overall.seeds, overall.queries) == (ALL, 0.7, 0.1, 2, 8)
    assert (first.category, first.mean, second.category, second.mean) == ("a", 0.7, "b", 0.7)


def test_a_figure_some_categories_lack_is_the_mean_over_those_that_have_it() -> None:
    measured = [measured_as("metauas", "a", 0, image_auroc=0.5, pixel_auroc=0.9), measured_as("metauas", "b", 0, image_auroc=0.7)]
    rows = {(row.category, row.figure): row.mean for row in figure_rows(measured)}
    assert rows == {
        (ALL, "image_auroc"): 0.6,
        (ALL, "pixel_auroc"): 0.9,
        ("a", "image_auroc"): 0.5,
        ("a", "pixel_auroc"): 0.9,
        ("b", "image_auroc"): 0.7,
    }


def test_pictures_are_read_in_order(files: EpisodeFiles) -> None:
    images = read_episodes(files.episodes)[0].queries
    assert torch.equal(read_pictures(images, 64, "cpu")[2:3], read_pictures(images[2:3], 64, "cpu"))


def test_without_prompts_only_a_detector_that_needs_none_is_measured(
    files: EpisodeFiles, contenders: list[Contender], tmp_path: Path
) -> None:
    """WinCLIP at 0 shots, once; at 1 shot all; what it is told of the category counts where the category is known."""
    manifests = files.episodes.parent.parent / "manifests"
    sample(SamplingSettings(shots=(0, 1), seeds=(0, 1)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    episodes = read_episodes(files.episodes)
    assert sum(episode.shots == 0 for episode in episodes) == 2  # one a category
    settings = WinCLIPSettings(encoder=EncoderSettings("open_clip", make_clip(tmp_path / "clip"), "hub"), resolution=64)
    winclip = Contender("winclip", build_detector(settings, build_encoder(settings.encoder, 64)).eval(), 64, None)
    result = evaluate_target("parts", [*contenders, winclip], files, EvaluationSettings(resolution=64, shown=1), "cpu")
    counted = {(item.detector, item.episode.shots) for item in result.measured}
    assert counted == {("winclip", 0), ("winclip", 1), ("patch-residual", 1), ("metauas", 1)}
    told = {
        (row["protocol"], row["image"]): row["score"] for row in result.scores.to_pylist() if row["detector"] == "winclip" and row["shots"]
    }
    assert any(told["class-specific", image] != told["class-agnostic", image] for _protocol, image in told)
    with torch.inference_mode():
        image = episodes[0].queries[0]
        alone = winclip.detector.score(read_pictures([image], 64, "cpu"), [], episodes[0].category)[0]
    zero = [row["score"] for row in result.scores.to_pylist() if row["shots"] == 0 and row["image"] == image]
    assert zero == [pytest.approx(float(alone), abs=1e-5)]


def test_queries_with_prompts_of_their_own_are_held_against_those(files: EpisodeFiles, contenders: list[Contender], layout: Path) -> None:
    """The authors' top-k lists: batches of any size meet the right prompt."""
    tests = [file.relative_to(layout).as_posix() for file in sorted(layout.glob("*/test/*/*.png"))]
    listed = {query: [f"{query.split('/')[0]}/train/good/{place % 4}.png"] for place, query in enumerate(tests)}
    prompts = layout.parent / "topk.json"
    prompts.write_text("\n".join(json.dumps({query: own}) for query, own in listed.items()))
    settings = SamplingSettings(shots=(1,), seeds=(0,), protocols=("class-agnostic",), prompts=str(prompts))
    sample(settings, Use(("other",), ("parts",)), manifests=files.episodes.parent.parent / "manifests", files=files)
    episode = next(episode for episode in read_episodes(files.episodes) if episode.category == "stones")
    patch = contenders[0]
    with torch.inference_mode():
        expected = [
            float(patch.detector.score(_pixels([query]), _pixels([own]))[0])
            for query, own in zip(episode.queries, episode.own, strict=True)
        ]
    for batch_size in (1, 3):
        [[scored]] = score_category([patch], [episode], masks=None, resolution=32, batch_size=batch_size, device="cpu")
        assert scored.scores == pytest.approx(expected, abs=1e-5)


def test_one_vs_all_is_measured_with_the_protocols_labels(files: EpisodeFiles, contenders: list[Contender]) -> None:
    """A normal stone is anomalous among bricks, and patch residual tells."""
    settings = SamplingSettings(shots=(2,), seeds=(0,), protocols=("one-vs-all",))
    sample(settings, Use(("other",), ("parts",)), manifests=files.episodes.parent.parent / "manifests", files=files)
    result = evaluate_target("parts", contenders[:1], files, EvaluationSettings(resolution=64, shown=1), "cpu")
    assert {item.episode.category for item in result.measured} == {"bricks", "stones"} and all(
        item.queries == 8 for item in result.measured
    )
    rows = [row for row in result.scores.to_pylist() if row["category"] == "bricks"]
    assert all(row["label"] == 1 for row in rows if "/stones/" in row["image"]) and sum(row["label"] == 0 for row in rows) == 2
    assert min(item.figures["image_auroc"].value for item in result.measured) > 0.8
