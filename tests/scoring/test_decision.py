"""The decision how a pipeline's model is used: which detector, prompts and threshold, and `--model <pipeline>`, which follows it."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, make_clip, make_places, save, scored, write_pipelines
from predictors import predict
from scipy.ndimage import gaussian_filter
from scipy.stats import beta, binomtest
from sklearn.metrics import roc_auc_score

from changepair.flows.promotion.history import Model, read_recommendation, write_current
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.calibration import TOLERANCE
from changepair.tasks.prediction.kit import Kit
from changepair.tasks.reporting.advice import advice_of, next_steps
from changepair.tasks.sampling.episodes import Episode, EpisodeFiles, protocols_of, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.operating import OperatingRow, binomial_interval
from changepair.tasks.scoring.recommendation import Recommendation, recommend, write_recommendation
from changepair.tasks.scoring.results import (
    DECISION_NAME,
    DRAWS_NAME,
    ComparisonRow,
    DrawRow,
    Measure,
    Measured,
    MetricRow,
    results_of,
    write_results,
)
from changepair.tasks.scoring.robustness import RobustnessRow
from changepair.tasks.scoring.score import Contender
from changepair.tasks.scoring.scores import Scored, ScoresFolder, read_scored
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.scoring.spread import DRAWS, image_draws

FRESH = 200
DETECTORS = {"patch-residual": {"resolution": 64, "top_share": 0.05}, "subspace": {"resolution": 64}}


def texture(seed: int, grain: float) -> np.ndarray:
    """A grey texture of 64x64 pixels."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64)), grain)
    rows, columns = np.mgrid[:64, :64]
    return (255 * np.clip(0.5 + 0.08 * noise / noise.std() + 0.15 * np.sin(rows / 4) * np.sin(columns / 4), 0, 1)).astype(np.uint8)


GRAIN = {"fine": 0.8, "coarse": 3.0}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline `line-3` has a model in use: of two categories, with 110 and 40 normal test pictures."""
    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for (category, grain), count in zip(GRAIN.items(), (110, 40), strict=True):
            for number in range(count):
                save(texture(100 + number, grain), Path("parts", category, "test/good", f"{number}.png"))
            for number in range(6):
                save(texture(number, grain), Path("parts", category, "train/good", f"{number}.png"))
                pixels, mask = texture(900 + number, grain), np.zeros((64, 64), np.uint8)
                mask[20:38, 30:48] = 255
                save(np.where(mask > 0, pixels // 3, pixels), Path("parts", category, "test/hole", f"{number}.png"))
                save(mask, Path("parts", category, "ground_truth/hole", f"{number}_mask.png"))
        ingest_folder("parts", Path("parts"), licence="own", places=make_places(Path("data/manifests")))
        files = EpisodeFiles.of(Path("data/episodes"), "line-3")
        sample(SamplingSettings(shots=(1, 2), seeds=(3, 4)), Use((), ("parts",)), manifests=Path("data/manifests"), files=files)
        own = PatchResidualSettings(resolution=64, top_share=0.05)
        detector = create_detector(own, build_encoder(own.encoder, 64)).eval()
        scores = scored([Contender("patch-residual", detector, 64, None, ScoresFolder(Path("work")))], files, Path("data/scores/line-3"))
        results = results_of(measure(scores, files, EvaluationSettings(resolution=64)), protocols_of(files.episodes))
        write_results(Path("data/evaluation/line-3"), results)
        items = {name: list(read_scored(place)) for name, place in scores.items()}
        recommendation = recommend(results.draws, results.shared, read_episodes(files.episodes), items, PromotionSettings(), [])
        in_use = Path("data/models/line-3/in-use")
        write_recommendation(in_use / DECISION_NAME, recommendation)
        shutil.copyfile(Path("data/evaluation/line-3", DRAWS_NAME), in_use / DRAWS_NAME)
        (in_use / "settings.json").write_text(json.dumps({"detectors": DETECTORS, "evaluation": {}, "code": {}}))
        write_current("line-3", Model("1" * 32 + ".dir", 1, 1, "1" * 32, "", {}, "the first", "2026-01-01T00:00:00+00:00"))
        write_pipelines(folder, {**SMALL, "enabled": ["line-3"], "pipelines": {"line-3": SMALL["pipelines"]["small"]}})  # type: ignore[index]
        for category, grain in GRAIN.items():
            for number in range(FRESH):
                save(texture(10_000 + number, grain), Path("fresh", category, f"{number:03d}.png"))
    return folder


@pytest.fixture
def here(line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `line`, which a test works in and may change."""
    monkeypatch.chdir(shutil.copytree(line, tmp_path / "line"))
    return tmp_path / "line"


def decision() -> Recommendation:
    read = read_recommendation(Path("data/models/line-3/in-use"))
    assert read is not None
    return read


@pytest.mark.parametrize("category", GRAIN)
def test_the_printed_command_flags_as_many_fresh_normal_pictures_as_its_interval_says(here: Path, category: str) -> None:
    [advice] = advice_of(decision(), [], [])
    [use] = [use for use in advice.uses if use.category == category]
    threshold, command = use.threshold, shlex.split(advice.command("line-3", use))
    assert threshold is not None and command[:2] == ["changepair", "predict"] and command[-1] == "part.png"
    answer = predict(*command[2:-1], "--format", "csv", Path("fresh", category))
    rows = list(csv.DictReader(io.StringIO(answer.stdout)))
    assert len(rows) == FRESH and {row["threshold"] for row in rows} == {f"{threshold.value:.6f}"}
    flagged = sum(row["verdict"] == "anomalous" for row in rows)
    seen = binomtest(flagged, FRESH).proportion_ci(method="exact")
    assert flagged / FRESH <= threshold.high and seen.low <= threshold.high and threshold.low <= seen.high
    found = predict(*command[2:-1], "--format", "csv", Path("parts", category, "test/hole")).stdout.count("anomalous")
    assert (found, use.anomalous) == (use.found, 6) and found >= 4


def test_the_threshold_is_the_conformal_rank_of_the_scores_that_the_command_prints(here: Path) -> None:
    """Recomputed from what `predict` says of the normal test pictures, with scipy's Beta distribution."""
    for use in decision().uses:
        assert use.threshold is not None and use.seed == 3 and use.protocol == "class-specific"
        answer = predict("--model", "line-3", "--category", use.category, "--format", "csv", Path("parts", use.category, "test/good"))
        scores = sorted(float(row["score"]) for row in csv.DictReader(io.StringIO(answer.stdout)))
        rate = max(0.01, 1 / (len(scores) + 1))
        rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
        assert use.threshold.false_alarms == pytest.approx(rate) and len(use.threshold.normals) == len(scores)
        assert use.threshold.value == pytest.approx(scores[rank - 1] + TOLERANCE, abs=1.1e-6)
        interval = beta.ppf([0.025, 0.975], len(scores) + 1 - rank, rank)
        assert (use.threshold.low, use.threshold.high) == pytest.approx(tuple(interval))
        assert use.threshold.normals == pytest.approx(scores, abs=1.1e-6)


def test_the_same_scores_give_the_same_bytes(here: Path) -> None:
    files = EpisodeFiles.of(Path("data/episodes"), "line-3")
    scores = {"patch-residual": Path("data/scores/line-3/patch-residual")}
    results = results_of(measure(scores, files, EvaluationSettings(resolution=64)), protocols_of(files.episodes))
    items = {name: list(read_scored(place)) for name, place in scores.items()}
    again = recommend(results.draws, results.shared, read_episodes(files.episodes), items, PromotionSettings(), [])
    write_recommendation(Path("again.json"), again)
    assert Path("again.json").read_bytes() == Path("data/models/line-3/in-use", DECISION_NAME).read_bytes() and again == decision()
    for use in again.uses:
        assert [prompt.sha256 for prompt in use.prompts] == [sha256(Path(prompt.image)) for prompt in use.prompts]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "line-3: has several categories; choose one with --category (parts/coarse, parts/fine)"),
        (
            ["--category", "rough"],
            "line-3: has no category 'rough', or several with this name; choose one with --category (parts/coarse, parts/fine)",
        ),
        (["--category", "parts"], "line-3: has no category 'parts', or several with this name"),
    ],
)
def test_one_of_several_categories_has_to_be_named(here: Path, options: list[str], message: str) -> None:
    answer = predict("--model", "line-3", *options, "fresh/fine/000.png")
    assert answer.returncode == 2 and message in answer.stderr and not answer.stdout


def test_prompts_of_the_user_replace_those_of_the_decision_and_its_threshold(here: Path) -> None:
    own = predict("--model", "line-3", "--prompt", "parts/fine/train/good/5.png", "--format", "csv", "fresh/fine/000.png")
    assert own.returncode == 0 and own.stdout.splitlines()[1].endswith(",,")
    assert (
        own.stderr.splitlines()[1]
        == "changepair: line-3: the threshold of the pipeline does not apply to your own prompts; set one with --calibrate"
    )
    alone = predict("--model", "line-3/patch-residual", "fresh/fine/000.png")
    assert alone.returncode == 2 and "no prompt: patch-residual needs" in alone.stderr
    tiled = predict("--model", "line-3", "--category", "fine", "--tiles", "2x2", "--format", "csv", "fresh/fine/000.png")
    assert tiled.returncode == 0 and "does not apply with --tiles" in tiled.stderr and tiled.stdout.splitlines()[1].endswith(",,")


def test_a_missing_or_changed_prompt_is_refused_in_one_line(here: Path) -> None:
    [use] = [use for use in decision().uses if use.category == "coarse"]
    image = Path(use.prompts[0].image)
    save(texture(77, 3.0), image)
    changed = predict("--model", "line-3", "--category", "coarse", "fresh/coarse/000.png")
    image.unlink()
    gone = predict("--model", "line-3", "--category", "coarse", "fresh/coarse/000.png")
    for answer, said in ((changed, "has changed since the threshold was set"), (gone, "prompt of line-3 cannot be read (")):
        assert answer.returncode == 2 and f"{image}: " in answer.stderr and said in answer.stderr and not answer.stdout
        assert len(answer.stderr.splitlines()) == 2  # which model, and what is wrong


def test_a_kit_of_the_decision_has_its_threshold(here: Path) -> None:
    made = predict("--model", "line-3", "--category", "parts/fine", "--write-kit", "kit")
    assert made.returncode == 0, made.stderr
    threshold = Kit.load("kit").threshold
    [use] = [use for use in decision().uses if use.category == "fine"]
    assert threshold == use.threshold
    answers = [
        predict(*model, "--format", "csv", "fresh/fine") for model in (("--kit", "kit"), ("--model", "line-3", "--category", "fine"))
    ]
    rows = [list(csv.DictReader(io.StringIO(answer.stdout))) for answer in answers]
    for one, other in zip(*rows, strict=True):
        assert (one["picture"], one["threshold"], one["verdict"]) == (other["picture"], other["threshold"], other["verdict"])
        assert float(one["score"]) == pytest.approx(float(other["score"]), abs=1.1e-6)


def test_a_damaged_decision_is_an_error_and_a_model_without_one_still_works(here: Path) -> None:
    file = Path("data/models/line-3/in-use", DECISION_NAME)
    text = file.read_text()
    value = next(use.threshold.value for use in decision().uses if use.threshold is not None)
    for damaged in (text[:100], text.replace(f'"value": {value}', '"value": NaN'), "[]"):
        assert damaged != text
        file.write_text(damaged)
        answer = predict("--model", "line-3", "--category", "fine", "fresh/fine/000.png")
        assert answer.returncode == 2 and "decision.json: damaged" in answer.stderr
    file.unlink()
    older = predict("--model", "line-3", "--prompt", "parts/fine/train/good/0.png", "fresh/fine/000.png")
    assert older.returncode == 0 and "patch-residual of the current model 11111111, selected from 2 detectors" in older.stderr
    assert "no prompt" in predict("--model", "line-3", "fresh/fine/000.png").stderr


# By hand: episodes, scores and metrics as numbers.

LABELS = (0, 0, 0, ANOMALOUS)


def episode(target: str, protocol: str, shots: int, *, category: str = "cup", prompts: int | None = None, seed: int = 0) -> Episode:
    prompting = tuple(f"prompts/{category}/{number}.png" for number in range(shots if prompts is None else prompts))
    queries = tuple(f"{target}/{category}/{number}.png" for number in range(len(LABELS)))
    return Episode(target, category, protocol, shots, seed, prompting, queries, LABELS)


def draw(target: str, protocol: str, shots: int, value: float, detector: str = "one", metric: str = "image_auroc") -> DrawRow:
    return DrawRow(target, detector, protocol, shots, metric, "", value, ())


def decided(
    episodes: list[Episode], draws: list[DrawRow], *, queries: int = 4, names: tuple[str, ...] = ("one",), **settings: object
) -> Recommendation:
    for one in episodes:
        for image in one.prompts:
            save(np.zeros((2, 2), np.uint8), Path(image))
    scores = np.array([0.1, 0.3, 0.2, 0.9], dtype=np.float32)[:queries]
    items = {name: [Scored(number, scores, None) for number in range(len(episodes))] for name in names}
    return recommend(draws, draws, episodes, items, PromotionSettings(**settings), [])  # type: ignore[arg-type]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_target_has_the_fewest_prompts_near_its_best_metric(empty: Path) -> None:
    episodes = [episode(target, "class-specific", shots) for target in ("a", "b") for shots in (1, 2, 4)]
    values = {"a": (0.80, 0.895, 0.90), "b": (0.5, 0.6, 0.7)}
    draws = [
        draw(target, "class-specific", shots, value) for target in values for shots, value in zip((1, 2, 4), values[target], strict=True)
    ]
    assert [(use.target, use.shots, use.value, len(use.prompts)) for use in decided(episodes, draws).uses] == [
        ("a", 2, 0.895, 2),
        ("b", 4, 0.7, 4),
    ]
    assert decided(episodes, draws).lines[0] == "a: one with 2 normal pictures, I-AUROC 89.5 %, threshold 0.300005 for 25 % false alarms"


def test_class_specific_comes_first_and_a_pool_of_several_categories_sets_no_threshold(empty: Path) -> None:
    pooled = [episode("a", "class-agnostic", 1, category=category, prompts=2) for category in ("cup", "plate")]
    draws = [draw("a", "class-agnostic", 1, 0.9)]
    for use in decided(pooled, draws).uses:
        assert use.threshold is None and not use.prompts and "also evaluate class-specific" in use.reason
    both = [*pooled, *(episode("a", "class-specific", 1, category=category) for category in ("cup", "plate"))]
    uses = decided(both, [*draws, draw("a", "class-specific", 1, 0.8)]).uses
    assert [(use.protocol, use.value, use.threshold is not None) for use in uses] == [("class-specific", 0.8, True)] * 2
    [alone] = decided([episode("a", "class-agnostic", 2)], [draw("a", "class-agnostic", 2, 0.9)]).uses  # a pool of one category is its own
    assert alone.threshold is not None and len(alone.prompts) == 2 and alone.word is None
    given = replace(episode("a", "class-agnostic", 1), own=("prompts/cup/0.png",) * 4)
    assert decided([given], [draw("a", "class-agnostic", 1, 0.9)]).uses[0].threshold is None


def test_no_prompt_is_the_fewest(empty: Path) -> None:
    episodes = [episode("a", "class-specific", shots) for shots in (0, 1)]
    [use] = decided(episodes, [draw("a", "class-specific", shots, 0.9) for shots in (0, 1)]).uses
    assert use.shots == 0 and use.prompts == () and use.word == "cup" and use.threshold is not None
    assert decided(episodes, [draw("a", "class-specific", 0, 0.8), draw("a", "class-specific", 1, 0.9)]).uses[0].shots == 1


def test_a_target_without_the_metric_has_the_most_prompts(empty: Path) -> None:
    """No metric says that fewer are enough."""
    episodes = [episode(target, "class-specific", shots) for target in ("a", "b") for shots in (1, 4)]
    uses = decided(episodes, [draw("a", "class-specific", shots, 0.9) for shots in (1, 4)]).uses
    assert [(use.target, use.shots, use.value) for use in uses] == [("a", 1, 0.9), ("b", 4, None)]


def test_a_detector_that_scored_some_of_the_pictures_has_a_threshold_of_those(empty: Path) -> None:
    [use] = decided([episode("a", "class-specific", 1)], [draw("a", "class-specific", 1, 0.9)], queries=2).uses
    assert use.threshold is not None and use.threshold.normals == (0.1, 0.3) and (use.anomalous, use.found) == (0, 0)
    assert use.threshold.false_alarms == pytest.approx(1 / 3)


def test_anomalous_pictures_alone_set_no_threshold(empty: Path) -> None:
    one = replace(episode("a", "class-specific", 1), labels=(ANOMALOUS,) * 4)
    [use] = decided([one], []).uses  # the only detector there is
    assert use.threshold is None and use.reason == "all 4 test pictures are anomalous" and use.value is None


def test_without_the_metric_none_of_several_detectors_is_recommended(empty: Path) -> None:
    one = [episode("a", "class-specific", 1)]
    assert decided(one, [draw("a", "class-specific", 1, 0.9)], names=("one", "other"), metric="pixel_aupro") == Recommendation("", None, ())
    chosen = decided(one, [draw("a", "class-specific", 1, 0.9, name) for name in ("one", "other")], names=("one", "other"))
    assert chosen.detector == "one" and str(chosen) == "one, I-AUROC 90.0 %"


def test_detectors_are_compared_on_the_pictures_that_all_of_them_scored(empty: Path) -> None:
    """One that is worse on the same pictures is not chosen for the easier ones that it alone scored."""
    images, labels = tuple(str(place) for place in range(8)), (0, 1) * 4
    one = replace(episode("a", "class-specific", 1), queries=images, labels=labels)
    for image in one.prompts:
        save(np.zeros((2, 2), np.uint8), Path(image))
    scores = {"whole": [0.5, 0.6, 0.5, 0.4, 0.1, 0.9, 0.1, 0.9], "first four": [0.5, 0.6, 0.5, 0.5]}
    counts = {count: np.ones((DRAWS, count), np.float32) for count in (4, 8)}

    def measured(name: str) -> Measured:
        own = np.array(scores[name], dtype=np.float32)

        def auroc(count: int) -> dict[str, Measure]:
            anomalous = np.array(labels[:count]) == 1
            draws = image_draws(counts[count], anomalous, own[:count])
            return {"image_auroc": Measure(float(roc_auc_score(anomalous, own[:count])), draws["image_auroc"])}

        return Measured(name, one, len(own), auroc(len(own)), auroc(4), 4)

    both = [measured(name) for name in scores]
    items = {name: [Scored(0, np.array(own, dtype=np.float32), None)] for name, own in scores.items()}
    results = results_of(both, ["class-specific"])
    assert {row.detector: row.value for row in results.draws} == {"whole": 0.875, "first four": 0.75}
    assert {row.detector: row.value for row in results.shared} == {"whole": 0.5, "first four": 0.75}
    assert recommend(results.draws, results.shared, [one], items, PromotionSettings(), []).detector == "first four"


def robust(detector: str, share: float, *, target: str = "a", shots: int = 1, perturbation: str = "jpeg-50") -> RobustnessRow:
    low, high = binomial_interval(round(50 * share), 50)
    return RobustnessRow(target, "", detector, "class-specific", shots, perturbation, 0.01, 0.02, share, low, high, 0.6, 50)


def chosen(values: dict[str, float], rows: list[RobustnessRow], spread: float = 0.05) -> Recommendation:
    """Recommend among detectors with draws around their values: differences up to about twice the spread are not significant."""
    one, random = episode("a", "class-specific", 1), np.random.default_rng(0)
    for image in one.prompts:
        save(np.zeros((2, 2), np.uint8), Path(image))
    draws = [
        replace(draw("a", "class-specific", 1, value, name), draws=tuple(value + random.normal(0, spread, DRAWS)))
        for name, value in values.items()
    ]
    items = {name: [Scored(0, np.array([0.1, 0.3, 0.2, 0.9], dtype=np.float32), None)] for name in values}
    return recommend(draws, draws, [one], items, PromotionSettings(), [], None, rows)


def test_a_recommended_detector_that_is_not_robust_says_so(empty: Path) -> None:
    """In decision.json, the lines of `retrain`, and the record that `status` prints. Other prompts, targets and detectors do not count."""
    rows = [
        robust("one", 0.42), robust("one", 0.3, perturbation="blur-1"), robust("one", 0.9, perturbation="jpeg-10"),
        robust("one", 0.8, shots=4), robust("other", 0.7),
    ]  # fmt: skip
    found = chosen({"one": 0.9, "other": 0.5}, rows)
    assert found.detector == "one" and found.robustness == tuple(rows[:3])
    assert found.warning("a") == "flags 42 % of normal pictures under jpeg-50, 30 % under blur-1" and not found.warning("b")
    assert found.lines[0].endswith("; flags 42 % of normal pictures under jpeg-50, 30 % under blur-1")
    assert str(found) == "one, I-AUROC 90.0 %; flags 42 % of normal pictures of a under jpeg-50"
    write_recommendation(Path("decision.json"), found)
    assert read_recommendation(Path()) == found
    holds = chosen({"one": 0.9, "other": 0.5}, [robust("one", 0.1)])
    assert not holds.warning() and str(holds) == "one, I-AUROC 90.0 %" and "flags" not in holds.lines[0]


def test_a_robust_detector_that_is_not_significantly_worse_is_preferred(empty: Path) -> None:
    rows = [robust("one", 0.42), robust("other", 0.04)]
    found = chosen({"one": 0.9, "other": 0.88}, rows)
    assert found.detector == "other" and not found.warning() and found.robustness == (rows[1],)
    passed = "other, I-AUROC 88.0 %; instead of one 90.0 %, which flags 42 % of normal pictures of a under jpeg-50"
    assert str(found) == passed
    write_recommendation(Path("decision.json"), found)
    assert read_recommendation(Path()) == found
    assert chosen({"one": 0.9, "other": 0.88}, rows, spread=0.001).detector == "one"  # a significant difference
    for other in ([robust("other", 0.5)], []):  # it does not withstand it either, or was not measured
        kept = chosen({"one": 0.9, "other": 0.88}, [rows[0], *other])
        assert kept.detector == "one" and kept.warning()
    assert chosen({"one": 0.9, "other": 0.88}, []).detector == "one"


def test_a_decision_without_perturbations_is_written_as_before_and_an_older_one_is_read(empty: Path) -> None:
    found = chosen({"one": 0.9, "other": 0.5}, [])
    write_recommendation(Path("decision.json"), found)
    content = json.loads(Path("decision.json").read_text())
    assert set(content) == {"detector", "choice", "uses"} and set(content["choice"]) == {"detector", "value", "metric", "beneath"}
    assert read_recommendation(Path()) == found


def test_a_missing_prompt_is_an_error(empty: Path) -> None:
    recommendation = decided([episode("a", "class-specific", 1)], [])
    image = recommendation.uses[0].prompts[0].image
    Path(image).unlink()
    with pytest.raises(BadInput, match=rf"{image}: this prompt does not exist"):
        recommend([], [], [episode("a", "class-specific", 1)], {"one": [Scored(0, np.zeros(4, np.float32), None)]}, PromotionSettings(), [])


def test_a_name_is_a_category_a_target_or_both(empty: Path) -> None:
    episodes = [episode(target, "class-specific", 1, category=category) for target, category in (("a", "cup"), ("b", "cup"), ("b", "pan"))]
    decision = decided(episodes, [])
    found = {name: decision.find(name) for name in ("a/cup", "b/cup", "pan", "a", "cup", "b", "other", None)}
    assert {name: use.name if use else None for name, use in found.items()} == {
        "a/cup": "a/cup", "b/cup": "b/cup", "pan": "b/pan", "a": "a/cup", "cup": None, "b": None, "other": None, None: None,
    }  # fmt: skip


def metric(detector: str, mean: float, name: str = "image_auroc") -> MetricRow:
    return MetricRow("a", "", detector, "class-specific", 1, name, mean, 0.0, mean - 0.02, mean + 0.02, 1, 4)


def test_the_advice_follows_the_decision_and_names_a_detector_that_is_clearly_better_on_one_target(empty: Path) -> None:
    recommendation = decided([episode("a", "class-specific", 1)], [draw("a", "class-specific", 1, 0.9)])
    metrics = [metric("one", 0.9), metric("one", 0.7, "pixel_aupro"), metric("other", 0.97)]
    operating = [
        OperatingRow("a", "", name, "class-specific", shots, kind, 0.01, 0.5, 0.1, 0.0, 0.2, 10)
        for name in ("one", "other")
        for shots in (1, 4)
        for kind in ("", "good", "zig", "hole")
    ]
    [advice] = advice_of(recommendation, metrics, operating)
    assert advice.what == "one with 1 normal picture" and advice.how_good == "Image AUROC 90.0 % (88.0 to 92.0), AUPRO 70.0 %."
    assert list(advice.kinds) == ["good", "hole", "zig", ""] and advice.kinds["good"]["other"].shots == 1
    assert advice.threshold == "Threshold 0.300005, target false-alarm rate 25 %."
    assert "Missed defects: 0 of 1 (true rate 0 to 98 of 100; limit 10)" in advice.verdict.reason
    assert advice.command("line-3") == "changepair predict --model line-3 part.png"
    for low, told in ((0.01, True), (-0.01, False)):
        compared = [ComparisonRow("a", "class-specific", 1, "image_auroc", "one", "other", -0.07, -0.1, -low, 0.01, 4)]
        steps = next_steps(advice, "line-3", metrics, compared, [])
        assert any("changepair predict --model line-3/other --prompt normal.png part.png" in step for step in steps) == told
    assert "Add normal test pictures. 3 set the threshold now; a false-alarm rate of 1 of 100 needs 99." in steps


def test_a_detector_with_a_text_encoder_is_used_without_a_prompt_as_it_was_scored(here: Path) -> None:
    """WinCLIP at 0 shots: words alone, of the category that --category names."""
    encoder = {"library": "open_clip", "name": make_clip(Path("clip").absolute()), "weights": "folder"}
    own = WinCLIPSettings(EncoderSettings(**encoder), resolution=64)  # type: ignore[arg-type]
    files = EpisodeFiles.of(Path("data/episodes"), "words")
    settings = SamplingSettings(shots=(0,), seeds=(0,), protocols=("class-specific",))
    sample(settings, Use((), ("parts",)), manifests=Path("data/manifests"), files=files)
    detector = create_detector(own, build_encoder(own.encoder, 64)).eval()
    scores = scored([Contender("winclip", detector, 64, None, ScoresFolder(Path("work")))], files, Path("data/scores/words"))
    results = results_of(measure(scores, files, EvaluationSettings(resolution=64)), protocols_of(files.episodes))
    items = {name: list(read_scored(place)) for name, place in scores.items()}
    recommendation = recommend(results.draws, results.shared, read_episodes(files.episodes), items, PromotionSettings(), [])
    in_use = Path("data/models/line-3/in-use")
    write_recommendation(in_use / DECISION_NAME, recommendation)
    asked = {"winclip": {"encoder": encoder, "resolution": 64}}
    (in_use / "settings.json").write_text(json.dumps({"detectors": asked, "evaluation": {}, "code": {}}))
    for use in recommendation.uses:
        assert (use.shots, use.prompts) == (0, ()) and use.threshold is not None
        answer = predict("--model", "line-3", "--category", use.category, "--format", "csv", Path("parts", use.category, "test/good"))
        printed = sorted(float(row["score"]) for row in csv.DictReader(io.StringIO(answer.stdout)))
        assert printed == pytest.approx(use.threshold.normals, abs=1.1 * TOLERANCE) and f"{use.threshold.value:.6f}" in answer.stdout
    word = predict("--model", "line-3", "--category", "bottle", "--format", "csv", "fresh/fine/000.png")
    assert "'bottle' is not a category of its targets, so no threshold applies" in word.stderr and word.stdout.splitlines()[1].endswith(
        ",,"
    )


def test_a_model_that_was_fetched_from_another_project_scores_as_there(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `dvc get <repository> data/models/line-3/in-use`."""
    prompt, picture = Path("fresh/fine/001.png").absolute(), Path("fresh/fine/000.png").absolute()
    there = predict("--model", "line-3", "--category", "fine", "--format", "csv", picture)
    with_own = predict("--model", "line-3", "--prompt", prompt, "--format", "csv", picture)
    fetched = shutil.copytree("data/models/line-3/in-use", tmp_path / "elsewhere" / "fetched")
    beside = predict("--model", fetched, "--category", "fine", "--format", "csv", picture)
    assert beside.stdout == there.stdout and beside.stdout.splitlines()[1].count(",") == 3  # its prompts are here too
    monkeypatch.chdir(tmp_path / "elsewhere")
    undecided = shutil.copytree("fetched", Path("undecided"))  # as an older version wrote it
    (undecided / DECISION_NAME).unlink()
    assert predict("--model", "undecided", "--prompt", prompt, "--format", "csv", picture).stdout == with_own.stdout
    assert predict("--model", "fetched", "--prompt", prompt, "--format", "csv", picture).stdout == with_own.stdout
    without = predict("--model", "fetched", "--category", "fine", picture)
    assert without.returncode == 2 and "prompt of fetched cannot be read" in without.stderr and without.stderr.count("\n") == 2


def test_a_fetched_model_reads_nothing_but_its_folder(here: Path) -> None:
    in_use = Path("data/models/line-3/in-use").rename("fetched")
    for encoder, why in (
        ({"library": "open_clip", "name": "local-dir:/", "weights": "folder"}, "encoder local-dir:/: kits and model folders may only name"),
        ({"library": "open_clip", "name": "hf-hub:a/b", "weights": "hub"}, "encoder hf-hub:a/b: kits and model folders may only name"),
        ({"weights": "/etc/weights.pt"}, "needs /etc/weights.pt, which is not in this folder"),
    ):
        asked = {"patch-residual": {"encoder": encoder, "resolution": 64}}
        (in_use / "settings.json").write_text(json.dumps({"detectors": asked, "evaluation": {}, "code": {}}))
        answer = predict("--model", "fetched", "--prompt", "fresh/fine/001.png", "fresh/fine/000.png")
        assert answer.returncode == 2 and why in answer.stderr and answer.stderr.count("\n") == 1, answer.stderr
