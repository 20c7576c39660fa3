"""Evaluation: shared work against scoring each episode on its own, tables, spread and galleries."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_clip, make_places, scored
from PIL import Image
from sklearn.metrics import roc_auc_score
from tallies import bounds_of

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.stopping import Stopped
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.detectors.detector import upsample
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.reporting.galleries import KINDS, best_threshold, caption, galleries_of, write_galleries
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, protocols_of, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.metrics import METRICS, PIXEL_METRICS
from changepair.tasks.scoring.pixels import PixelScores, truth_of
from changepair.tasks.scoring.results import ALL, Measure, Measured, metric_rows, read_draws, read_metrics, results_of, table, write_results
from changepair.tasks.scoring.score import Contender, score
from changepair.tasks.scoring.scores import ScoresFolder, read_scored, read_scores
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.scoring.spread import DRAWS


@pytest.fixture
def files(layout: Path) -> EpisodeFiles:
    manifests, files = layout.parent / "manifests", EpisodeFiles.of(layout.parent / "episodes", "small")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    other = layout.parent / "other" / "train" / "good"
    other.mkdir(parents=True)
    picture = (layout / "bricks/train/good/0.png").read_bytes()
    (other / "0.png").write_bytes(picture + b"\0")
    ingest_folder("other", other.parents[1], licence="own", places=make_places(manifests))
    sample(SamplingSettings(shots=(1, 2, 4), seeds=(0, 1)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    return files


@pytest.fixture(scope="module")
def detectors() -> list[Contender]:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(), 64)
    patch = create_detector(PatchResidualSettings(resolution=64, top_share=0.01), encoder).eval()
    metauas = create_detector(MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16)), encoder).eval()
    nowhere = ScoresFolder(Path("nowhere"))
    return [Contender("patch-residual", patch, 64, None, nowhere), Contender("metauas", metauas, 64, 3, nowhere)]


@pytest.fixture
def contenders(detectors: list[Contender], tmp_path: Path) -> list[Contender]:
    """Two of one encoder; MetaUAS scores three of each four queries."""
    return [replace(contender, work=ScoresFolder(tmp_path / "work" / contender.name)) for contender in detectors]


CPU = torch.device("cpu")


def measured(folders: dict[str, Path], files: EpisodeFiles, **settings: Any) -> list[Measured]:
    return measure(folders, files, EvaluationSettings(**{"resolution": 64, **settings}))


@torch.inference_mode()
def alone(contender: Contender, episode: Episode) -> np.ndarray:
    """An episode's scores with nothing shared: each query by itself through the detector's public call."""
    detector, scores = contender.detector, []
    for image in episode.queries[: contender.queries]:
        query, prompts = (_pixels(images) for images in ([image], list(episode.prompts)))
        if episode.protocol == "class-agnostic":
            signature = [torch.nn.functional.normalize(detector.encoder(pictures)[-1].mean((2, 3)), dim=1) for pictures in (query, prompts)]
            prompts = prompts[(signature[0] @ signature[1].T)[0].argsort(descending=True)[: episode.shots]]
        scores.append(float(detector.score(query, prompts)[0]))
    return np.array(scores)


def _pixels(images: list[str]) -> torch.Tensor:
    from changepair.tasks.common.pictures import read_picture

    return torch.from_numpy(np.stack([read_picture(Path(image), 64) for image in images])).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sharing_work_changes_no_score(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path, batch_size: int) -> None:
    episodes = read_episodes(files.episodes)
    for name, folder in scored(contenders, files, tmp_path / "scores", batch_size).items():
        contender = next(item for item in contenders if item.name == name)
        items = list(read_scored(folder))
        assert [item.number for item in items] == list(range(len(episodes)))
        for item in items:
            episode = episodes[item.number]
            assert len(item.scores) == len(episode.queries[: contender.queries])
            if episode.category == "stones":
                assert item.scores == pytest.approx(alone(contender, episode), abs=1e-4)
    assert not list((tmp_path / "work").glob("*"))  # nothing is left of the work


def test_of_the_same_prompts_a_detector_concludes_once(layout: Path, tmp_path: Path) -> None:
    """Where a dataset has one category, both protocols hold a query against the same prompts."""
    shutil.rmtree(layout / "bricks")
    manifests, files = tmp_path / "manifests", EpisodeFiles.of(tmp_path / "episodes", "one")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    both = ("class-specific", "class-agnostic")
    sample(SamplingSettings(shots=(1, 2), seeds=(0, 1), protocols=both), Use((), ("parts",)), manifests=manifests, files=files)
    calls = []

    class Counted(PatchResidual):
        def conclude(self, *arguments: object, **more: object) -> tuple[torch.Tensor, torch.Tensor]:
            calls.append(arguments)
            return super().conclude(*arguments, **more)  # type: ignore[arg-type]

    detector = Counted(build_encoder(EncoderSettings(), 64)).eval()
    folder = scored([Contender("patch-residual", detector, 64, None, ScoresFolder(tmp_path / "work"))], files, tmp_path / "scores")[
        "patch-residual"
    ]
    assert len(calls) == 2 * 2  # seeds, shots
    kinds = {(episode.seed, episode.shots) for episode in read_episodes(files.episodes)}
    scores = [tuple(item.scores) for item in read_scored(folder)]
    assert len(kinds) == 4 and len(scores) == 8 and len(set(scores)) <= 4


def test_a_detector_scored_along_is_found_scored(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path) -> None:
    """One is scored in one pass with another, and its artifact made later, with an encoder that must not be asked."""
    apart = scored(contenders, files, tmp_path / "apart")
    again = [replace(contender, work=ScoresFolder(tmp_path / "along" / contender.name)) for contender in contenders]
    patch, metauas = again
    score(again, files, {patch.name: tmp_path / "scores" / patch.name}, batch_size=3, device=CPU)
    assert not (tmp_path / "scores" / metauas.name).exists()

    def refuse(*_arguments: object) -> None:
        raise AssertionError("a picture was encoded again")

    hook = metauas.detector.encoder.register_forward_pre_hook(refuse)  # type: ignore[attr-defined]
    score([metauas], files, {metauas.name: tmp_path / "scores" / metauas.name}, batch_size=3, device=CPU)
    hook.remove()
    for name, folder in apart.items():
        ours, theirs = (read_scores(place).to_pylist() for place in (tmp_path / "scores" / name, folder))
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-5)


@pytest.mark.parametrize("batch_sizes", [(1, 1), (3, 2)])
def test_stopped_scoring_goes_on_where_it_was(
    files: EpisodeFiles,
    contenders: list[Contender],
    tmp_path: Path,
    polite: None,
    monkeypatch: pytest.MonkeyPatch,
    batch_sizes: tuple[int, int],
) -> None:
    whole = scored([replace(one, work=ScoresFolder(tmp_path / "whole" / one.name)) for one in contenders], files, tmp_path / "whole-scores")
    folders = {contender.name: tmp_path / "scores" / contender.name for contender in contenders}
    shares: list[float] = []

    def stop(share: float) -> None:
        shares.append(share)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=rf"^score parts/bricks, {batch_sizes[0]} of 4 queries scored$"):
        score(contenders, files, folders, batch_size=batch_sizes[0], device=CPU, report=stop)
    assert len(shares) == 1 and 0 < shares[0] < 1 and not (tmp_path / "scores").exists()

    monkeypatch.setattr(stopping, "_asked", threading.Event())
    encoded: list[int] = []
    encoder = contenders[0].detector.encoder
    hook = encoder.register_forward_pre_hook(lambda _module, inputs: encoded.append(len(inputs[0])))  # type: ignore[attr-defined]
    score(contenders, files, folders, batch_size=batch_sizes[1], device=CPU)
    hook.remove()
    prompts = {image for episode in read_episodes(files.episodes) for image in episode.prompts}
    assert sum(encoded) == 2 * len(prompts) + 8 - batch_sizes[0]  # prompts for either category; of eight queries those not scored
    for name in folders:
        ours, theirs = (read_scores(place).to_pylist() for place in (folders[name], whole[name]))
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
        for one, other in zip(read_scored(folders[name]), read_scored(whole[name]), strict=True):
            assert one.maps is not None and other.maps is not None and np.abs(one.maps - other.maps).max() < 1e-5


def test_an_episode_too_large_to_hold_is_counted_into_histograms(
    files: EpisodeFiles, contenders: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = scored(contenders[:1], files, tmp_path / "scores")
    exact = measured(folders, files)
    monkeypatch.setattr("changepair.tasks.scoring.measure.HELD_SCORES", 4 * 4 * 64 * 64 - 1)
    for one, other in zip(exact, measured(folders, files), strict=True):
        assert one.episode == other.episode and one.metrics["image_auroc"].value == other.metrics["image_auroc"].value
        for name in PIXEL_METRICS:
            assert other.metrics[name].value == pytest.approx(one.metrics[name].value, abs=2e-3)
    [scored_first, *_rest] = read_scored(folders["patch-residual"])
    maps = upsample(torch.from_numpy(np.array(scored_first.maps)), (64, 64)).numpy()
    masks = [np.zeros((64, 64), dtype=bool), *[np.pad(np.ones((20, 20), dtype=bool), ((0, 44), (0, 44)))] * 3]
    rooms = [PixelScores(maps.size, exact=exactly) for exactly in (True, False)]
    for room in rooms:
        room.add(maps, truth_of(masks, (64, 64)))
    bounds, metrics = bounds_of(rooms[1]), rooms[0].metrics("exact")
    assert all(low - 1e-6 <= metrics[name] <= high + 1e-6 for name, (low, high) in bounds.items())


def test_a_score_that_is_no_number_is_told_with_its_picture(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path) -> None:
    class Lost(PatchResidual):
        def conclude(self, *arguments: object, **more: object) -> tuple[torch.Tensor, torch.Tensor]:
            scores, maps = super().conclude(*arguments, **more)  # type: ignore[arg-type]
            return scores * float("nan"), maps

    episodes = read_episodes(files.episodes)[:1]
    lost = replace(contenders[1], detector=Lost(contenders[0].detector.encoder, stages=(2, 3, 4)), queries=None)
    with pytest.raises(BadInput, match=re.escape(f"metauas: the score of {episodes[0].queries[0]} is not a number; retrain metauas")):
        scored([lost], files, tmp_path / "scores")


def test_a_target_is_measured_and_its_tables_are_written(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path) -> None:
    folders = scored(contenders, files, tmp_path / "scores")
    every = measured(folders, files)
    results = results_of(every, protocols_of(files.episodes))
    write_results(tmp_path, results)
    assert json.loads((tmp_path / "metrics.json").read_text()) == results.metrics
    assert set(results.metrics["parts"]) == {"patch-residual", "metauas"} and set(results.metrics["parts"]["metauas"]) == {
        "image_auroc",
        "pixel_aupro",
    }
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows == results.rows
    assert len(rows) == 2 * 2 * 3 * 3 * 7  # detectors, protocols, shots; both categories and all; metrics
    for row in rows:
        assert 0 <= row.low <= row.high <= 1 and 0 <= row.mean <= 1 and row.seeds == 2
    overall = {(row.detector, row.protocol, row.shots, row.metric): row for row in rows if row.category == ALL}
    assert overall["patch-residual", "class-specific", 4, "pixel_auroc"].mean > 0.8  # an inverted rectangle in real textures is found
    assert overall["metauas", "class-specific", 4, "pixel_auroc"].queries == 6 and [
        (line["detector"], line["shots"]) for line in table(rows) if line["protocol"] == "class-specific"
    ] == [(detector, shots) for detector in ("patch-residual", "metauas") for shots in ("1", "2", "4")]

    scores = [row for folder in folders.values() for row in pq.read_table(folder / "scores.parquet").to_pylist()]
    assert len(scores) == 2 * 12 * (4 + 3)
    first = [
        row
        for row in scores
        if (row["category"], row["protocol"], row["shots"], row["seed"], row["detector"])
        == ("bricks", "class-specific", 1, 0, "patch-residual")
    ]
    again = roc_auc_score([row["label"] for row in first], [row["score"] for row in first])
    of_first = next(
        item
        for item in every
        if item.detector == "patch-residual"
        and (item.episode.category, item.episode.protocol, item.episode.shots, item.episode.seed) == ("bricks", "class-specific", 1, 0)
    )
    assert of_first.metrics["image_auroc"].value == pytest.approx(again)

    # MetaUAS scores three of each four queries: compared on those.
    compared = next(row for row in results.comparisons if (row.protocol, row.shots, row.metric) == ("class-specific", 1, "image_auroc"))
    assert (compared.detector, compared.other, compared.queries) == ("patch-residual", "metauas", 6)
    assert of_first.shared_queries == 3 and compared.low <= compared.difference <= compared.high
    values = [
        np.mean(
            [
                item.shared["image_auroc"].value
                for item in every
                if (item.detector, item.episode.protocol, item.episode.shots) == (name, "class-specific", 1)
            ]
        )
        for name in ("patch-residual", "metauas")
    ]
    assert compared.difference == pytest.approx(values[0] - values[1], abs=1e-6)
    draws = read_draws(tmp_path / "draws.parquet")
    row = next(row for row in draws if (row.detector, row.protocol, row.shots, row.metric) == ("metauas", "class-agnostic", 2, "pixel_ap"))
    assert np.quantile(row.draws, [0.025, 0.975]) == pytest.approx(
        [overall["metauas", "class-agnostic", 2, "pixel_ap"].low, overall["metauas", "class-agnostic", 2, "pixel_ap"].high], abs=1e-5
    )


def test_the_gallery_shows_what_each_detector_missed_its_false_alarms_and_what_it_found(
    files: EpisodeFiles, contenders: list[Contender], tmp_path: Path
) -> None:
    [gallery] = galleries_of(scored(contenders, files, tmp_path / "scores"), files, 2)
    assert len(gallery.overlays) == 4 and all(set(shown.maps) == {"patch-residual", "metauas"} for shown in gallery.overlays)
    for detector in ("patch-residual", "metauas"):
        own = gallery.of(detector)
        kinds = {kind: [pick for pick in own if pick.kind == kind] for kind in KINDS}
        assert len(kinds["borderline"]) == 2 and all(len(picks) <= 2 for picks in kinds.values()) and len(kinds["found"]) > 0
        sides = {"missed": (1, False), "false alarms": (0, True), "found": (1, True)}
        for kind, side in sides.items():
            assert {(pick.shown.label, pick.score > pick.threshold) for pick in kinds[kind]} <= {side}
        for pick in own:
            what = f"{pick.shown.category}: {'anomalous' if pick.shown.label else 'normal'}, score "
            assert pick.detector in pick.shown.maps and caption(pick).startswith(what) and "the threshold of best F1" in caption(pick)
    written = write_galleries(tmp_path / "galleries", [gallery], {"parts": "metauas"})
    names = ["overlays-parts.png", "patch-residual-parts.png", "metauas-parts.png", "short-parts.png"]
    assert [file.name for file in written] == names
    for file, lines in ((written[1], len(gallery.of("patch-residual"))), (written[3], len({pick.kind for pick in gallery.of("metauas")}))):
        with Image.open(file) as sheet:
            assert sheet.size == (4 * 132 + 4, 24 + lines * 156 + 4)


@pytest.mark.parametrize(
    ("labels", "scores", "threshold"), [([0, 1], [0.1, 0.5], 0.3), ([0, 1, 1], [0.4, 0.3, 0.9], 0.3), ([1, 1], [0.2, 0.2], 0.2)]
)
def test_the_threshold_is_where_f1_is_best(labels: list[int], scores: list[float], threshold: float) -> None:
    assert best_threshold(np.array(labels) == 1, np.array(scores)) == pytest.approx(threshold)


def test_pixel_metrics_are_absent_where_there_are_no_masks(
    files: EpisodeFiles, contenders: list[Contender], layout: Path, tmp_path: Path
) -> None:
    for truth in layout.rglob("ground_truth"):
        shutil.rmtree(truth)
    manifests = layout.parent / "manifests"
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    sample(SamplingSettings(shots=(1,), seeds=(0,)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    folders = scored(contenders, files, tmp_path / "scores")
    every = measured(folders, files)
    assert all(set(item.metrics) == set(METRICS[:3]) for item in every)
    assert all(row["pixel_auroc"] == "" for row in table(metric_rows(every)))
    [gallery] = galleries_of(folders, files, 2)
    assert len(gallery.overlays) == 4 and all(set(shown.maps) == {"patch-residual", "metauas"} for shown in gallery.overlays)


def measured_as(detector: str, category: str, seed: int, **metrics: float) -> Measured:
    episode = Episode("parts", category, "class-specific", 1, seed, (), ("q",), (1,))
    measures = {name: Measure(value, np.full(DRAWS, value, dtype=np.float32)) for name, value in metrics.items()}
    return Measured(detector, episode, 4, measures, measures, 4)  # type: ignore[arg-type]


def test_a_metric_is_the_mean_over_categories_and_its_spread_over_seeds() -> None:
    every = [
        measured_as("metauas", category, seed, image_auroc=value)
        for category, seed, value in (("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.9), ("b", 1, 0.7))
    ]
    overall, first, second = metric_rows(every)
    assert (overall.category, overall.mean, overall.std, overall.seeds, overall.queries) == (ALL, 0.7, 0.1, 2, 8)
    assert (first.category, first.mean, second.category, second.mean) == ("a", 0.7, "b", 0.7)


def test_a_metric_some_categories_lack_is_the_mean_over_those_that_have_it() -> None:
    every = [measured_as("metauas", "a", 0, image_auroc=0.5, pixel_auroc=0.9), measured_as("metauas", "b", 0, image_auroc=0.7)]
    rows = {(row.category, row.metric): row.mean for row in metric_rows(every)}
    assert rows == {
        (ALL, "image_auroc"): 0.6,
        (ALL, "pixel_auroc"): 0.9,
        ("a", "image_auroc"): 0.5,
        ("a", "pixel_auroc"): 0.9,
        ("b", "image_auroc"): 0.7,
    }


def test_pictures_are_read_in_order(files: EpisodeFiles) -> None:
    images = read_episodes(files.episodes)[0].queries
    assert torch.equal(read_tensors(images, 64, CPU)[2:3], read_tensors(images[2:3], 64, CPU))


def test_without_prompts_only_a_detector_that_needs_none_is_measured(
    files: EpisodeFiles, contenders: list[Contender], tmp_path: Path
) -> None:
    """WinCLIP at 0 shots, once; at 1 shot all; what it is told of the category counts where the category is known."""
    manifests = files.episodes.parent.parent / "manifests"
    sample(SamplingSettings(shots=(0, 1), seeds=(0, 1)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    episodes = read_episodes(files.episodes)
    assert sum(episode.shots == 0 for episode in episodes) == 2  # one a category
    settings = WinCLIPSettings(encoder=EncoderSettings("open_clip", make_clip(tmp_path / "clip"), "hub"), resolution=64)
    winclip = Contender(
        "winclip", create_detector(settings, build_encoder(settings.encoder, 64)).eval(), 64, None, ScoresFolder(tmp_path / "work")
    )
    folders = scored([*contenders, winclip], files, tmp_path / "scores")
    counted = {(item.detector, item.episode.shots) for item in measured(folders, files)}
    rows = read_scores(folders["winclip"]).to_pylist()
    assert counted == {("winclip", 0), ("winclip", 1), ("patch-residual", 1), ("metauas", 1)}
    scores = {(row["protocol"], row["image"]): row["score"] for row in rows if row["shots"]}
    assert any(scores["class-specific", image] != scores["class-agnostic", image] for _protocol, image in scores)
    with torch.inference_mode():
        image = episodes[0].queries[0]
        alone = winclip.detector.score(read_tensors([image], 64, CPU), [], episodes[0].category)[0]
    zero = [row["score"] for row in rows if row["shots"] == 0 and row["image"] == image]
    assert zero == [pytest.approx(float(alone), abs=1e-5)]


def test_queries_with_prompts_of_their_own_are_held_against_those(files: EpisodeFiles, contenders: list[Contender], layout: Path) -> None:
    """The authors' top-k lists: batches of any size meet the right prompt."""
    tests = [file.relative_to(layout).as_posix() for file in sorted(layout.glob("*/test/*/*.png"))]
    listed = {query: [f"{query.split('/')[0]}/train/good/{place % 4}.png"] for place, query in enumerate(tests)}
    prompts = layout.parent / "topk.json"
    prompts.write_text("\n".join(json.dumps({query: own}) for query, own in listed.items()))
    settings = SamplingSettings(shots=(1,), seeds=(0,), protocols=("class-agnostic",), prompts=str(prompts))
    sample(settings, Use(("other",), ("parts",)), manifests=files.episodes.parent.parent / "manifests", files=files)
    number, episode = next(item for item in enumerate(read_episodes(files.episodes)) if item[1].category == "stones")
    patch = contenders[0]
    with torch.inference_mode():
        expected = [
            float(patch.detector.score(_pixels([query]), _pixels([own]))[0])
            for query, own in zip(episode.queries, episode.own, strict=True)
        ]
    for batch_size in (1, 3):
        folders = scored([patch], files, layout.parent / "scores", batch_size)
        [item] = [one for one in read_scored(folders["patch-residual"]) if one.number == number]
        assert item.scores == pytest.approx(expected, abs=1e-5)


def test_one_vs_all_is_measured_with_the_protocols_labels(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path) -> None:
    """A normal stone is anomalous among bricks, and patch residual tells."""
    settings = SamplingSettings(shots=(2,), seeds=(0,), protocols=("one-vs-all",))
    sample(settings, Use(("other",), ("parts",)), manifests=files.episodes.parent.parent / "manifests", files=files)
    folders = scored(contenders[:1], files, tmp_path / "scores")
    every = measured(folders, files)
    assert {item.episode.category for item in every} == {"bricks", "stones"} and all(item.queries == 8 for item in every)
    rows = [row for row in read_scores(folders["patch-residual"]).to_pylist() if row["category"] == "bricks"]
    assert all(row["label"] == 1 for row in rows if "/stones/" in row["image"]) and sum(row["label"] == 0 for row in rows) == 2
    assert min(item.metrics["image_auroc"].value for item in every) > 0.8


def test_a_mean_says_over_how_many_categories_it_is_where_some_have_no_such_metric() -> None:
    draws = np.full(DRAWS, 0.5, dtype=np.float32)
    images, pixels = ({name: Measure(value, draws)} for name, value in (("image_auroc", 0.9), ("pixel_auroc", 0.8)))
    measured = []
    for category, labels, metrics in (("a", (0, 1), images | pixels), ("b", (1, 1), pixels)):
        episode = Episode("parts", category, "class-specific", 1, 0, ("p",), (f"{category}0", f"{category}1"), labels)
        measured.append(Measured("one", episode, 2, metrics, metrics, 2))
    rows = {(row.category, row.metric): row for row in metric_rows(measured)}
    assert (rows["", "image_auroc"].mean, rows["", "image_auroc"].over) == (0.9, "1 of 2 categories")
    assert rows["", "pixel_auroc"].over == rows["a", "image_auroc"].over == "" and ("b", "image_auroc") not in rows
    [line] = table(list(rows.values()))
    assert (line["image_auroc"], line["pixel_auroc"]) == ("90.0 ± 0.0 (1 of 2 categories)", "80.0 ± 0.0")
