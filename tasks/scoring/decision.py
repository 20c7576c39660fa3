"""Decide whether a retrained model may replace the current model. Both are compared on the same episodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from changepair.tasks.common.bounds import STRICT, Between
from changepair.tasks.scoring.metrics import MetricName, heading
from changepair.tasks.scoring.results import DrawRow
from changepair.tasks.scoring.spread import Draws, difference

Key = tuple[str, str, int]  # target, protocol and shots


@dataclass(frozen=True)
class PromotionSettings:
    """Settings of the gate and of the choice of the recommended detector."""

    __pydantic_config__ = STRICT

    metric: MetricName = "image_auroc"
    """Metric that is compared, one of the seven. It is averaged over targets, protocols and shots."""
    tolerance: Annotated[float, Between(0, 1)] = 0.02
    """Allowed loss of the metric, a fraction. The gate compares new minus current: the lower end of the 95 % interval must not be below
    minus this value. With few pictures the interval is wide, so an equally good model may be rejected."""
    automatic: bool = True
    """Whether a model that passes becomes the current model; false to promote by hand with `changepair promote`."""
    detectors: tuple[str, ...] | None = None
    """Detectors that must each pass; null for all trained detectors of the pipeline, or for all if none is trained."""
    floor: bool = True
    """Whether untrained detectors can be recommended too; false to recommend the best trained detector, even if an untrained one is
    better."""


@dataclass(frozen=True)
class Choice:
    """The recommended detector of a pipeline."""

    detector: str
    value: float
    """Its metric, a fraction."""
    metric: str
    """Name of the metric."""
    beneath: tuple[tuple[str, float], ...] = ()
    """Trained detectors that are worse than an untrained detector, with their metrics."""
    instead_of: str = ""
    """The detector with the highest metric, if it was passed over, and why."""

    def __str__(self) -> str:
        beneath = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.beneath)
        also = f"; worse than an untrained detector: {beneath}" if beneath else ""
        passed = f"; instead of {self.instead_of}" if self.instead_of else ""
        return f"{self.detector}, {heading(self.metric)} {100 * self.value:.1f} %{passed}{also}"


@dataclass(frozen=True)
class Compared:
    """One detector: new model minus current model."""

    detector: str
    new: float
    """Metric of the new model, a fraction."""
    in_use: float
    """Metric of the current model."""
    difference: float
    """New minus current."""
    low: float
    """Lower end of the 95 % interval of the difference; `high` is the upper end."""
    high: float
    passes: bool


@dataclass(frozen=True)
class Decision:
    """The result of the gate."""

    promoted: bool
    reason: str
    """The compared metrics in one line."""
    compared: tuple[Compared, ...] = ()


def same_episodes(new: Sequence[DrawRow], in_use: Sequence[DrawRow], metric: str, detectors: Sequence[str]) -> bool:
    """Tell whether both models were measured on the same episodes, for every detector that both have."""
    ours, theirs = (_by_detector(draws, metric, detectors) for draws in (new, in_use))
    return all(
        {key: row.episodes for key, row in ours[name].items()} == {key: row.episodes for key, row in theirs[name].items()}
        for name in ours.keys() & theirs.keys()
    )


def decide(new: Sequence[DrawRow], in_use: Sequence[DrawRow], settings: PromotionSettings, detectors: Sequence[str]) -> Decision:
    """Decide whether the new model is promoted. new, in_use: draws on the same episodes.

    detectors: detectors that must pass. A detector that the current model lacks passes.
    """
    ours, theirs = (_by_detector(draws, settings.metric, detectors) for draws in (new, in_use))
    name = heading(settings.metric)
    missing = [detector for detector in detectors if detector not in ours]
    if missing:
        return Decision(
            False, f"{missing[0]} has no {name} on these targets, so models cannot be compared; choose another promotion.metric"
        )
    compared = []
    for detector in detectors:
        if detector not in theirs:
            continue
        pair = [list(rows[detector].values()) for rows in (ours, theirs)]
        new_value, old_value = (float(np.mean([row.value for row in rows])) for rows in pair)
        new_draws, old_draws = (np.mean([row.draws for row in rows], axis=0) for rows in pair)
        gap: Draws = (new_draws - old_draws).astype(np.float32)
        estimate = difference(new_value - old_value, gap)
        if estimate is None:
            return Decision(False, f"{detector}: {name} has no interval on these pictures; choose another promotion.metric")
        passes = estimate.low >= -settings.tolerance
        compared.append(Compared(detector, new_value, old_value, estimate.value, estimate.low, estimate.high, passes))
    failed = [item for item in compared if not item.passes]
    reasons = "; ".join(_told(item, name) for item in failed or compared) or "the current model has none of these detectors"
    limit = f"{100 * settings.tolerance:g} points"
    verdict = "it may be worse" if failed else "not worse"
    return Decision(not failed, f"{reasons}: {verdict} by more than {limit}", tuple(compared))


def choose(draws: Sequence[DrawRow], settings: PromotionSettings, trained: Collection[str]) -> Choice | None:
    """Choose the detector with the highest metric. Return None if no detector has the metric. Parameters are those of `choices`."""
    return next(iter(choices(draws, settings, trained)), None)


def choices(draws: Sequence[DrawRow], settings: PromotionSettings, trained: Collection[str]) -> list[Choice]:
    """List the detector with the highest metric, then those that are not significantly worse, the better ones first.

    The metric is averaged over the targets, protocols and shots that all detectors have; without any, over each detector's own, and then no
    other detector is listed. A detector is not significantly worse if the 95 % interval of the paired difference includes 0. trained: the
    detectors that were trained. Returns [] if no detector has the metric.
    """
    rows = _by_detector(draws, settings.metric, {row.detector for row in draws})
    if not rows:
        return []
    common = set.intersection(*(set(of_one) for of_one in rows.values()))
    values = {
        name: float(np.mean([row.value for key, row in of_one.items() if not common or key in common])) for name, of_one in rows.items()
    }
    free = {name: value for name, value in values.items() if name not in trained}
    able = values if settings.floor or not values.keys() - free.keys() else {name: values[name] for name in values if name in trained}
    best = max(able, key=lambda name: able[name])
    beneath = [(name, value) for name, value in values.items() if name in trained and value < max(free.values(), default=0.0)]
    worse = {name for name, _value in beneath} if settings.floor else set()
    close = [name for name in able if name != best and name not in worse and _close(rows[best], rows[name], common)]
    ranked = [best, *sorted(close, key=lambda name: -able[name])]
    return [Choice(name, values[name], settings.metric, tuple(beneath)) for name in ranked]


def _close(best: Mapping[Key, DrawRow], other: Mapping[Key, DrawRow], common: set[Key]) -> bool:
    """Tell whether the difference of two detectors may be 0, on the same pictures. False without draws."""
    if not common or not all(rows[key].draws for rows in (best, other) for key in common):
        return False
    values, draws = (
        np.mean([np.subtract(getattr(best[key], name), getattr(other[key], name)) for key in sorted(common)], axis=0)
        for name in ("value", "draws")
    )
    estimate = difference(float(values), draws.astype(np.float32))
    return estimate is not None and estimate.low <= 0


def _told(item: Compared, name: str) -> str:
    return (
        f"{item.detector} {name} {100 * item.new:.1f} % against {100 * item.in_use:.1f} %, "
        f"{100 * item.difference:+.1f} ({100 * item.low:+.1f} to {100 * item.high:+.1f}) points"
    )


def _by_detector(draws: Sequence[DrawRow], metric: str, detectors: Collection[str]) -> dict[str, dict[Key, DrawRow]]:
    """Group the rows of one metric: detector -> (target, protocol, shots) -> row."""
    estimate: dict[str, dict[Key, DrawRow]] = {}
    for row in draws:
        if row.metric == metric and row.detector in detectors:
            estimate.setdefault(row.detector, {})[row.target, row.protocol, row.shots] = row
    return {name: dict(sorted(rows.items())) for name, rows in estimate.items()}
