"""Draw the charts of measured numbers, which stand in CSV files next to the pages. docs/pictures.py writes them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from changepair.tasks.common.sheets import PAPER

NUMBERS = Path(__file__).parent / "pages" / "explanation"
GREY_BAR = "#9a9a9a"
COLOURS = ("#3a7bd5", "#e2602d", "#2a9d6f", "#a55bd0", "#c9a227")
CHANCE = 50  # image AUROC in percent of a detector that guesses; bars start there
STYLE: Any = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#{:02x}{:02x}{:02x}".format(*PAPER)),
    **{"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
}


def chart(draw: Callable[[Sequence[Axes]], None], *, axes: int = 1, size: tuple[float, float] = (7.2, 3.2), **options: Any) -> Image.Image:
    """Draw a chart of one or more axes side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        draw(np.atleast_1d(figure.subplots(1, axes, **options)).tolist())
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def numbers(finding: str) -> pd.DataFrame:
    """Read the measured numbers of a finding: quality.csv has them as the page gives them."""
    table = pd.read_csv(NUMBERS / "quality.csv", dtype={"series": str})
    return table[table["finding"] == finding]


def bars(finding: str, names: Mapping[str, str]) -> Image.Image:
    """Draw bars by dataset, one for each series, with the standard deviation over training seeds. names: of the series."""
    table = numbers(finding)

    def draw(axes: Sequence[Axes]) -> None:
        for place, (series, name) in enumerate(names.items()):
            rows = table[table["series"] == series]
            _bars(axes[0], rows, 0.8 / len(names), place - (len(names) - 1) / 2, COLOURS[place], name, "{:.1f}")
        axes[0].set(ylabel="image AUROC, %", ylim=(min(CHANCE, table["mean"].min() - 5), 103))
        axes[0].legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)

    return chart(draw)


def _bars(ax: Axes, rows: pd.DataFrame, width: float, place: float, colour: str, name: str, digits: str) -> None:
    at = np.arange(len(rows)) + place * width
    heights = rows["mean"].to_numpy() - CHANCE
    drawn = ax.bar(at, heights, width * 0.92, CHANCE, yerr=rows["std"], color=colour, label=name, ecolor="#444444", capsize=2)
    ax.bar_label(drawn, [digits.format(value) for value in rows["mean"]], fontsize=8, padding=2)
    ax.axhline(CHANCE, color="#444444", linewidth=0.8)
    ax.set_xticks(range(len(rows)), [name.replace("-", "-\n") for name in rows["dataset"]])


def prompts() -> Image.Image:
    """MetaUAS before and after its comparison was repaired."""
    names = {"before": "MetaUAS before", "after": "MetaUAS after", "patch-residual": "patch-residual (not trained)"}
    return bars("prompts", names)


def registration() -> Image.Image:
    names = {
        "unchanged pairs apart": "unchanged pairs unregistered",
        "changed pairs apart too": "changed pairs too",
        "and the appearance shifts": "and the appearance shifts",
    }
    return bars("registration", names)


def scales() -> Image.Image:
    return bars("scales", {"256 pixels": "one scale: 256", "320, 128 and 96 pixels": "three scales: 320, 128, 96"})


def black_prompt() -> Image.Image:
    """The true prompt against a black one, for each packaged detector."""
    tables = {"true prompt": numbers("packaged"), "black prompt": numbers("black-prompt")}

    def draw(axes: Sequence[Axes]) -> None:
        for ax, detector in zip(axes, ("metric-residual", "prompt-query", "metauas"), strict=True):
            for place, (name, table) in enumerate(tables.items()):
                rows = table[(table["series"] == detector) & (table["shots"] == 1)]
                rows = rows.assign(dataset=rows["dataset"].str.replace("development-textures", "development"))
                _bars(
                    ax,
                    rows.assign(dataset=rows["dataset"].str.replace("texture-defects", "textures")),
                    0.44,
                    place - 0.5,
                    (COLOURS[0], GREY_BAR)[place],
                    name,
                    "{:.0f}",
                )
            ax.set(title=detector, ylim=(CHANCE, 103))
            ax.tick_params("x", labelsize=9, labelrotation=25)
        axes[0].set(ylabel="image AUROC, %")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)

    return chart(draw, axes=3, sharey=True)


def self_residual() -> Image.Image:
    table = numbers("self-residual")

    def draw(axes: Sequence[Axes]) -> None:
        for (name, rows), colour in zip(table.groupby("dataset", sort=False), COLOURS, strict=False):
            axes[0].plot(rows["series"].astype(float), rows["mean"], marker="o", color=colour, label=str(name))
        axes[0].set(xlabel="weight of the self-residual", ylabel="image AUROC, %", ylim=(65, 101))
        axes[0].axvline(0.6, color="#999999", linewidth=1, linestyle=":", label="the quickstart's weight")
        axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return chart(draw, size=(7.2, 2.8))


def ranking() -> Image.Image:
    return by_shots(
        "ranking",
        {
            "patch-residual": "patch-residual (not trained)",
            "learnt by ranking": "trained by ranking",
            "learnt from masks": "trained on masks",
        },
        (58, 90),
        "elpv",
    )


def across_domains() -> Image.Image:
    return by_shots(
        "domains",
        {"texture-defects": "tested on texture-defects", "digits": "tested on digits", "elpv": "tested on elpv"},
        (50, 100),
        "InCTRL",
    )


def by_shots(finding: str, names: Mapping[str, str], limits: tuple[float, float], title: str) -> Image.Image:
    """Draw a line for each series over the number of shots, with the standard deviation over training seeds."""
    table = numbers(finding)

    def draw(axes: Sequence[Axes]) -> None:
        for (series, name), colour in zip(names.items(), COLOURS, strict=False):
            rows = table[table["series"] == series]
            axes[0].errorbar(np.log2(rows["shots"]), rows["mean"], yerr=rows["std"], marker="o", color=colour, label=name, capsize=3)
        axes[0].set(xlabel="shots", ylabel="image AUROC, %", xticks=range(4), xticklabels=[1, 2, 4, 8], ylim=limits, title=title)
        axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return chart(draw, size=(7.2, 2.8))


def growth() -> Image.Image:
    """Time for each item, and memory, by the number of items."""
    table = pd.read_csv(NUMBERS / "growth.csv")

    def draw(axes: Sequence[Axes]) -> None:
        for (name, rows), colour in zip(table.groupby("task", sort=False), COLOURS, strict=False):
            for ax, column in zip(axes, ("milliseconds", "mebibytes"), strict=True):
                ax.plot(rows["count"], rows[column], marker="o", color=colour, label=str(name))
        axes[0].set(xscale="log", yscale="log", xlabel="items", ylabel="ms per item")
        axes[1].set(xscale="log", xlabel="items", ylabel="peak memory, MiB", ylim=(0, 1300))
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)

    return chart(draw, axes=2, size=(7.2, 2.8))
