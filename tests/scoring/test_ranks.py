"""Mean ranks of detectors over categories."""

from __future__ import annotations

import pytest

from changepair.tasks.scoring.ranks import mean_ranks
from changepair.tasks.scoring.results import ALL, MetricRow


def row(target: str, category: str, detector: str, mean: float, *, shots: int = 1, metric: str = "image_auroc") -> MetricRow:
    return MetricRow(target, category, detector, "class-specific", shots, metric, mean, 0.0, mean, mean, 1, 4)


def test_ranks_average_over_the_categories_of_all_targets() -> None:
    rows = [
        *(row("parts", category, "a", mean) for category, mean in ((ALL, 0.1), ("cap", 0.9), ("gear", 0.8))),
        *(row("parts", category, "b", mean) for category, mean in ((ALL, 0.9), ("cap", 0.7), ("gear", 0.8))),
        *(row("parts", category, "c", mean) for category, mean in ((ALL, 0.5), ("cap", 0.8), ("gear", 0.2))),
        *(row("letters", ALL, detector, mean) for detector, mean in (("a", 0.6), ("b", 0.7), ("c", 0.5))),
        *(row("letters", ALL, detector, 1.0, metric="pixel_auroc") for detector in "abc"),
    ]
    ranks = {name: (mean, count) for _protocol, _shots, name, mean, count in mean_ranks(rows, "image_auroc")}
    assert ranks == {  # cap: a, c, b; gear: a and b, c; letters, whose only row is over all: b, a, c
        "a": (pytest.approx((1 + 1.5 + 2) / 3), 3),
        "b": (pytest.approx((3 + 1.5 + 1) / 3), 3),
        "c": (pytest.approx((2 + 3 + 3) / 3), 3),
    }
    assert [name for _protocol, _shots, name, *_rest in mean_ranks(rows, "image_auroc")] == ["a", "b", "c"]


def test_a_category_that_lacks_a_detector_ranks_nobody() -> None:
    rows = [row("parts", category, name, mean) for category in ("cap", "gear") for name, mean in (("a", 0.9), ("b", 0.7))]
    lacking = [*rows, row("parts", "circuit", "b", 1.0)]
    assert mean_ranks(lacking, "image_auroc") == mean_ranks(rows, "image_auroc")
    assert mean_ranks(lacking, "image_auroc")[0] == ("class-specific", 1, "a", 1.0, 2)


def test_one_category_or_one_detector_has_no_mean_rank() -> None:
    assert mean_ranks([row("parts", ALL, "a", 0.9), row("parts", ALL, "b", 0.8)], "image_auroc") == []
    assert mean_ranks([row("parts", "cap", "a", 0.9), row("parts", "gear", "a", 0.8)], "image_auroc") == []


def test_shots_are_ranked_apart() -> None:
    rows = [
        row("parts", category, name, 0.5 + sign * (shots - 2.5) / 10, shots=shots)
        for shots in (1, 4)
        for category in ("cap", "gear")
        for name, sign in (("a", 1), ("b", -1))
    ]
    assert [(shots, name, mean) for _protocol, shots, name, mean, _count in mean_ranks(rows, "image_auroc")] == [
        *((1, "b", 1.0), (1, "a", 2.0)),
        *((4, "a", 1.0), (4, "b", 2.0)),
    ]
