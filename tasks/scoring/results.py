"""Define the files of an evaluation, and combine the metrics of episodes.

    data/evaluation/<pipeline>/
      metrics.json      {target: {detector: {metric: mean}}}, of the first protocol at the fewest shots: DVC compares these
      metrics.csv       one row for each target, category (empty: over all), detector, protocol, shots and metric
      comparisons.csv   one row for each pair of detectors, measured on the same pictures
      draws.parquet     the bootstrap draws behind metrics.csv, which later models are compared with

Metrics are fractions.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_csv, write_text
from changepair.tasks.common.rows import Int32, read_rows, write_rows
from changepair.tasks.common.texts import csv_rows
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.metrics import METRICS
from changepair.tasks.scoring.spread import DRAWS, Draws, difference, interval

MADE_BY = "metrics"
METRICS_NAME, TABLE_NAME, COMPARISONS_NAME = "metrics.json", "metrics.csv", "comparisons.csv"
DRAWS_NAME, DECISION_NAME, OPERATING_NAME, CURVES_NAME = "draws.parquet", "decision.json", "operating.csv", "curves"
ROBUSTNESS_NAME = "robustness.csv"
HEADLINES = ("image_auroc", "pixel_aupro")  # metrics in metrics.json
ALL = ""  # category of a row over all categories
Row = TypeVar("Row")


@dataclass(frozen=True)
class Measure:
    """A metric, as a fraction, and its value in each bootstrap draw."""

    value: float
    draws: Draws


@dataclass(frozen=True)
class Measured:
    """The metrics of one detector on one episode. An undefined metric is absent."""

    detector: str
    episode: Episode
    queries: int
    """Number of queries that the detector scored."""
    metrics: dict[str, Measure]
    shared: dict[str, Measure]
    """Metrics on the queries that every detector scored. They compare detectors."""
    shared_queries: int
    levels: NDArray[np.float64] | None = None
    """Anomalous pixels, normal pixels and shares of regions by level of score, 3xL, for curves."""


@dataclass(frozen=True)
class MetricRow:
    """A row of metrics.csv."""

    target: str
    category: str
    detector: str
    protocol: str
    shots: int
    metric: str
    mean: float
    """Mean over seeds of the mean over categories, a fraction."""
    std: float
    """Standard deviation over seeds, of the population."""
    low: float
    """Lower end of the 95 % interval over pictures; `high` is the upper end."""
    high: float
    seeds: int
    queries: int
    """Number of scored pictures, over all categories."""
    categories: int = 1
    """Number of categories in the mean: those with the metric."""
    of_categories: int = 1
    """Number of all categories."""

    @property
    def over(self) -> str:
        """Describe a mean over some of the categories. Empty for a mean over all."""
        return "" if self.categories == self.of_categories else f"{self.categories} of {self.of_categories} categories"


@dataclass(frozen=True)
class ComparisonRow:
    """A row of comparisons.csv: `detector` minus `other`, on the pictures that both scored."""

    target: str
    protocol: str
    shots: int
    metric: str
    detector: str
    other: str
    difference: float
    """Difference of the metric, a fraction."""
    low: float
    """Lower end of the paired 95 % interval over pictures; `high` is the upper end."""
    high: float
    p: float
    """Two-sided p-value of the paired bootstrap."""
    queries: int
    """Number of pictures."""


@dataclass(frozen=True)
class DrawRow:
    """A row of draws.parquet: a metric over all categories and seeds, with its bootstrap draws."""

    target: str
    detector: str
    protocol: str
    shots: Int32
    metric: str
    episodes: str  # hash of the episodes: see _fingerprint
    value: float
    draws: Annotated[tuple[float, ...], pa.list_(pa.float32(), DRAWS)]


def metric_rows(measured: Sequence[Measured]) -> list[MetricRow]:
    """Return the metrics over all categories and, with several, for each."""
    rows = []
    for (target, detector, protocol, shots), items in _grouped(measured).items():
        categories = list(dict.fromkeys(item.episode.category for item in items))
        for category in [ALL, *categories] if len(categories) > 1 else [ALL]:
            chosen = [item for item in items if category in (ALL, item.episode.category)]
            pictures = sum({item.episode.category: item.queries for item in chosen}.values())
            for metric in METRICS:
                seeds = _by_seed(chosen, metric)
                having = {item.episode.category for item in chosen if metric in item.metrics}
                counts = len(having), len({item.episode.category for item in chosen})
                ends = interval(_mean(seeds).draws) if seeds else None
                if ends is not None:
                    values = [seed.value for seed in seeds]
                    mean, std, low, high = (round(float(number), 6) for number in (np.mean(values), np.std(values), *ends))
                    about = (target, category, detector, protocol, shots, metric)
                    rows.append(MetricRow(*about, mean, std, low, high, len(seeds), pictures, *counts))
    return rows


def comparison_rows(measured: Sequence[Measured]) -> list[ComparisonRow]:
    """Compare every two detectors, wherever both were measured."""
    rows = []
    groups = _grouped(measured)
    for target, protocol, shots in dict.fromkeys((target, protocol, shots) for target, _detector, protocol, shots in groups):
        detectors = [name for of, name, *rest in groups if (of, *rest) == (target, protocol, shots)]
        for names in combinations(detectors, 2):
            pair = [groups[target, name, protocol, shots] for name in names]
            pictures = sum({item.episode.category: item.shared_queries for item in pair[0]}.values())
            for metric in METRICS:
                seeds = [_by_seed(items, metric, shared=True) for items in pair]
                if all(seeds):
                    one, other = _mean(seeds[0]), _mean(seeds[1])
                    estimate = difference(one.value - other.value, one.draws - other.draws)
                    if estimate is not None:
                        value, low, high, p = (round(number, 6) for number in astuple(estimate))
                        rows.append(ComparisonRow(target, protocol, shots, metric, *names, value, low, high, p, pictures))
    return rows


def draw_rows(measured: Sequence[Measured], *, shared: bool = False) -> list[DrawRow]:
    """Return the metrics over all categories and seeds. shared: only the pictures that every detector scored."""
    rows = []
    for about, items in _grouped(measured).items():
        episodes = "" if shared else _fingerprint(items)
        for metric in METRICS:
            seeds = _by_seed(items, metric, shared=shared)
            if seeds:
                mean = _mean(seeds)
                rows.append(DrawRow(*about, metric, episodes, mean.value, tuple(mean.draws)))
    return rows


def headline(rows: Sequence[MetricRow], protocols: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return {target: {detector: {metric: mean}}} for the target's first protocol, at the fewest shots. 0 shots count last."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for target in dict.fromkeys(row.target for row in rows):
        overall = [row for row in rows if row.target == target and row.category == ALL]
        protocol = min((row.protocol for row in overall), key=protocols.index)
        for row in overall:
            shots = [other.shots for other in overall if (other.detector, other.protocol) == (row.detector, protocol)]
            fewest = min(shots, key=lambda count: (count == 0, count)) if shots else None
            if (row.protocol, row.shots) == (protocol, fewest) and row.metric in HEADLINES:
                tree.setdefault(target, {}).setdefault(row.detector, {})[row.metric] = row.mean
    return tree


def table(rows: Sequence[MetricRow]) -> list[dict[str, str]]:
    """Format the metrics over all categories in percent, as mean ± std over seeds. Each target, detector, protocol and shots is a row."""
    lines: dict[tuple[str, str, str, int], dict[str, str]] = {}
    for row in rows:
        if row.category == ALL:
            about = {"target": row.target, "detector": row.detector, "protocol": row.protocol, "shots": str(row.shots)}
            line = lines.setdefault((row.target, row.detector, row.protocol, row.shots), {**about, **dict.fromkeys(METRICS, "")})
            line[row.metric] = f"{100 * row.mean:.1f} ± {100 * row.std:.1f}{f' ({row.over})' if row.over else ''}"
    return list(lines.values())


@dataclass(frozen=True)
class Results:
    """The tables of an evaluation."""

    rows: list[MetricRow]
    comparisons: list[ComparisonRow]
    draws: list[DrawRow]
    shared: list[DrawRow]
    metrics: dict[str, Any]


def results_of(measured: Sequence[Measured], protocols: Sequence[str]) -> Results:
    """Return the tables. protocols: in the order of the settings; metrics.json has the first."""
    rows = metric_rows(measured)
    return Results(rows, comparison_rows(measured), draw_rows(measured), draw_rows(measured, shared=True), headline(rows, protocols))


def write_results(folder: Path, results: Results) -> None:
    write_text(folder / METRICS_NAME, json.dumps(results.metrics, indent=1) + "\n")
    write_csv_rows(folder / TABLE_NAME, MetricRow, results.rows)
    write_csv_rows(folder / COMPARISONS_NAME, ComparisonRow, results.comparisons)
    write_rows(folder / DRAWS_NAME, DrawRow, results.draws)


def read_metrics(file: Path) -> list[MetricRow]:
    return read_csv_rows(file, MetricRow)


def read_comparisons(file: Path) -> list[ComparisonRow]:
    return read_csv_rows(file, ComparisonRow)


def read_draws(file: Path) -> list[DrawRow]:
    return read_rows(file, DrawRow, MADE_BY)


def write_csv_rows(file: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write dataclasses as a CSV. Its columns are their fields."""
    write_csv(file, [field.name for field in fields(cast(Any, kind))], [astuple(cast(Any, row)) for row in rows])


def read_csv_rows(file: Path, kind: type[Row]) -> list[Row]:
    """Read a CSV that `write_csv_rows` wrote. Fields are str, int or float."""
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    types = {field.name: kinds[str(field.type)] for field in fields(cast(Any, kind))}
    rows = []
    for line, row in csv_rows(file, list(types)):
        try:
            rows.append(kind(*(read(row[name]) for name, read in types.items())))
        except ValueError as error:
            raise BadInput(f"{file}: line {line}: {error}; the file is damaged, so rerun the {MADE_BY} stage") from error
    return rows


def _grouped(measured: Sequence[Measured]) -> dict[tuple[str, str, str, int], list[Measured]]:
    groups: dict[tuple[str, str, str, int], list[Measured]] = {}
    for item in measured:
        episode = item.episode
        groups.setdefault((episode.target, item.detector, episode.protocol, episode.shots), []).append(item)
    return groups


def _by_seed(items: Sequence[Measured], metric: str, *, shared: bool = False) -> list[Measure]:
    """Return the metric of each seed, the mean over the categories that have it."""
    seeds: dict[int, list[Measure]] = defaultdict(list)
    for item in items:
        measure = (item.shared if shared else item.metrics).get(metric)
        if measure is not None:
            seeds[item.episode.seed].append(measure)
    return [_mean(categories) for categories in seeds.values()]


def _mean(measures: Sequence[Measure]) -> Measure:
    draws: Draws = np.mean(np.stack([measure.draws for measure in measures]), axis=0, dtype=np.float32)
    return Measure(float(np.mean([measure.value for measure in measures])), draws)


def _fingerprint(items: Sequence[Measured]) -> str:
    """Hash the episodes that a metric was measured on. Equal hashes mean equal pictures and prompts."""
    named = sorted(repr((item.queries, *astuple(item.episode))) for item in items)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]
