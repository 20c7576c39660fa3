"""Describe how to use a pipeline's model on each target: the verdict, the next step and the expected performance."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from changepair.tasks.common.texts import percent
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.prediction.calibration import DECIMALS, needed
from changepair.tasks.reporting.readiness import (
    MOST_FALSE_ALARMS,
    MOST_MISSES,
    Trade,
    Verdict,
    defects_needed,
    trade_of,
    untested,
    verdict_of,
)
from changepair.tasks.scoring.operating import RATE, OperatingRow
from changepair.tasks.scoring.recommendation import NEAR, Recommendation, Use, rates_of, with_prompts
from changepair.tasks.scoring.results import ALL, ComparisonRow, MetricRow

METRIC, SECOND_METRIC = "image_auroc", "pixel_aupro"
ENCODER = "`encoder: dinov2-small`"  # an example of a stronger one
LEAST_SPLIT = 20  # normal test pictures below which the comparison of false alarms on halves is left out
NAMED = 3  # categories that a step names
WIDE = 0.1  # width of an interval of METRIC above which more test pictures are a next step


@dataclass(frozen=True)
class Advice:
    """How to use the recommended detector on one target."""

    target: str
    detector: str
    uses: Sequence[Use]
    """One for each category of the target."""
    several: bool
    """Whether the model has several uses, so that `--category` has to select one."""
    metric: MetricRow | None
    """METRIC of the detector at these shots. None if it is undefined."""
    second_metric: MetricRow | None
    """SECOND_METRIC of the detector at these shots. None without masks."""
    kinds: Mapping[str, Mapping[str, OperatingRow]]
    """Rates of every detector at these shots, by kind of picture: `good`, then each defect, then all anomalous pictures (``)."""
    verdict: Verdict
    trade: Sequence[Trade] = field(default_factory=tuple)
    """Missed defects at higher false-alarm rates. Empty if the scores were not given."""

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
        also = f"AUPRO {100 * self.second_metric.mean:.1f} %" if self.second_metric is not None else ""
        if self.metric is None:
            return f"Image AUROC is undefined here{f'; {also}' if also else ''}."
        low, high = (f"{100 * value:.1f}" for value in (self.metric.low, self.metric.high))
        return f"Image AUROC {100 * self.metric.mean:.1f} % ({low} to {high}){f', {also}' if also else ''}."

    @property
    def threshold(self) -> str:
        """The threshold and its false-alarm rate."""
        known = [use.threshold for use in self.uses if use.threshold is not None]
        if not known:
            return f"No threshold: {self.uses[0].reason}."
        if len(self.uses) == 1:
            return f"Threshold {known[0].value:.{DECIMALS}f}, target false-alarm rate {percent(known[0].false_alarms)} %."
        count = str(len(known)) if len(known) == len(self.uses) else f"{len(known)} of {len(self.uses)}"
        return f"Thresholds of {count} categories, target false-alarm rate {rates_of(known)} %."

    def command(self, pipeline: str, use: Use | None = None) -> str:
        """Return the command that scores a picture with this detector, prompts and threshold. use: None for the first category."""
        chosen = f" --category {shlex.quote((use or self.uses[0]).name)}" if self.several else ""
        prompt = "" if (use or self.uses[0]).prompts or self.shots == 0 else " --prompt normal.png"
        return f"changepair predict --model {pipeline}{prompt or chosen} part.png"

    @property
    def normals(self) -> int:
        """Number of normal test pictures in `kinds`."""
        return max((row.pictures for row in self.kinds.get(GOOD, {}).values()), default=0)

    @property
    def detectors(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.kinds.values() for name in rows))


def next_steps(
    advice: Advice,
    pipeline: str,
    metrics: Sequence[MetricRow],
    comparisons: Sequence[ComparisonRow],
    trained: Collection[str],
    folders: Collection[str] = (),
) -> list[str]:
    """List what to do next; the first step addresses the verdict.

    trained: the detectors that were trained here. folders: the targets that are folders of your own, to which you can add pictures.
    """
    verdict = advice.verdict
    same = [row for row in metrics if row.category == ALL and row.metric == METRIC and _key(row) == _key(advice)]
    values = {row.detector: row.mean for row in same}
    steps = []
    better = _better(advice, pipeline, values, comparisons)
    if verdict.misses is not None and verdict.misses.value > MOST_MISSES:
        steps += [*better, *_rate(advice, pipeline), *_prompts(advice, metrics), *_another(advice, trained)]
        if advice.trade and advice.trade[-1].misses.value > MOST_MISSES:
            steps[0] += f" A higher false-alarm rate is not enough: {advice.trade[-1]}."
    if verdict.misses is None and any(use.threshold is not None for use in advice.uses):
        steps.append("Add anomalous pictures to the target's test pictures.")
    elif missing := untested(advice.uses):
        steps.append(f"Add anomalous test pictures of {', '.join(missing[:NAMED])}{', …' if len(missing) > NAMED else ''}.")
    if any(use.threshold is None for use in advice.uses):
        steps.append(_without(advice.uses))
    normals = _normals(advice, pipeline if advice.target in folders else None)
    if verdict.false_alarms is not None and verdict.false_alarms.high > MOST_FALSE_ALARMS:
        steps += normals
    if verdict.misses is not None and verdict.misses.value <= MOST_MISSES < verdict.misses.high:
        count = defects_needed(verdict.misses.value)
        asked = f"about {count} show" if count is not None else "more may show"
        steps.append(
            f"Add anomalous test pictures: {verdict.anomalous} {'is' if verdict.anomalous == 1 else 'are'} too few; "
            f"{asked} that at most {percent(MOST_MISSES)} of 100 defects are missed."
        )
    if verdict.ready:
        kits = "Write a kit and deploy it" if len(advice.uses) == 1 else "Write a kit for each category and deploy them"
        steps.append(f"{kits}: `{advice.command(pipeline).removesuffix(' part.png')} --write-kit {shlex.quote(advice.target)}`")
    steps += [*better, *normals]
    if advice.metric is not None and advice.metric.high - advice.metric.low > WIDE:
        low, high = 100 * advice.metric.low, 100 * advice.metric.high
        steps.append(f"Add test pictures: the image AUROC may be from {low:.0f} to {high:.0f} %.")
    untrained = max((value for name, value in values.items() if name not in trained), default=0.0)
    worse = [name for name, value in values.items() if name in trained and value < untrained]
    if worse:
        steps.append(f"Skip training {', '.join(worse)}, or train on similar pictures: worse than an untrained detector.")
    return list(dict.fromkeys(steps))


def tied(advice: Advice, metrics: Sequence[MetricRow], comparisons: Sequence[ComparisonRow]) -> str:
    """Say that all detectors are within NEAR of each other in METRIC and no difference is clear. Empty if that is not so."""
    same = [row for row in metrics if row.category == ALL and row.metric == METRIC and _key(row) == _key(advice)]
    values = {row.detector: row.mean for row in same}
    compared = [row for row in comparisons if row.metric == METRIC and _key(row) == _key(advice)]
    everyone = {row.detector for row in metrics if row.target == advice.target}
    if len(values) < 2 or values.keys() != everyone or max(values.values()) - min(values.values()) > NEAR:
        return ""
    if any(row.low > 0 or row.high < 0 for row in compared):
        return ""
    words = "Both detectors separate" if len(values) == 2 else f"All {len(values)} detectors separate"
    return f"{words} these pictures equally well; more pictures are needed to choose between them."


def advice_of(
    recommendation: Recommendation, metrics: Sequence[MetricRow], operating: Sequence[OperatingRow], scores: Path | None = None
) -> list[Advice]:
    """Return the advice for each target. scores: the folder of the recommended detector's scores, from which the trade-off is computed."""
    advised = []
    for target in dict.fromkeys(use.target for use in recommendation.uses):
        uses = recommendation.of(target)
        key = (target, uses[0].protocol, uses[0].shots)
        rows = {row.metric: row for row in metrics if _key(row) == key and (row.category, row.detector) == (ALL, recommendation.detector)}
        kinds: dict[str, dict[str, OperatingRow]] = {}
        for row in operating:
            if _key(row) == key and row.category == ALL:
                kinds.setdefault(row.defect, {})[row.detector] = row
        ordered = dict(sorted(kinds.items(), key=lambda item: (item[0] != GOOD, item[0] == "", item[0])))
        advised.append(
            Advice(
                target,
                recommendation.detector,
                uses,
                len(recommendation.uses) > 1,
                rows.get(METRIC),
                rows.get(SECOND_METRIC),
                ordered,
                verdict_of(uses),
                () if scores is None else trade_of(uses, scores),
            )
        )
    return advised


def _better(advice: Advice, pipeline: str, values: Mapping[str, float], comparisons: Sequence[ComparisonRow]) -> list[str]:
    """Name the best detector that is clearly better on this target and misses no more defects. values: METRIC by detector."""
    missed = {name: 1 - row.flagged for name, row in advice.kinds.get("", {}).items()}
    ours = missed.get(advice.detector, 1.0)
    better = [name for name in values if _clearly_better(name, advice, comparisons) and missed.get(name, 0.0) <= ours]
    if not better:
        return []
    best = max(better, key=lambda name: values[name])
    return [
        f"Try {best} for {advice.target}: its image AUROC there is {100 * values[best]:.1f} %. "
        f"`changepair predict --model {pipeline}/{best} --prompt normal.png part.png`"
    ]


def _rate(advice: Advice, pipeline: str) -> list[str]:
    """Name the lowest false-alarm rate at which no more than MOST_MISSES of the defects are missed."""
    enough = next((trade for trade in advice.trade if trade.misses.value <= MOST_MISSES), None)
    if enough is None:
        return []
    command = advice.command(pipeline).removesuffix(" part.png")
    return [
        f"Decide whether to accept more false alarms: {enough}. `{command} --calibrate normals/ --false-alarms {enough.rate:g} part.png`"
    ]


def _prompts(advice: Advice, metrics: Sequence[MetricRow]) -> list[str]:
    """Ask for more prompts if METRIC still rises by more than NEAR at the most shots."""
    ours = [row for row in metrics if (row.target, row.protocol, row.detector) == (advice.target, advice.protocol, advice.detector)]
    values = {row.shots: row.mean for row in ours if row.metric == METRIC and row.category == ALL}
    fewer = max((shots for shots in values if shots < advice.shots), default=None)
    if advice.shots != max(values, default=None) or fewer is None or values[advice.shots] - values[fewer] <= NEAR:
        return []
    rises = f"from {100 * values[fewer]:.1f} % {with_prompts(fewer)} to {100 * values[advice.shots]:.1f} % with {advice.shots}"
    return [f"Prompt with more normal pictures: raise `sampling.shots`. The image AUROC rises {rises}."]


def _another(advice: Advice, trained: Collection[str]) -> list[str]:
    """Name what changes the scores themselves. A trained detector depends on its training pictures, another one on its encoder."""
    if advice.detector in trained:
        return [f"Train on similar pictures: set `sources` to normal photographs that look like {advice.target}."]
    return [f"Try another encoder: add a patch-residual detector with {ENCODER}."]


def _normals(advice: Advice, pipeline: str | None) -> list[str]:
    """Ask for more normal pictures if a threshold cannot promise RATE. pipeline: None unless the target is a folder of your own."""
    few = [(use.category, use.threshold) for use in advice.uses if use.threshold is not None and use.threshold.false_alarms > RATE]
    if not few:
        return []
    category, threshold = min(few, key=lambda one: len(one[1].normals))
    count, of = len(threshold.normals), f" of {category}" if len(advice.uses) > 1 else ""
    sets = f"{count}{of} {'sets' if count == 1 else 'set'} the threshold now"
    step = f"Add normal test pictures. {sets}; a false-alarm rate of {percent(RATE)} of 100 needs {needed(RATE)}."
    if pipeline is None:
        return [step]
    prompts = (
        "Pictures in `train/good` can be prompts; they do not set it. Without `train/good`, one in four normal pictures is a test picture."
    )
    return [f"{step} {prompts} Then run `changepair retrain {pipeline}`."]


def _without(uses: Sequence[Use]) -> str:
    """Name what a category without a threshold lacks."""
    use = next(use for use in uses if use.threshold is None)
    lacks = f"Add normal test pictures of {use.category}" if use.prompts or use.shots == 0 else "Add class-specific to sampling.protocols"
    return f"{lacks}: {use.reason}."


def _clearly_better(name: str, advice: Advice, comparisons: Sequence[ComparisonRow]) -> bool:
    """Tell whether the 95 % interval of the paired difference to the recommended detector is above 0."""
    for row in comparisons:
        if row.metric == METRIC and _key(row) == _key(advice):
            if (row.detector, row.other) == (name, advice.detector):
                return row.low > 0
            if (row.other, row.detector) == (name, advice.detector):
                return row.high < 0
    return False


def _key(row: MetricRow | ComparisonRow | OperatingRow | Advice) -> tuple[str, str, int]:
    return row.target, row.protocol, row.shots
