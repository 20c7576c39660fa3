"""Says which detector to use on a target, and what it would do there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.ingestion.listing import GOOD
from tasks.scoring.operating import OperatingRow
from tasks.scoring.results import ALL, FigureRow

FIGURE, BESIDE = "image_auroc", "pixel_aupro"
NEAR = 0.01
"""Fewer prompts are advised where they cost no more of the figure than this."""


@dataclass(frozen=True)
class Advice:
    """Of one target, by its first protocol: the detector of the highest image AUROC, with the fewest prompts that come near it."""

    figure: FigureRow
    """Of FIGURE, and says which detector, protocol and shots are advised."""
    beside: FigureRow | None
    """Of BESIDE; None where there are no masks."""
    kinds: Mapping[str, Mapping[str, OperatingRow]]
    """Of every detector with as many prompts, by kind of picture: `good` first, then defects, then all that are anomalous (``)."""

    @property
    def own(self) -> Mapping[str, OperatingRow]:
        """What the advised detector does, by kind of picture; empty where there were too few normal pictures for a threshold."""
        return {kind: rows[self.figure.detector] for kind, rows in self.kinds.items() if self.figure.detector in rows}

    @property
    def detectors(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.kinds.values() for name in rows))


def advice_of(figures: Sequence[FigureRow], operating: Sequence[OperatingRow]) -> list[Advice]:
    """Advises on every target that has the figure."""
    advised = []
    for target in dict.fromkeys(row.target for row in figures):
        of_target = [row for row in figures if row.target == target and row.category == ALL]
        protocol = of_target[0].protocol
        measured = [row for row in of_target if row.protocol == protocol and row.figure == FIGURE]
        if not measured:
            continue
        best = max(measured, key=lambda row: row.mean)
        near = [row for row in measured if row.detector == best.detector and row.mean >= best.mean - NEAR]
        chosen = min(near, key=lambda row: row.shots)
        beside = [row for row in of_target if _about(row) == _about(chosen) and row.figure == BESIDE]
        advised.append(Advice(chosen, beside[0] if beside else None, _kinds(chosen, operating)))
    return advised


def _kinds(chosen: FigureRow, operating: Sequence[OperatingRow]) -> dict[str, dict[str, OperatingRow]]:
    kinds: dict[str, dict[str, OperatingRow]] = {}
    for row in operating:
        if (row.target, row.category, row.protocol, row.shots) == (chosen.target, ALL, chosen.protocol, chosen.shots):
            kinds.setdefault(row.defect, {})[row.detector] = row
    return dict(sorted(kinds.items(), key=lambda item: (item[0] != GOOD, item[0] == "", item[0])))


def _about(row: FigureRow) -> tuple[str, str, int]:
    return row.detector, row.protocol, row.shots
