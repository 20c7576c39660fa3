"""The verdict of a target: ready or not, in counts per hundred parts, and the next step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import save
from scipy.stats import beta, binomtest

from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.calibration import TOLERANCE
from changepair.tasks.reporting.advice import Advice, advice_of, next_steps, tied
from changepair.tasks.reporting.readiness import MOST_FALSE_ALARMS, MOST_MISSES, RATES, verdict_of
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.recommendation import Recommendation, Use, recommend
from changepair.tasks.scoring.results import ComparisonRow, DrawRow, MetricRow
from changepair.tasks.scoring.scores import Group, Scored, ScoresFolder

DEFECTS = 50


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def episodes_of(normals: int, defects: int, categories: tuple[str, ...] = ("cup",)) -> list[Episode]:
    """Two seeds of each category, which prompt with a real file."""
    save(np.zeros((2, 2), np.uint8), Path("prompt.png"))
    labels = (0,) * normals + (ANOMALOUS,) * defects
    return [
        Episode("parts", category, "class-specific", 1, seed, ("prompt.png",), tuple(f"{category}/{n}" for n in range(len(labels))), labels)
        for category in categories
        for seed in (0, 1)
    ]


def decided(episodes: list[Episode], scores: list[list[float]], folder: Path = Path("scores")) -> tuple[Recommendation, Path]:
    """Decide from scores, and write them as the score stage does."""
    values = [np.array(one, dtype=np.float32) for one in scores]
    items = {"one": [Scored(number, own, None) for number, own in enumerate(values)]}
    work = ScoresFolder(Path("work"))
    groups = [Group(number, {number: one}, len(one.queries), ()) for number, one in enumerate(episodes)]
    for group, own in zip(groups, values, strict=True):
        work.add(group, 0, {group.number: own}, {})
    work.finish(groups, "one", folder)
    draws = [DrawRow("parts", "one", "class-specific", 1, "image_auroc", "", 0.9, ())]
    return recommend(draws, draws, episodes, items, PromotionSettings(), []), folder


def advised(normals: list[float], defects: list[float]) -> Advice:
    episodes = episodes_of(len(normals), len(defects))
    recommendation, folder = decided(episodes, [[*normals, *defects]] * len(episodes))
    [advice] = advice_of(recommendation, [], [], folder)
    return advice


def spread(count: int) -> list[float]:
    """Normal scores, evenly spread below 0.4."""
    return [0.4 * number / count for number in range(count)]


def step_of(advice: Advice, trained: tuple[str, ...] = ()) -> str:
    return next_steps(advice, "mine", [], [], trained)[0]


def test_a_target_whose_defects_are_found_is_ready() -> None:
    advice = advised(spread(99), [0.9] * DEFECTS)
    assert advice.verdict.ready and advice.verdict.headline == "Ready: 0 of 100 defects pass, 1 of 100 normal parts is a false alarm"
    assert advice.verdict.reason == (
        "Missed defects: 0 of 50 (true rate 0 to 7.1 of 100; limit 10). "
        "False alarms: 1 of 100 normal parts (0.026 to 3.7; limit 5). The threshold is set by 99 normal pictures."
    )
    assert step_of(advice) == "Write a kit and deploy it: `changepair predict --model mine --write-kit parts`"


def test_a_target_whose_defects_pass_is_not_ready_and_the_next_step_follows_the_scores() -> None:
    hidden = advised(spread(99), [0.1] * 47 + [0.9] * 3)
    assert not hidden.verdict.ready and hidden.verdict.headline == "Not ready: 94 of 100 defects pass"
    assert "Missed defects: 47 of 50 (true rate 83 to 99 of 100; limit 10)" in hidden.verdict.reason
    assert step_of(hidden).startswith("Try another encoder: ")
    assert step_of(hidden).endswith(
        "A higher false-alarm rate is not enough: at 20 false alarms per 100 normal parts, 94 of 100 defects are missed."
    )
    assert step_of(hidden, ("one",)).startswith("Train on similar pictures: ")
    close = advised(spread(99), [0.385] * 47 + [0.9] * 3)  # above 96 of the 99 normal pictures
    assert close.verdict.headline == "Not ready: 94 of 100 defects pass"
    assert step_of(close) == (
        "Decide whether to accept more false alarms: at 5 false alarms per 100 normal parts, 0 of 100 defects are missed. "
        "`changepair predict --model mine --calibrate normals/ --false-alarms 0.05 part.png`"
    )


def test_more_prompts_are_the_next_step_while_the_metric_rises() -> None:
    episodes = [replace(one, shots=shots) for one in episodes_of(99, DEFECTS) for shots in (1, 2)]
    draws = [DrawRow("parts", "one", "class-specific", shots, "image_auroc", "", value, ()) for shots, value in ((1, 0.7), (2, 0.8))]
    scores = np.array([*spread(99), *[0.1] * DEFECTS], dtype=np.float32)
    items = {"one": [Scored(number, scores, None) for number in range(len(episodes))]}
    [advice] = advice_of(recommend(draws, draws, episodes, items, PromotionSettings(), []), [], [])
    metrics = [MetricRow(*key(draw), draw.value, 0.0, draw.value - 0.01, draw.value + 0.01, 1, 149) for draw in draws]
    assert advice.shots == 2 and next_steps(advice, "mine", metrics, [], [])[0] == (
        "Prompt with more normal pictures: raise `sampling.shots`. "
        "The image AUROC rises from 70.0 % with 1 normal picture to 80.0 % with 2."
    )
    flat = [replace(row, mean=0.8) for row in metrics]
    assert next_steps(advice, "mine", flat, [], [])[0].startswith("Try another encoder: ")


def key(draw: DrawRow) -> tuple[str, str, str, str, int, str]:
    return draw.target, "", draw.detector, draw.protocol, draw.shots, draw.metric


def test_too_few_pictures_are_not_enough_to_be_ready() -> None:
    few = advised(spread(99), [0.9] * 20)
    assert few.verdict.headline == "Not ready: too few pictures; up to 17 of 100 defects may be missed"
    assert step_of(few) == "Add anomalous test pictures: 20 are too few; about 36 show that at most 10 of 100 defects are missed."
    normals = advised(spread(20), [0.9] * DEFECTS)
    assert normals.verdict.headline == "Not ready: too few pictures; up to 17 of 100 normal parts may be false alarms"
    assert step_of(normals) == "Add normal test pictures. 20 set the threshold now; a false-alarm rate of 1 of 100 needs 99."
    [first, *_others] = next_steps(normals, "mine", [], [], [], folders=["parts"])
    assert first.startswith(step_of(normals)) and first.endswith("Then run `changepair retrain mine`.")
    none = advised(spread(99), [])
    assert none.verdict.headline == "Not ready: no defect was tested" and step_of(none).startswith("Add anomalous pictures")
    alone = advised([], [0.9] * DEFECTS)
    assert alone.verdict.headline == "Not ready: no threshold for cup" and step_of(alone).startswith(
        "Add normal test pictures of cup: all 50"
    )


@pytest.mark.parametrize("normals", [20, 71, 72, 99, 250])
@pytest.mark.parametrize("missed", [0, 1, 2, 30])
@pytest.mark.parametrize("defects", [35, 36, 100])
def test_it_is_ready_if_both_intervals_end_within_the_limits(normals: int, missed: int, defects: int) -> None:
    """The intervals are scipy's."""
    verdict = advised(spread(normals), [0.0] * missed + [0.9] * (defects - missed)).verdict
    rank = math.ceil((normals + 1) * (1 - max(0.01, 1 / (normals + 1))) - 1e-9)
    misses = binomtest(missed, defects).proportion_ci(method="exact")
    alarms = beta(normals + 1 - rank, rank).ppf(0.975)
    assert verdict.misses is not None and verdict.false_alarms is not None
    assert (verdict.misses.low, verdict.misses.high) == pytest.approx((misses.low, misses.high), abs=1e-9)
    assert verdict.false_alarms.high == pytest.approx(alarms)
    assert verdict.ready == (misses.high <= MOST_MISSES and alarms <= MOST_FALSE_ALARMS)
    assert verdict.headline.startswith("Ready: " if verdict.ready else "Not ready: ")


def test_the_counts_agree_with_a_slow_count_from_scores_parquet() -> None:
    """Two categories and seeds, scores that overlap; the first seed counts, because its prompts and thresholds are used."""
    random = np.random.default_rng(0)
    episodes = episodes_of(120, DEFECTS, ("cup", "plate"))
    scores = [[*random.normal(0, 1, 120), *random.normal(2, 1, DEFECTS)] for _one in episodes]
    recommendation, folder = decided(episodes, scores)
    [advice] = advice_of(recommendation, [], [], folder)
    rows = [row for row in pq.read_table(folder / "scores.parquet").to_pylist() if row["seed"] == 0]

    def passed(rate: float) -> float:
        count = 0
        for category in ("cup", "plate"):
            normal = sorted(row["score"] for row in rows if row["category"] == category and row["label"] == 0)
            kept = next(n for n in range(1, 121) if n >= 121 * (1 - rate) - 1e-9)  # normal pictures that are not above the threshold
            threshold = normal[kept - 1] + TOLERANCE
            count += sum(row["score"] <= threshold for row in rows if row["category"] == category and row["label"] == ANOMALOUS)
        return count / (2 * DEFECTS)

    assert advice.verdict.misses is not None and advice.verdict.misses.value == pytest.approx(passed(0.01))
    assert f"Missed defects: {passed(0.01) * 2 * DEFECTS:.0f} of 100 (true rate " in advice.verdict.reason
    assert {trade.rate: trade.misses.value for trade in advice.trade} == {rate: pytest.approx(passed(rate)) for rate in RATES}
    assert 0 < passed(0.2) < passed(0.01) < 1


def test_the_rates_of_the_trade_off_are_those_that_the_pictures_can_promise(empty: Path) -> None:
    assert [trade.rate for trade in advised(spread(19), [0.9] * DEFECTS).trade] == [0.05, 0.1, 0.2]
    recommendation, folder = decided(episodes_of(99, 5), [[*spread(99), *[0.9] * 5]] * 2, empty / "again")
    assert len(advice_of(recommendation, [], [], folder)[0].trade) == len(RATES)
    assert advice_of(recommendation, [], [], empty / "missing")[0].trade == [] == list(advice_of(recommendation, [], [])[0].trade)


def test_detectors_that_cannot_be_told_apart_are_said_to_be_equal() -> None:
    advice = advised(spread(99), [0.9] * DEFECTS)

    def row(detector: str, mean: float) -> MetricRow:
        return MetricRow("parts", "", detector, "class-specific", 1, "image_auroc", mean, 0.0, mean, mean, 1, 4)

    def difference(low: float, high: float) -> ComparisonRow:
        return ComparisonRow("parts", "class-specific", 1, "image_auroc", "one", "two", 0.0, low, high, 0.5, 4)

    equal = [row("one", 1.0), row("two", 0.995), row("three", 0.992)]
    assert tied(advice, equal, [difference(-0.1, 0.1)]) == (
        "All 3 detectors separate these pictures equally well; more pictures are needed to choose between them."
    )
    assert tied(advice, equal[:2], []).startswith("Both detectors separate ")
    for metrics, compared in ((equal[:1], []), ([*equal, row("four", 0.98)], []), (equal, [difference(0.001, 0.01)])):
        assert tied(advice, metrics, compared) == ""


def test_a_category_without_a_threshold_keeps_a_target_from_being_ready() -> None:
    advice = advised(spread(99), [0.9] * DEFECTS)
    [use] = advice.uses
    pooled: Use = replace(use, category="plate", threshold=None, prompts=(), reason="each picture has its own prompts here")
    verdict = verdict_of([use, pooled])
    assert not verdict.ready and verdict.headline == "Not ready: no threshold for plate"
    assert "plate has no threshold: each picture has its own prompts here." in verdict.reason


def test_a_category_without_a_tested_defect_keeps_a_target_from_being_ready() -> None:
    advice = advised(spread(99), [0.9] * DEFECTS)
    [use] = advice.uses
    plate = replace(use, category="plate", anomalous=0, found=0)
    both = replace(advice, uses=(use, plate), verdict=verdict_of([use, plate]))
    assert not both.verdict.ready and both.verdict.headline == "Not ready: no defect of plate was tested"
    assert step_of(both) == "Add anomalous test pictures of plate."
    bowl = replace(plate, category="bowl")
    assert verdict_of([use, plate, bowl]).headline == "Not ready: no defect of 2 categories was tested"


def test_a_share_just_above_a_limit_is_not_rounded_to_the_limit() -> None:
    assert advised(spread(99), [0.9] * 35).verdict.headline == "Not ready: too few pictures; more than 10 of 100 defects may be missed"
    normals = advised(spread(71), [0.9] * DEFECTS).verdict
    assert normals.headline == "Not ready: too few pictures; more than 5 of 100 normal parts may be false alarms"
    assert advised(spread(99), [0.1] * 26 + [0.9] * 224).verdict.headline == "Not ready: more than 10 of 100 defects pass"
