"""Rank detectors within each category, which compares them over categories of different difficulty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from scipy.stats import rankdata

from changepair.tasks.scoring.results import ALL, MetricRow


def mean_ranks(rows: Sequence[MetricRow], metric: str) -> list[tuple[str, int, str, float, int]]:
    """Return each protocol, number of shots, detector, mean rank over the categories of all targets, and number of categories.

    Rank 1 has the highest metric, and ties share their mean rank. A category that lacks the metric of a detector is left out for all.
    """
    divided = {row.target for row in rows if row.category != ALL}  # with one category, the row over all is its only one
    groups: dict[tuple[str, int], dict[tuple[str, str], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.metric == metric and (row.category != ALL or row.target not in divided):
            groups[row.protocol, row.shots][row.target, row.category][row.detector] = row.mean
    lines = []
    for (protocol, shots), cells in groups.items():
        names = list(dict.fromkeys(name for cell in cells.values() for name in cell))
        whole = [rankdata([-cell[name] for name in names]) for cell in cells.values() if len(cell) == len(names)]
        if len(whole) > 1 and len(names) > 1:
            means = [sum(ranks) / len(whole) for ranks in zip(*whole, strict=True)]
            lines += sorted(
                ((protocol, shots, name, float(mean), len(whole)) for name, mean in zip(names, means, strict=True)),
                key=lambda line: line[3],
            )
    return lines
