"""Describe how to use a pipeline's model on each target, and its expected performance."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from changepair.tasks.common.texts import percent
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.prediction.calibration import DECIMALS, needed
from changepair.tasks.scoring.operating import RATE, OperatingRow
from changepair.tasks.scoring.recommendation import Recommendation, Use, found_of, rates_of, with_prompts
from changepair.tasks.scoring.results import ALL, ComparisonRow, MetricRow

METRIC, BESIDE = "image_auroc", "pixel_aupro"
MANY, WIDE = 0.2, 0.1  # share of misses, and width of an interval, above which a next step is listed


@dataclass(frozen=True)
class Advice:
    target: str
    detector: str
    uses: Sequence[Use]  # one for each category of the target
    several: bool  # whether the model has several uses, so --category has to select one
    metric: MetricRow | None  # METRIC of the detector at these shots; None if it is undefined
    beside: MetricRow | None  # BESIDE of the detector at these shots; None without masks
    kinds: Mapping[str, Mapping[str, OperatingRow]]
    """Rates of every detector at these shots, by kind of picture: `good`, then each defect, then all anomalous pictures (``)."""

    @property
    def protocol(self) -> str:
        return self.uses[0].protocol

    @property
    def shots(self) -> int:
        return self.uses[0].shots

    @property
    def what(self) -> str:
        return f"{self.detector} {with_prompts(self.shots)}"

    @property
    def how_good(self) -> str:
        """The metrics in percent, with the 95 % interval of METRIC."""
        also = f"AUPRO {100 * self.beside.mean:.1f} %" if self.beside is not None else ""
        if self.metric is None:
            return f"Image AUROC is undefined here{f'; {also}' if also else ''}."
        low, high = (f"{100 * value:.1f}" for value in (self.metric.low, self.metric.high))
        return f"Image AUROC {100 * self.metric.mean:.1f} % ({low} to {high}){f', {also}' if also else ''}."

    @property
    def at_the_threshold(self) -> str:
        """The threshold, its false alarm rate, and the anomalous pictures that it flags."""
        known = [use.threshold for use in self.uses if use.threshold is not None]
        if not known:
            return f"There is no threshold: {self.uses[0].reason}."
        one = known[0]
        if len(self.uses) == 1:
            words = (
                f"Its threshold is {one.value:.{DECIMALS}f}, for {percent(one.false_alarms)} % false alarms. {len(one.normals)} normal "
                f"test pictures set it; its rate is {percent(one.low)} to {percent(one.high)} % (95 % interval)."
            )
        else:
            categories = f"All {len(known)}" if len(known) == len(self.uses) else f"{len(known)} of {len(self.uses)}"
            words = f"{categories} categories have a threshold, for {rates_of(known)} % false alarms."
        found = found_of(self.uses)
        if found is None:
            return words
        flagged, anomalous, low, high = found
        share = f"{100 * flagged / anomalous:.1f} %, {100 * low:.1f} to {100 * high:.1f}"
        return f"{words} {'It flags' if len(known) == 1 else 'They flag'} {flagged} of {anomalous} anomalous test pictures ({share})."

    def command(self, pipeline: str, use: Use | None = None) -> str:
        """Return the command that scores a picture with this detector, prompts and threshold. use: None for the first category."""
        chosen = f" --category {shlex.quote((use or self.uses[0]).name)}" if self.several else ""
        own = "" if (use or self.uses[0]).prompts or self.shots == 0 else " --prompt normal.png"
        return f"changepair predict --model {pipeline}{own or chosen} part.png"

    @property
    def detectors(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.kinds.values() for name in rows))


def next_steps(
    advice: Advice, pipeline: str, metrics: Sequence[MetricRow], comparisons: Sequence[ComparisonRow], trained: Collection[str]
) -> list[str]:
    """List what would improve the threshold or the detector, the most useful first. trained: the detectors that were trained here."""
    steps = []
    few = [use for use in advice.uses if use.threshold is not None and use.threshold.false_alarms > RATE]
    if few:
        fewest = min(few, key=lambda use: len(use.threshold.normals) if use.threshold is not None else 0)
        assert fewest.threshold is not None
        of = f" of {fewest.category}" if len(advice.uses) > 1 else ""
        steps.append(
            f"Add normal test pictures: {len(fewest.threshold.normals)}{of} cannot promise less than "
            f"{percent(fewest.threshold.false_alarms)} % false alarms; {percent(RATE)} % needs {needed(RATE)}."
        )
    found = found_of(advice.uses)
    if found is not None and 1 - found[0] / found[1] > MANY:
        steps.append(
            f"Look at the missed pictures below: {100 * (1 - found[0] / found[1]):.0f} % are below the threshold. More false alarms may "
            "cost less than that (changepair predict --calibrate … --false-alarms 0.05)."
        )
    if advice.metric is not None and advice.metric.high - advice.metric.low > WIDE:
        low, high = 100 * advice.metric.low, 100 * advice.metric.high
        steps.append(f"Measure on more pictures: the image AUROC may be from {low:.0f} to {high:.0f} %.")
    alike = [row for row in metrics if row.category == ALL and row.metric == METRIC and _about(row) == _about(advice)]
    values = {row.detector: row.mean for row in alike}
    better = [name for name in values if _clearly_better(name, advice, comparisons)]
    if better:
        best = max(better, key=lambda name: values[name])
        steps.append(
            f"On {advice.target} alone {best} is better, with an image AUROC of {100 * values[best]:.1f} %: "
            f"changepair predict --model {pipeline}/{best} --prompt normal.png part.png."
        )
    free = max((value for name, value in values.items() if name not in trained), default=0.0)
    worse = [name for name, value in values.items() if name in trained and value < free]
    if worse:
        steps.append(f"Leave out the training of {', '.join(worse)}, or train on a nearer domain: a detector without training is better.")
    return steps


def advice_of(recommendation: Recommendation, metrics: Sequence[MetricRow], operating: Sequence[OperatingRow]) -> list[Advice]:
    """Return the advice for each target of the recommendation."""
    advised = []
    for target in dict.fromkeys(use.target for use in recommendation.uses):
        uses = recommendation.of(target)
        key = (target, uses[0].protocol, uses[0].shots)
        own = {row.metric: row for row in metrics if _about(row) == key and (row.category, row.detector) == (ALL, recommendation.detector)}
        kinds: dict[str, dict[str, OperatingRow]] = {}
        for row in operating:
            if _about(row) == key and row.category == ALL:
                kinds.setdefault(row.defect, {})[row.detector] = row
        ordered = dict(sorted(kinds.items(), key=lambda item: (item[0] != GOOD, item[0] == "", item[0])))
        several = len(recommendation.uses) > 1
        advised.append(Advice(target, recommendation.detector, uses, several, own.get(METRIC), own.get(BESIDE), ordered))
    return advised


def _clearly_better(name: str, advice: Advice, comparisons: Sequence[ComparisonRow]) -> bool:
    """Tell whether the 95 % interval of the paired difference to the recommended detector is above 0."""
    for row in comparisons:
        if row.metric == METRIC and _about(row) == _about(advice):
            if (row.detector, row.other) == (name, advice.detector):
                return row.low > 0
            if (row.other, row.detector) == (name, advice.detector):
                return row.high < 0
    return False


def _about(row: MetricRow | ComparisonRow | OperatingRow | Advice) -> tuple[str, str, int]:
    return row.target, row.protocol, row.shots
