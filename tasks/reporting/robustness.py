"""Show what detectors flag under perturbations: a table and a chart for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from changepair.tasks.reporting.charts import Drawn, robustness_chart
from changepair.tasks.scoring.results import ALL
from changepair.tasks.scoring.robustness import MOST_FLAGGED, RobustnessRow

Line = tuple[RobustnessRow, Mapping[str, RobustnessRow]]
"""A line of the table: any of its rows, and all of them by perturbation."""


@dataclass(frozen=True)
class RobustnessPart:
    """The section on robustness."""

    perturbations: Sequence[str]
    lines: Sequence[Line]
    """Lines of all detectors at each target's recommended number of shots; at every number, if none is recommended."""
    others: Sequence[Line]
    """Lines at other numbers of shots."""
    charts: Sequence[Drawn]
    """Charts of `lines`, one for each target, at the largest number of shots."""
    most: float = MOST_FLAGGED


def robustness_part(rows: Sequence[RobustnessRow], shots: Mapping[str, int]) -> RobustnessPart | None:
    """Return the section, or None without rows. shots: recommended number of shots by target."""
    overall = [row for row in rows if row.category == ALL]
    if not overall:
        return None
    lines: dict[tuple[str, str, int], dict[str, RobustnessRow]] = {}
    for row in overall:
        lines.setdefault((row.target, row.detector, row.shots), {})[row.perturbation] = row
    measured = {key[0]: {count for target, _detector, count in lines if target == key[0]} for key in lines}
    main = {key for key in lines if shots.get(key[0]) in (key[2], None) or shots[key[0]] not in measured[key[0]]}
    charts = []
    for target in measured:
        drawn = [row for row in overall if row.target == target and (target, row.detector, row.shots) in main]
        most = max(row.shots for row in drawn)
        charts.append(robustness_chart(f"{target}, {most} shot{'' if most == 1 else 's'}", [row for row in drawn if row.shots == most]))
    shown, others = (
        [(next(iter(cells.values())), cells) for key, cells in lines.items() if (key in main) == wanted] for wanted in (True, False)
    )
    return RobustnessPart(list(dict.fromkeys(row.perturbation for row in overall)), shown, others, charts)
