"""Robustness: perturbed normal pictures are scored as a predictor scores them, and judged by the other half's threshold."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import SMALL, make_places, save, write_pipelines
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from torch import Tensor

from changepair.flows.metrics import declare as declare_metrics
from changepair.flows.metrics import write_metrics
from changepair.flows.promotion.history import read_recommendation
from changepair.flows.report import declare as declare_report
from changepair.flows.report import draw_galleries, write_page
from changepair.flows.score import declare as declare_scores
from changepair.flows.settings.pipelines import Pipeline, Pipelines, read_pipelines
from changepair.flows.settings.reader import parse
from changepair.tasks.common import stopping
from changepair.tasks.common.stopping import Stopped
from changepair.tasks.common.tiles import Grid
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.registry import kind_of
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.encoder import Features
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes, read_pictures
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.batch_scoring import Scoring, score_detector
from changepair.tasks.scoring.perturbations import perturbed
from changepair.tasks.scoring.robustness import RobustnessRow, read_robustness, robustness_rows, write_robustness
from changepair.tasks.scoring.score import Contender, count_parts, score
from changepair.tasks.scoring.scores import PERTURBED, PERTURBED_NAME, SCORES_NAME, Scored, ScoresFolder, read_perturbed

NAMES = ("noise-15", "crop-0.8", "jpeg-30")
SETTINGS = PatchResidualSettings(resolution=64, top_share=0.05, tiles=(1, 2))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Named:
    torch.manual_seed(0)
    return Named(kind_of(SETTINGS), {kind_of(SETTINGS): SETTINGS}, create_detector(SETTINGS).eval())


def levels(seed: int) -> np.ndarray:
    """A grey texture of 70x90 pixels."""
    rows, columns = np.mgrid[:70, :90]
    noise = np.random.default_rng(seed).normal(size=(70, 90))
    return np.clip(128 + 50 * np.sin(rows / 5 + seed) * np.cos(columns / 7) + 12 * noise, 0, 255).astype(np.uint8)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """A dataset of grey, transparent and 12-bit pictures. Returns what each shows, (H, W, 3), by its file's path."""
    shown = {}
    for number, (split, defect) in enumerate([*[("train", "good")] * 4, *[("test", "good")] * 5, *[("test", "hole")] * 2]):
        for category in ("grey", "alpha", "deep"):
            own = levels(10 * number + len(category))
            if defect == "hole":
                own[20:40, 30:60] = 255 - own[20:40, 30:60]
            file, picture = folder / category / split / defect / f"{number}.png", own[..., None].repeat(3, 2)
            if category == "grey":
                save(own, file)
            elif category == "alpha":
                clear = np.zeros((70, 90), bool)
                clear[:9] = True
                save(np.dstack([picture, np.where(clear, 0, 255).astype(np.uint8)]), file)
                picture = np.where(clear[..., None], 255, picture).astype(np.uint8)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.rint(own * (4095 / 255)).astype(np.uint16)).save(file)
            shown[str(file)] = picture
    return shown


@pytest.fixture
def data(tmp_path: Path) -> tuple[EpisodeFiles, dict[str, np.ndarray]]:
    """Episodes of `pictures`, and what each picture shows by its path in the manifest."""
    shown = pictures(tmp_path / "parts")
    manifests, files = tmp_path / "manifests", EpisodeFiles.of(tmp_path / "episodes", "small")
    ingest_folder("parts", tmp_path / "parts", licence="own", places=make_places(manifests))
    asked = SamplingSettings(shots=(1, 2), seeds=(1, 0), protocols=("class-agnostic", "class-specific"))
    sample(asked, Use((), ("parts",)), manifests=manifests, files=files)
    rows = read_pictures(files.targets)
    copied = [row for row in rows if row.category == "deep"]
    assert all(row.samples == "integer" and (row.low, row.high) == (0, 4095) for row in copied)
    by_hash = {hashlib.sha256(Path(file).read_bytes()).hexdigest(): picture for file, picture in shown.items()}
    return files, {row.image: by_hash[row.sha256] for row in rows}


def contender(model: Named, work: Path, queries: int | None = None) -> Contender:
    looks = model.looks
    return Contender(
        model.name, model.detector, looks.resolution, queries, ScoresFolder(work / model.name), looks.encoder.resize, looks.tiles
    )


def scores_of(model: Named, files: EpisodeFiles, folder: Path, queries: int | None = None, **how: Any) -> Path:
    asked = {"batch_size": 4, "perturbations": NAMES, "most_perturbed": 3, **how}
    score([contender(model, folder / "work", queries)], files, {model.name: folder / "scores"}, device=CPU, **asked)
    return folder / "scores"


def test_perturbed_pictures_are_scored_as_by_a_predictor_with_the_first_seeds_prompts(
    model: Named, data: tuple[EpisodeFiles, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Pictures and prompts are decoded by hand here: grey, transparent over white, and 12 bits; then perturbed at full size, then cut."""
    files, shown = data
    episodes, hashes = read_episodes(files.episodes), {row.image: row.sha256 for row in read_pictures(files.targets)}
    rows = read_perturbed(scores_of(model, files, tmp_path)).to_pylist()
    chosen = {row["episode"] for row in rows}
    assert {(episodes[one].category, episodes[one].shots) for one in chosen} == {
        (name, shots) for name in ("grey", "alpha", "deep") for shots in (1, 2)
    }
    for number in chosen:
        episode = episodes[number]
        own = [row for row in rows if row["episode"] == number]
        assert (episode.protocol, episode.seed) == ("class-specific", 1)
        assert {(row["target"], row["category"], row["protocol"], row["shots"], row["seed"], row["detector"]) for row in own} == {
            ("parts", episode.category, "class-specific", episode.shots, 1, "patch-residual")
        }
        normal = [image for image, label in zip(episode.queries, episode.labels, strict=True) if label != ANOMALOUS][:3]
        assert [(row["image"], row["perturbation"]) for row in own] == [(image, name) for image in normal for name in NAMES]
        predictor = Predictor(model).prompt([shown[image] for image in episode.prompts])
        assert predictor.prompted.grid == Grid(1, 2)
        expected = predictor([perturbed(shown[image], name, hashes[image]) for image in normal for name in NAMES]).scores
        assert [row["score"] for row in own] == pytest.approx(expected, abs=1e-6)
        clean = predictor([shown[image] for image in normal for _name in NAMES]).scores
        [other] = [one for one in episodes if replace(one, seed=1, prompts=episode.prompts) == episode and one.seed == 0]
        of_other = Predictor(model).prompt([shown[image] for image in other.prompts])(
            [perturbed(shown[image], name, hashes[image]) for image in normal for name in NAMES]
        )
        assert np.abs(expected - clean).max() > 1e-3
        assert np.abs(expected - of_other.scores).max() > 1e-3 or set(other.prompts) == set(episode.prompts)


def test_nothing_else_changes_and_without_perturbations_nothing_is_added(
    model: Named, data: tuple[EpisodeFiles, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    files, _shown = data
    without = scores_of(model, files, tmp_path / "without", perturbations=())
    with_them = scores_of(model, files, tmp_path / "with")
    contents = [
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()} for folder in (without, with_them)
    ]
    added = contents[1].pop(Path(PERTURBED_NAME))
    assert contents[0] == contents[1] and Path(SCORES_NAME) in contents[0] and added
    assert read_perturbed(without).num_rows == 0 and read_perturbed(without).schema == PERTURBED


def test_a_detector_that_scores_some_queries_has_perturbed_ones_of_these(
    model: Named, data: tuple[EpisodeFiles, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    files, _shown = data
    whole, part = (read_perturbed(scores_of(model, files, tmp_path / str(count), count)).to_pylist() for count in (None, 3))
    episodes = read_episodes(files.episodes)
    kept = [row for row in whole if row["image"] in episodes[row["episode"]].queries[:3]]
    assert 0 < len(part) < len(whole) and [row["image"] for row in part] == [row["image"] for row in kept]
    assert [row["score"] for row in part] == pytest.approx([row["score"] for row in kept], abs=1e-6)


@pytest.mark.usefixtures("polite")
def test_a_killed_run_resumes_and_parts_can_be_scored_apart(
    model: Named, data: tuple[EpisodeFiles, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _shown = data
    wanted = scores_of(model, files, tmp_path / "once")
    checks: list[str] = []

    def killed(where: str) -> None:
        checks.extend([where] if "perturbed" in where else [])
        if len(checks) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        real(where)

    real = stopping.check
    monkeypatch.setattr(stopping, "check", killed)
    parts = count_parts(files)
    assert parts == 3
    with pytest.raises(Stopped, match=r"score parts/\w+, perturbed, \d of 9 queries scored"):
        for part in reversed(range(parts)):
            score([contender(model, tmp_path / "work")], files, {}, device=CPU, batch_size=4, only=part, **HOW)
    monkeypatch.setattr(stopping, "check", lambda where: None)
    found = scores_of(model, files, tmp_path)
    assert read_perturbed(found) == read_perturbed(wanted)
    assert (found / SCORES_NAME).read_bytes() == (wanted / SCORES_NAME).read_bytes()
    assert not (tmp_path / "work" / "patch-residual").exists()


def test_perturbed_queries_are_compared_with_prompts_that_are_encoded_already(
    model: Named, data: tuple[EpisodeFiles, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _shown = data
    counts: list[int] = []

    def counted(own: Detector, pictures: Tensor, features: Features | None = None) -> Features:
        counts.append(len(pictures))
        return real(own, pictures, features)

    real = Detector.memorise
    monkeypatch.setattr(Detector, "memorise", counted)
    scores_of(model, files, tmp_path / "without", perturbations=())
    without, counts[:] = list(counts), []
    scores_of(model, files, tmp_path / "with")
    assert counts == without and counts


HOW: dict[str, Any] = {"perturbations": NAMES, "most_perturbed": 3}


def episode(labels: list[int], category: str = "cup", shots: int = 1) -> Episode:
    queries = tuple(f"{category}/{place}.png" for place in range(len(labels)))
    return Episode("parts", category, "class-specific", shots, 0, ("prompt.png",), queries, tuple(labels))


def table(number: int, name: str, scores: dict[str, float]) -> pa.Table:
    """A table of PERTURBED for one episode; the columns that come from the episode are not read."""
    filled = {field.name: ["" if field.type == pa.string() else 0] * len(scores) for field in PERTURBED}
    own = {"episode": [number] * len(scores), "image": list(scores), "perturbation": [name] * len(scores), "score": list(scores.values())}
    return pa.table({**filled, **own}, schema=PERTURBED)


def test_a_perturbed_picture_is_judged_by_the_half_without_it() -> None:
    """By hand: of halves [.1, .3] and [.2, .4] the thresholds are .3 and .4, for the other half each."""
    one = episode([0, ANOMALOUS, 0, 0, 0])
    scored = {"d": [Scored(0, np.array([0.1, 0.9, 0.2, 0.3, 0.4], np.float32), None)]}
    changed = {one.queries[0]: 0.35, one.queries[2]: 0.35, one.queries[3]: 0.38, one.queries[4]: 0.31}
    [row] = robustness_rows(scored, {"d": table(0, "blur-1", changed)}, [one])
    assert (row.flagged, row.nominal, row.pictures, row.rate) == (0.5, 0.25, 4, pytest.approx(1 / 3, abs=1e-6))
    assert row.low < row.rate and not row.fragile  # two of four: as with the target rate, a third
    [swapped] = robustness_rows(scored, {"d": table(0, "blur-1", {one.queries[0]: 0.45, one.queries[3]: 0.39})}, [one])
    assert (swapped.flagged, swapped.nominal, swapped.pictures) == (0.5, 0, 2)


def test_counts_agree_with_plain_python_and_scikit_learn() -> None:
    """Two categories of which a part is perturbed: thresholds are recomputed by sorting."""
    random = np.random.default_rng(4)
    episodes = [episode([0] * 60 + [ANOMALOUS] * 9 + [0] * 45, category) for category in ("cup", "plate")]
    scores = [random.gamma(3, 0.02, 114).astype(np.float32) for _ in episodes]
    scored = {"d": [Scored(number, values, None) for number, values in enumerate(scores)]}
    tables, flagged, nominal, aurocs = [], [], [], []
    for number, (one, values) in enumerate(zip(episodes, scores, strict=True)):
        normal = [(image, value) for image, value, label in zip(one.queries, values.tolist(), one.labels, strict=True) if not label]
        changed = {image: float(np.float32(value + random.normal(0.02, 0.03))) for image, value in normal[:37]}
        tables.append(table(number, "noise-15", changed))
        for place, (image, value) in enumerate(normal[:37]):
            half = sorted(other for rank, (_image, other) in enumerate(normal) if rank % 2 != place % 2)
            limit = half[-1]  # 52 or 53 pictures promise a rate of 1 of 53 or 54: the highest score
            flagged.append(changed[image] > limit + 5e-6)
            nominal.append(value > limit + 5e-6)
        aurocs.append(roc_auc_score([0] * 37 + [1] * 37, [value for _image, value in normal[:37]] + list(changed.values())))
    rows = {row.category: row for row in robustness_rows(scored, {"d": pa.concat_tables(tables)}, episodes)}
    assert set(rows) == {"", "cup", "plate"} and 0 < sum(nominal) < sum(flagged) < 74
    overall, interval = rows[""], binomtest(sum(flagged), 74).proportion_ci(method="exact")
    assert overall.flagged == pytest.approx(sum(flagged) / 74, abs=1e-6) and overall.nominal == pytest.approx(sum(nominal) / 74, abs=1e-6)
    assert (overall.low, overall.high) == pytest.approx((interval.low, interval.high), abs=1e-6) and overall.pictures == 74
    assert overall.auroc == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert [rows[name].auroc for name in ("cup", "plate")] == pytest.approx(aurocs, abs=1e-6)


def test_a_perturbation_without_effect_has_the_nominal_rate_and_an_auroc_of_a_half() -> None:
    one = episode([0] * 40)
    values = np.random.default_rng(0).random(40).astype(np.float32)
    same = dict(zip(one.queries, values.tolist(), strict=True))
    [row] = robustness_rows({"d": [Scored(0, values, None)]}, {"d": table(0, "jpeg-50", same)}, [one])
    assert row.flagged == row.nominal and row.auroc == 0.5


def test_too_few_pictures_have_no_row_and_rows_are_read_as_written(tmp_path: Path) -> None:
    one = episode([0, ANOMALOUS])
    assert not robustness_rows({"d": [Scored(0, np.zeros(2, np.float32), None)]}, {"d": table(0, "jpeg-50", {one.queries[0]: 1.0})}, [one])
    rows = [row := RobustnessRow("parts", "", "d", "class-specific", 4, "jpeg-50", 0.01, 0.02, 0.41, 0.3, 0.5, 0.7, 50)]
    write_robustness(tmp_path / "robustness.csv", rows)
    assert read_robustness(tmp_path / "robustness.csv") == rows
    assert row.fragile and not replace(row, perturbation="jpeg-30").fragile
    assert not replace(row, flagged=0.2).fragile and not replace(row, rate=0.3).fragile


def test_the_stages_write_scores_table_decision_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder of pictures, with JPEG at quality 50 and a strong noise, which is not mild. Then without perturbations again."""
    monkeypatch.chdir(tmp_path)
    pictures(Path("parts"))
    own = {"targets": ["parts"], "sampling": {"shots": [1, 2], "seeds": [0]}, "detectors": {"patch-residual": {"resolution": 64}}}
    content = {
        "enabled": ["small"],
        "datasets": {"folders": {"parts": {"path": "parts"}}},
        "pipelines": {"small": {**own, "evaluation": {"resolution": 64, "perturbations": ["jpeg-50", "noise-90"], "perturbed": 4}}},
    }
    page = written(content)
    rows = read_robustness(Path("data/evaluation/small/robustness.csv"))
    assert {(row.category, row.shots, row.perturbation, row.pictures) for row in rows} == {
        (category, shots, name, 12 if not category else 4)
        for category in ("", "grey", "alpha", "deep")
        for shots in (1, 2)
        for name in ("jpeg-50", "noise-90")
    }
    noisy = [row for row in rows if row.perturbation == "noise-90" and not row.category]
    assert all(row.flagged > 0.9 and row.auroc > 0.9 and row.rate == pytest.approx((1 / 4 + 1 / 3) / 2, abs=1e-6) for row in noisy)
    recommendation = read_recommendation(Path("data/evaluation/small"))
    assert recommendation is not None and recommendation.robustness
    assert [row for row in rows if row in recommendation.robustness] == list(recommendation.robustness)
    assert 'id="robustness"' in page and page.count(">noise-90</th>") == 2 and "noise-90." not in page  # no warning
    content["pipelines"]["small"]["evaluation"] = {"resolution": 64}  # type: ignore[index]
    assert 'id="robustness"' not in written(content) and not Path("data/evaluation/small/robustness.csv").exists()
    assert "robustness" not in Path("data/evaluation/small/decision.json").read_text()


def written(content: Any) -> str:
    """Run the work of a project's stages in this folder. Return the report."""
    write_pipelines(Path(), content)
    read = read_pipelines()
    pipeline, files = read.pipelines["small"], EpisodeFiles.of(Path("data/episodes"), "small")
    ingest_folder("parts", Path("parts"), licence="own", places=make_places(Path("data/manifests")))
    sample(pipeline.sampling, Use((), ("parts",)), manifests=Path("data/manifests"), files=files)
    scoring = Scoring(pipeline.detectors, pipeline.evaluation, files, Path("models"), Path("data/scores/small"), Path("checkpoints"))
    score_detector("patch-residual", scoring)
    [metrics], [report] = declare_metrics("small", pipeline, read.datasets), declare_report("small", pipeline, read.datasets)
    write_metrics(metrics)
    write_page(report, draw_galleries(report))
    return report.page.read_text()


def test_stages_depend_on_perturbations_only_if_there_are_any() -> None:
    """Without, settings and files of the stages are as before the setting existed."""
    named = {"perturbations": ["jpeg-50"], "perturbed": 7}
    without, with_them = (
        parse(Pipeline, {**SMALL["pipelines"]["small"], "evaluation": {"resolution": 64, **own}})  # type: ignore[index]
        for own in ({}, named)
    )
    datasets = parse(Pipelines, SMALL).datasets
    for pipeline, added in ((without, {}), (with_them, named)):
        for stage in declare_scores("small", pipeline, datasets):
            found = {key.rpartition(".")[2]: value for key, value in stage.settings.items() if ".evaluation." in key}
            assert found == added
        [metrics], [report] = declare_metrics("small", pipeline, datasets), declare_report("small", pipeline, datasets)
        file = "data/evaluation/small/robustness.csv"
        assert (file in metrics.outs) == (file in report.deps) == any(file in plot for plot in metrics.plots) == bool(added)
    [other] = [plot for plot in metrics.plots if file in plot]
    template = Path(__file__).parents[2] / "flows/project/plots" / f"{other[file]['template']}.json"
    fields = set(re.findall(r'"field": "(\w+)"', template.read_text())) | {other[file]["x"], other[file]["y"]}
    assert fields - {"rev"} <= {field.name for field in dataclasses.fields(RobustnessRow)}
