"""Evaluation: the seven figures against slow references, shared work against scoring each episode on its own."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_clip, make_places, save
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tasks.detector_settings import EncoderSettings, MetaUASSettings, PatchResidualSettings, WinCLIPSettings
from tasks.detectors import build_detector
from tasks.encoders import build_encoder
from tasks.evaluation.evaluate import Measured, evaluate_target, metrics, table, write_results
from tasks.evaluation.figures import FIGURES, aupro, auroc, average_precision, f1max, image_figures, pixel_figures, rank
from tasks.evaluation.plots import write_plots
from tasks.evaluation.report import markdown, write_report
from tasks.evaluation.score import Contender, read_pictures, score_category
from tasks.evaluation.settings import EvaluationSettings
from tasks.ingestion.ingest import ingest_folder
from tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes
from tasks.sampling.sample import sample
from tasks.sampling.settings import SamplingSettings, Use

# Few distinct scores, so that ties are common.
SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(SCORES)
def test_auroc_ap_and_f1max_are_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([label for label, _ in rows]), np.array([score for _, score in rows], dtype=np.float32)
    ranking = rank(labels, scores)
    precision, recall, _thresholds = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        best = np.nanmax(2 * precision * recall / (precision + recall))
    assert auroc(ranking) == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(ranking) == pytest.approx(average_precision_score(labels, scores))
    assert f1max(ranking) == pytest.approx(best)


def slow_aupro(masks: np.ndarray, maps: np.ndarray, limit: float = 0.3) -> float:
    """Threshold by threshold, region by region, as the definition reads."""
    regions = [
        (index, labelled == number)
        for index, mask in enumerate(masks)
        for labelled, count in [ndimage.label(mask, np.ones((3, 3)))]
        for number in range(1, count + 1)
    ]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        rate = flagged[~masks].mean()
        points.append((rate, np.mean([flagged[index][region].mean() for index, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.bool_, (2, 7, 8)).filter(lambda masks: masks.any() and not masks.all()),
    hnp.arrays(np.float32, (2, 7, 8), elements=st.integers(0, 9).map(lambda level: level / 8)),
)
def test_aupro_is_the_definitions(masks: np.ndarray, maps: np.ndarray) -> None:
    assert aupro(masks, rank(masks.ravel(), maps.ravel())) == pytest.approx(slow_aupro(masks, maps), abs=1e-9)


def test_a_perfect_map_scores_one_and_a_constant_one_chance() -> None:
    masks = np.zeros((2, 16, 16), dtype=bool)
    masks[0, 3:9, 3:9] = True
    assert pixel_figures(masks, masks.astype(np.float32)) == {name: pytest.approx(1.0) for name in FIGURES[3:]}
    constant = pixel_figures(masks, np.full(masks.shape, 0.5, dtype=np.float32))
    assert constant["pixel_auroc"] == pytest.approx(0.5) and constant["pixel_ap"] == pytest.approx(masks.mean())
    assert image_figures(np.array([True, False]), np.array([1.0, 0.0])) == {name: 1.0 for name in FIGURES[:3]}


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
    from tasks.pictures import read_picture

    return torch.from_numpy(np.stack([read_picture(Path(image), 64) for image in images])).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sharing_work_changes_no_score(files: EpisodeFiles, contenders: list[Contender], batch_size: int) -> None:
    episodes = [episode for episode in read_episodes(files.episodes) if episode.category == "stones"]
    [found] = score_category(contenders, episodes, maps_at=None, batch_size=batch_size, device="cpu")
    assert len(found) == 2 * len(episodes)
    for scored in found:
        contender = next(item for item in contenders if item.name == scored.detector)
        assert scored.images == scored.episode.queries[: contender.queries] and scored.maps is None
        assert scored.scores == pytest.approx(alone(contender, scored.episode), abs=1e-4)


def test_several_passes_give_what_one_gives(files: EpisodeFiles, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = [episode for episode in read_episodes(files.episodes) if episode.category == "bricks"]
    [once] = score_category(contenders, episodes, maps_at=32, batch_size=4, device="cpu")
    monkeypatch.setattr("tasks.evaluation.score.HELD_MAPS", 1)
    passes = list(score_category(contenders, episodes, maps_at=32, batch_size=4, device="cpu"))
    assert len(passes) == len(episodes)
    apart = {(item.detector, item.episode): item for batch in passes for item in batch}
    for scored in once:
        other = apart[scored.detector, scored.episode]
        assert scored.maps is not None and other.maps is not None and scored.maps.shape[1:] == (32, 32)
        assert scored.scores == pytest.approx(other.scores, abs=1e-5) and scored.maps == pytest.approx(other.maps, abs=1e-5)


def test_a_target_is_measured_written_drawn_and_reported(files: EpisodeFiles, contenders: list[Contender], tmp_path: Path) -> None:
    result = evaluate_target("parts", contenders, files, EvaluationSettings(resolution=64, shown=2), "cpu")
    tree = write_results(tmp_path, [result])
    assert json.loads((tmp_path / "metrics.json").read_text()) == tree
    assert set(tree["parts"]) == {"patch-residual", "metauas"}
    assert set(tree["parts"]["patch-residual"]) == {"class-specific", "class-agnostic"}
    shots = tree["parts"]["patch-residual"]["class-specific"]
    assert set(shots) == {"1", "2", "4"} and set(shots["1"]) == set(FIGURES) and set(shots["1"]["image_auroc"]) == {"mean", "std"}
    assert shots["4"]["pixel_auroc"]["mean"] > 0.8  # an inverted rectangle in real bricks and stones is found

    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(rows) == 2 * 12 * (4 + 3)
    first = [
        row
        for row in rows
        if (row["category"], row["protocol"], row["shots"], row["seed"], row["detector"])
        == ("bricks", "class-specific", 1, 0, "patch-residual")
    ]
    again = roc_auc_score([row["label"] for row in first], [row["score"] for row in first])
    measured = next(
        m
        for m in result.measured
        if m.detector == "patch-residual"
        and (m.episode.category, m.episode.protocol, m.episode.shots, m.episode.seed) == ("bricks", "class-specific", 1, 0)
    )
    assert measured.figures["image_auroc"] == pytest.approx(again)

    plots = write_plots(tmp_path / "plots", [result])
    assert [plot.name for plot in plots] == ["roc-parts.png", "overlays-parts.png"]
    report, pairs = tmp_path / "report.html", tmp_path / "overview"
    save(np.zeros((8, 8), dtype=np.uint8), pairs / "appearance.png")
    (pairs / "kinds.csv").write_text("kind,pairs\nappearance,30\nnone,10\n")
    (pairs / "changed_area.csv").write_text("changed_area,pairs,appearance\n0.01,30,30\n")
    (pairs / "drops.csv").write_text("reason,draws\n")
    write_report(report, pipeline="small", settings={"a": 1}, tree=tree, plots=plots, pairs=pairs)
    page = report.read_text()
    assert page.count("data:image/png;base64,") == 3 and 'src="http' not in page and "href=" not in page
    for row in table(tree):
        assert row["image_auroc"] in page
    assert 'style="width: 33.3%"></span></td><td>10</td>' in page and "<h3>draws dropped</h3>" not in page
    assert markdown(tree).count("\n| parts |") == 12


def test_pixel_figures_are_absent_where_there_are_no_masks(files: EpisodeFiles, contenders: list[Contender], layout: Path) -> None:
    import shutil

    for truth in layout.rglob("ground_truth"):
        shutil.rmtree(truth)
    manifests = layout.parent / "manifests"
    ingest_folder("parts", layout, licence="own", places=make_places(manifests), workers=1)
    sample(SamplingSettings(shots=(1,), seeds=(0,)), Use(("other",), ("parts",)), manifests=manifests, files=files)
    result = evaluate_target("parts", contenders, files, EvaluationSettings(resolution=64, shown=2), "cpu")
    assert all(set(item.figures) == set(FIGURES[:3]) for item in result.measured)
    assert all(row["pixel_auroc"] == "" for row in table(metrics(result.measured)))
    assert len(result.shown) == 4 and all(set(shown.maps) == {"patch-residual", "metauas"} for shown in result.shown)


def test_a_figure_is_the_mean_over_categories_and_its_spread_over_seeds() -> None:
    episode = Episode("parts", "a", "class-specific", 1, 0, (), (), ())
    measured = [
        Measured("metauas", replace(episode, category=category, seed=seed), 4, {"image_auroc": value})
        for category, seed, value in (("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.9), ("b", 1, 0.7))
    ]
    leaf = metrics(measured)["parts"]["metauas"]["class-specific"]["1"]["image_auroc"]
    assert leaf == {"mean": pytest.approx(0.7), "std": pytest.approx(0.1)}


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
        [[scored]] = score_category([patch], [episode], maps_at=None, batch_size=batch_size, device="cpu")
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
    assert min(item.figures["image_auroc"] for item in result.measured) > 0.8
