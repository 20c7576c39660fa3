"""What a threshold that normal pictures set would do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.calibration import TOLERANCE
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.operating import OperatingRow, binomial_interval, operating_rows, read_operating, write_operating
from changepair.tasks.scoring.scores import Scored


def episode(labels: list[int], seed: int = 0, category: str = "cup") -> Episode:
    queries = tuple(f"{category}/{place}.png" for place in range(len(labels)))
    return Episode("parts", category, "class-specific", 1, seed, ("prompt.png",), queries, tuple(labels))


def rows_of(episodes: list[Episode], scores: list[list[float]], kinds: dict[str, str] | None = None) -> dict[tuple[str, str], OperatingRow]:
    scored = [Scored(number, np.array(values, dtype=np.float32), None) for number, values in enumerate(scores)]
    named = kinds or {image: "hole" for one in episodes for image in one.queries}
    return {(row.category, row.defect): row for row in operating_rows({"detector": scored}, episodes, named)}


@pytest.mark.parametrize(("count", "of"), [(0, 20), (3, 20), (20, 20), (1, 500)])
def test_the_interval_is_clopper_and_pearsons(count: int, of: int) -> None:
    exact = binomtest(count, of).proportion_ci(method="exact")
    assert binomial_interval(count, of) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_each_half_of_the_normal_pictures_is_held_against_the_others_threshold() -> None:
    """By hand: of halves [.1, .3] and [.2, .4] the thresholds are .3 and .4."""
    one = episode([0, 0, 0, 0, ANOMALOUS, ANOMALOUS])
    kinds = dict(zip(one.queries, ["good"] * 4 + ["hole", "scratch"], strict=True))
    rows = rows_of([one], [[0.1, 0.2, 0.3, 0.4, 0.35, 0.5]], kinds)
    assert set(rows) == {("", "good"), ("", ""), ("", "hole"), ("", "scratch")}
    assert {defect: (row.flagged, row.pictures) for (_, defect), row in rows.items()} == {
        "good": (0.25, 4), "": (0.75, 2), "hole": (0.5, 1), "scratch": (1.0, 1),
    }  # fmt: skip
    assert rows["", "good"].rate == pytest.approx(1 / 3, abs=1e-6) and rows["", "good"].threshold == pytest.approx(0.35 + TOLERANCE)


def test_categories_come_together_and_stand_alone_and_seeds_are_averaged() -> None:
    episodes = [episode([0, 0, ANOMALOUS], seed, category) for seed in (0, 1) for category in ("cup", "plate")]
    rows = rows_of(episodes, [[0.1, 0.2, 0.3], [0.1, 0.1, 0.1], [0.3, 0.2, 0.9], [0.1, 0.1, 0.9]])
    assert {(category, defect): row.flagged for (category, defect), row in rows.items() if defect != "hole"} == {
        ("", ""): 0.75, ("", "good"): 0.25, ("cup", ""): 1.0, ("cup", "good"): 0.5, ("plate", ""): 0.5, ("plate", "good"): 0.0,
    }  # fmt: skip
    assert rows["", ""].pictures == 2 and rows["cup", "good"].pictures == 2


def test_a_detector_that_sees_nothing_flags_what_was_promised() -> None:
    """Anomalous pictures that score as normal ones do, 99 in each half: one in a hundred of either is flagged, on average."""
    random, flagged = np.random.default_rng(0), []
    for _ in range(300):
        one = episode([0] * 198 + [ANOMALOUS] * 100)
        rows = rows_of([one], [random.gamma(2.0, 1.0, 298).tolist()])
        flagged.append([rows["", "good"].flagged, rows["", ""].flagged])
    assert np.mean(flagged, axis=0) == pytest.approx(0.01, abs=0.002)


def test_too_few_normal_pictures_set_no_threshold() -> None:
    assert not rows_of([episode([0, ANOMALOUS])], [[0.1, 0.2]])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = list(rows_of([episode([0, 0, ANOMALOUS])], [[0.1, 0.2, 0.3]]).values())
    write_operating(tmp_path / "operating.csv", rows)
    assert read_operating(tmp_path / "operating.csv") == rows
