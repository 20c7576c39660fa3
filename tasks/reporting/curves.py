"""Compute the curves of the metrics as tables, which `dvc plots` and the report draw.

Each curve shows one protocol: the mean over categories and seeds, at equal steps of the x axis. Image curves are exact at these steps. PRO
uses the coarse levels of tasks/scoring/pixels.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from changepair.tasks.common.files import made_anew, write_csv
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.scoring.metrics import PRO_LIMIT, Tally, tally, tally_levels
from changepair.tasks.scoring.results import ALL, Measured, MetricRow

POINTS = 101
BARS = 40
ROC, PR, PRO, HISTOGRAM, SHOTS = "roc", "pr", "pro", "histogram", "shots"


@dataclass(frozen=True)
class Curves:
    """Curves as tables, by name. The first columns are the keys (target, detector, ...), the last two are x and y."""

    tables: dict[str, pd.DataFrame]

    @classmethod
    def read(cls, folder: Path) -> Curves:
        texts = {"target": str, "detector": str}
        names = (ROC, PR, PRO, HISTOGRAM, SHOTS)
        return cls({name: pd.read_csv(folder / f"{name}.csv", dtype=texts, keep_default_na=False) for name in names})

    def write(self, folder: Path) -> None:
        with made_anew(folder) as partial:
            for name, table in self.tables.items():
                rows = ([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in table.itertuples(index=False))
                write_csv(partial / f"{name}.csv", list(table.columns), rows)


def curves_of(measured: Sequence[Measured], scores: pa.Table, metrics: Sequence[MetricRow], protocols: Sequence[str]) -> Curves:
    """Compute the curves. scores: rows of SCORES of all detectors. protocols: in the settings' order; each target's first is drawn."""
    drawn = {
        target: min((item.episode.protocol for item in measured if item.episode.target == target), key=protocols.index)
        for target in dict.fromkeys(item.episode.target for item in measured)
    }
    frame = scores.to_pandas()
    frame = frame[frame["protocol"] == frame["target"].map(drawn)]
    with_levels = [item for item in measured if item.episode.protocol == drawn[item.episode.target] and item.levels is not None]
    overall = [row for row in metrics if row.category == ALL and row.protocol == drawn[row.target]]
    columns = ["target", "detector", "metric", "low", "high", "shots", "mean"]
    by_shots = pd.DataFrame([[getattr(row, name) for name in columns] for row in overall], columns=columns)
    return Curves({**_of_images(frame), PRO: _pro(with_levels), HISTOGRAM: _histograms(frame), SHOTS: by_shots})


def roc(counts: Tally) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return false and true positive rates at all corners of the curve, from (0, 0) to (1, 1)."""
    return _corners(counts, counts.true_positive_rate)


def pro(counts: Tally) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return false positive rates and mean overlaps of regions at all corners of the curve."""
    assert counts.overlap is not None
    return _corners(counts, np.cumsum(counts.overlap) / counts.overlap.sum())


def _corners(counts: Tally, reached: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    before = counts.above / counts.negatives
    x = np.concatenate([[0.0], np.stack([before, counts.false_positive_rate], axis=1).ravel(), [1.0]])
    return x, np.concatenate([[0.0], np.stack([np.append(0.0, reached[:-1]), reached], axis=1).ravel(), [1.0]])


def _of_images(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    grid = np.linspace(0, 1, POINTS)
    rows: dict[str, list[tuple[object, ...]]] = {ROC: [], PR: []}
    for (target, detector, shots), episodes in frame.groupby(["target", "detector", "shots"], sort=False):
        reached: dict[str, list[NDArray[np.floating]]] = {ROC: [], PR: []}
        for _episode, one in episodes.groupby(["category", "seed"], sort=False):
            values, anomalous = one["score"].to_numpy(), one["label"].to_numpy() == ANOMALOUS
            counts = tally(values[anomalous], np.sort(values[~anomalous]))
            if counts is not None:
                reached[ROC].append(_interpolated(grid, *roc(counts)))
                # The precision at a recall is the precision at the first threshold that reaches it.
                place = np.searchsorted(counts.true_positive_rate, grid - 1e-12)
                reached[PR].append(counts.precision[np.minimum(place, len(counts.precision) - 1)])
        for name, curves in reached.items():
            rows[name] += _rows((target, detector, shots), grid, curves)
    axes = {ROC: ["false_positive_rate", "true_positive_rate"], PR: ["recall", "precision"]}
    return {name: pd.DataFrame(rows[name], columns=["target", "detector", "shots", *axes[name]]) for name in rows}


def _pro(measured: Sequence[Measured]) -> pd.DataFrame:
    grid = np.linspace(0, PRO_LIMIT, POINTS)
    reached: dict[tuple[str, str, int], list[NDArray[np.floating]]] = {}
    for item in measured:
        levels = cast(NDArray[np.floating], item.levels)
        if levels[0].any() and levels[1].any():
            curve = _interpolated(grid, *pro(tally_levels(*levels)))
            reached.setdefault((item.episode.target, item.detector, item.episode.shots), []).append(curve)
    rows = [row for key, curves in reached.items() for row in _rows(key, grid, curves)]
    return pd.DataFrame(rows, columns=["target", "detector", "shots", "false_positive_rate", "overlap"])


def _histograms(frame: pd.DataFrame) -> pd.DataFrame:
    """Return histograms of the scores of normal and anomalous pictures, at the most shots, over all categories and seeds."""
    rows = []
    for (target, detector), all_shots in frame.groupby(["target", "detector"], sort=False):
        chosen = all_shots[all_shots["shots"] == all_shots["shots"].max()]
        edges = np.linspace(chosen["score"].min(), chosen["score"].max(), BARS + 1)
        edges[-1] = np.nextafter(edges[-1], np.inf)
        for label, of_label in chosen.groupby("label"):
            share = np.histogram(of_label["score"], edges)[0] / len(of_label)
            title = "anomalous" if label == ANOMALOUS else "normal"
            rows += [(target, detector, title, *point) for point in zip((edges[:-1] + edges[1:]) / 2, share, strict=True)]
    return pd.DataFrame(rows, columns=["target", "detector", "label", "score", "share"])


def _interpolated(grid: NDArray[np.floating], x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """Interpolate y at the grid. A vertical part of the curve counts at its upper end."""
    place = np.minimum(np.searchsorted(x, grid, "right") - 1, len(x) - 2)
    width = x[place + 1] - x[place]
    along = np.where(width > 0, (grid - x[place]) / np.maximum(width, 1e-300), 1.0)
    return cast(NDArray[np.floating], y[place] + along * (y[place + 1] - y[place]))


def _rows(about: tuple[object, ...], grid: NDArray[np.floating], curves: Sequence[NDArray[np.floating]]) -> Iterable[tuple[object, ...]]:
    return [(*about, float(x), float(y)) for x, y in zip(grid, np.mean(curves, axis=0), strict=True)] if curves else []
