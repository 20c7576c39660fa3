"""Draw the curves as SVG with a transparent background, in colours that suit light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from changepair.tasks.reporting.curves import HISTOGRAM, PR, PRO, ROC, SHOTS, Curves
from changepair.tasks.scoring.metrics import METRICS, PRO_LIMIT, heading
from changepair.tasks.scoring.robustness import MOST_FLAGGED, RobustnessRow

matplotlib.use("agg")
SIZE = (3.4, 3.0)  # inches
MARK, ENTRY = 0.1, 0.17  # inches of height for each mark of a perturbation, and for each entry of a legend
NORMAL, ANOMALOUS = "#3a7bd5", "#e2602d"
SERIES = ("#3a7bd5", "#e2602d", "#2a9d6f", "#a55bd0", "#c9a227")
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), "#8a8a8a"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "font.size": 9,
    "svg.hashsalt": "changepair",  # so that the same chart has the same bytes
    "svg.fonttype": "none",  # keeps text selectable
    "font.family": "sans-serif",
}

Drawn = tuple[str, bytes]  # what a chart shows, and its SVG


def charts_of(curves: Curves, target: str) -> list[tuple[str, list[Drawn]]]:
    """Draw a target's charts by kind: ROC, PR, PRO, score histograms, and metrics by shots. Empty charts are left out."""
    charts: list[tuple[str, list[Drawn]]] = []
    for title, name, draw in (
        ("ROC curve, images", ROC, _lines("false positive rate", "true positive rate", 1.0)),
        ("Precision-recall curve, images", PR, _lines("recall", "precision", 1.0)),
        ("Per-region overlap (PRO)", PRO, _lines("false positive rate", "mean overlap", PRO_LIMIT)),
        ("Image scores at the most shots", HISTOGRAM, _bars),
    ):
        table = curves.tables[name]
        chosen = table[table["target"] == target]
        drawn = [(str(detector), _svg(str(detector), draw, rows)) for detector, rows in chosen.groupby("detector", sort=False)]
        if drawn:
            charts.append((title, drawn))
    table = curves.tables[SHOTS]
    chosen = table[table["target"] == target]
    present = [metric for metric in METRICS if (chosen["metric"] == metric).any()]
    if chosen["shots"].nunique() < 2:
        return charts
    by_shots = [(heading(name), _svg(heading(name), _by_shots, chosen[chosen["metric"] == name])) for name in present]
    return [*charts, ("Metrics by shots, with 95 % intervals over pictures", by_shots)]


def training_chart(title: str, log: Path) -> Drawn:
    """Draw the loss of a training log over its steps, and the held-out loss, if any."""
    return title, _svg(title, _training, pd.read_csv(log))


def robustness_chart(title: str, rows: Sequence[RobustnessRow]) -> Drawn:
    """Draw the share of perturbed normal pictures that each detector flags, with its 95 % interval, by perturbation."""
    table = pd.DataFrame([vars(row) for row in rows])
    perturbations, detectors = (table[column].nunique() for column in ("perturbation", "detector"))
    return title, _svg(title, _robustness, table, 0.9 + max(0.3, MARK * detectors) * perturbations + ENTRY * (detectors + 2))


def _svg(title: str, draw: Callable[[Axes, pd.DataFrame], None], rows: pd.DataFrame, height: float | None = None) -> bytes:
    """Draw a chart. height: in inches, of a chart whose legend is below it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], height or SIZE[1]), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, rows)
        axes.set_title(title)
        if height is not None:
            figure.legend(loc="outside lower center")
        elif axes.get_legend_handles_labels()[0]:
            axes.legend()
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _lines(x: str, y: str, limit: float) -> Callable[[Axes, pd.DataFrame], None]:
    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        levels = sorted(rows["shots"].unique().tolist())
        for shots, colour in zip(levels, colormaps["plasma"](np.linspace(0.75, 0.25, len(levels))), strict=True):
            points = rows[rows["shots"] == shots].iloc[:, -2:].to_numpy()
            axes.plot(points[:, 0], points[:, 1], color=tuple(colour), linewidth=1.4, label=f"{shots} shot{'s' * (shots != 1)}")
        axes.set(xlabel=x, ylabel=y, xlim=(0, limit), ylim=(0, 1.02))

    return draw


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    for label, colour in (("normal", NORMAL), ("anomalous", ANOMALOUS)):
        chosen = rows[rows["label"] == label]
        width = (chosen["score"].max() - chosen["score"].min()) / max(len(chosen) - 1, 1)
        axes.bar(chosen["score"], 100 * chosen["share"], width=width, color=colour, alpha=0.55, label=label)
    axes.set(xlabel="image score", ylabel="pictures of this label, %")


def _by_shots(axes: Axes, rows: pd.DataFrame) -> None:
    shots = sorted(rows["shots"].unique().tolist())
    for number, (detector, chosen) in enumerate(rows.groupby("detector", sort=False)):
        chosen, colour = chosen.sort_values("shots"), SERIES[number % len(SERIES)]
        x = [shots.index(count) for count in chosen["shots"]]
        axes.plot(x, 100 * chosen["mean"], marker="o", markersize=3.5, color=colour, label=str(detector), clip_on=False)
        axes.fill_between(x, 100 * chosen["low"], 100 * chosen["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="shots", ylabel="%", xticks=range(len(shots)), xticklabels=[str(count) for count in shots])
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))


def _robustness(axes: Axes, rows: pd.DataFrame) -> None:
    names, detectors = (list(dict.fromkeys(rows[column])) for column in ("perturbation", "detector"))
    for number, detector in enumerate(detectors):
        own = rows[rows["detector"] == detector]
        places = [names.index(name) + (number - (len(detectors) - 1) / 2) * 0.7 / len(detectors) for name in own["perturbation"]]
        ends = [100 * (own["flagged"] - own["low"]), 100 * (own["high"] - own["flagged"])]
        colour = SERIES[number % len(SERIES)]
        axes.errorbar(
            100 * own["flagged"], places, xerr=ends, fmt="o", markersize=3.5, elinewidth=1, color=colour, label=str(detector), clip_on=False
        )
    axes.axvline(100 * rows["rate"].mean(), color=STYLE["text.color"], linewidth=1, linestyle="--", label="target false-alarm rate")
    axes.axvline(100 * MOST_FLAGGED, color=STYLE["text.color"], linewidth=1, linestyle=":", label=f"{100 * MOST_FLAGGED:g} %")
    axes.set(xlabel="normal pictures flagged, %", xlim=(0, 100), yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _training(axes: Axes, rows: pd.DataFrame) -> None:
    axes.plot(rows["step"], rows["loss"], color=SERIES[0], linewidth=1.2, label="loss")
    held_out = rows.dropna(subset=["held_out_loss"]) if "held_out_loss" in rows else rows[:0]
    if len(held_out):
        axes.plot(held_out["step"], held_out["held_out_loss"], color=SERIES[1], marker="o", markersize=3, label="held-out loss")
    axes.set(xlabel="step", ylim=(0, None))
