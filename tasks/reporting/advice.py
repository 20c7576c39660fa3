"""Says which detector to use on a target, and what it would do there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tasks.ingestion.listing import GOOD
from tasks.scoring.operating import RATE, OperatingRow
from tasks.scoring.results import ALL, FigureRow

FIGURE, BESIDE = "image_auroc", "pixel_aupro"
MANY, WIDE = 0.2, 0.1
"""A share of misses, and a width of an interval, that something should be done about."""
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
    def what(self) -> str:
        """Says what to use."""
        return f"{self.figure.detector} with {self.figure.shots} normal picture{'' if self.figure.shots == 1 else 's'}"

    @property
    def how_good(self) -> str:
        """Says its figures, in percent, with their 95 % interval."""
        low, high = (f"{100 * value:.1f}" for value in (self.figure.low, self.figure.high))
        beside = f", AUPRO {100 * self.beside.mean:.1f} %" if self.beside is not None else ""
        return f"Image AUROC {100 * self.figure.mean:.1f} % ({low} to {high}){beside}."

    @property
    def at_the_threshold(self) -> str:
        """Says what it flags and misses at its threshold, in percent, with 95 % intervals."""
        normal, anomalous = self.own.get(GOOD), self.own.get("")
        if normal is None or anomalous is None:
            return "There are too few normal test pictures to set a threshold by."
        return (
            f"At the threshold for {100 * normal.rate:.2g} % false alarms, {normal.threshold:.3f}, it flags {100 * normal.flagged:.1f} % "
            f"of {normal.pictures} normal pictures ({100 * normal.low:.1f} to {100 * normal.high:.1f}) and misses "
            f"{100 * (1 - anomalous.flagged):.1f} % of {anomalous.pictures} anomalous ones "
            f"({100 * (1 - anomalous.high):.1f} to {100 * (1 - anomalous.low):.1f})."
        )

    @property
    def detectors(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.kinds.values() for name in rows))


def next_steps(advice: Advice, figures: Sequence[FigureRow], trained: Collection[str]) -> list[str]:
    """Says what would make the advice surer or the detector better, the most useful first; [] where there is nothing. trained: the
    detectors that were, here."""
    steps, own = [], advice.own
    normal, anomalous = own.get(GOOD), own.get("")
    if normal is not None and normal.rate > RATE:
        needed = 2 * math.ceil(1 / RATE - 1)
        steps.append(
            f"Add normal test pictures: with {normal.pictures} a threshold can promise {100 * normal.rate:.2g} % false alarms and no less; "
            f"for {100 * RATE:g} % it takes {needed}."
        )
    if anomalous is not None and 1 - anomalous.flagged > MANY:
        steps.append(
            f"Look at what is missed below: {100 * (1 - anomalous.flagged):.0f} % at this threshold. More false alarms may be cheaper than "
            "that (changepair predict --calibrate … --false-alarms 0.05)."
        )
    if advice.figure.high - advice.figure.low > WIDE:
        steps.append(
            f"Measure on more pictures: the figure may be anywhere from {100 * advice.figure.low:.0f} to {100 * advice.figure.high:.0f} %."
        )
    alike = [
        row
        for row in figures
        if (row.target, row.category, row.protocol, row.shots) == (advice.figure.target, ALL, *_about(advice.figure)[1:])
    ]
    of_figure = {row.detector: row.mean for row in alike if row.figure == FIGURE}
    free = max((value for name, value in of_figure.items() if name not in trained), default=0.0)
    worse = [name for name, value in of_figure.items() if name in trained and value < free]
    if worse:
        steps.append(f"Spare the training of {', '.join(worse)} here, or train on what is nearer: one that needs no training is better.")
    return steps


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
