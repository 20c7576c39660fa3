"""report.html: one file that opens from disk with no network."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from tasks.evaluation.evaluate import table
from tasks.evaluation.figures import FIGURES
from tasks.files import write_text

COUNTS = {"pairs by kind": "kinds.csv", "pairs by the share of the query that changed": "changed_area.csv", "draws dropped": "drops.csv"}
VERSIONS = ("torch", "timm", "segmentation_models_pytorch", "numpy", "pillow", "scikit-image")


def write_report(
    file: Path, *, pipeline: str, settings: Mapping[str, Any], tree: Mapping[str, Any], plots: Sequence[Path], pairs: Path
) -> None:
    """Writes the report: the table of figures, the plots, the overview of the pairs trained on, the settings and the versions.

    pairs: the folder that tasks.synthesis.overview wrote.
    """
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html")
    rows = table(tree)
    write_text(
        file,
        page.render(
            pipeline=pipeline,
            targets=[
                {"name": target, "rows": [row for row in rows if row["target"] == target], "plots": _of(plots, target)} for target in tree
            ],
            figures=[(name, heading(name)) for name in FIGURES],
            sheets={sheet.stem: _inline(sheet) for sheet in sorted(pairs.glob("*.png"))},
            counts={title: _bars(pairs / name) for title, name in COUNTS.items()},
            settings=json.dumps(settings, indent=2, default=str),
            versions={name: version(name) for name in VERSIONS},
        ),
    )


def markdown(tree: Mapping[str, Any]) -> str:
    """The table of figures as Markdown."""
    columns = ["target", "detector", "protocol", "shots", *FIGURES]
    lines = ["| " + " | ".join(heading(name) for name in columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row[name] for name in columns) + " |" for row in table(tree)]) + "\n"


def heading(figure: str) -> str:
    """image_auroc -> I-AUROC, as the papers write it."""
    level, _, name = figure.partition("_")
    names = {"auroc": "AUROC", "ap": "AP", "f1max": "F1max", "aupro": "AUPRO"}
    return f"{level[0].upper()}-{names[name]}" if name in names else figure


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart; `share` of the longest, in percent."""

    name: str
    count: int
    share: float


def _bars(table: Path) -> list[Bar]:
    """The first two columns of a CSV, one of them a count, as bars."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [(name, int(count)) for name, count, *_rest in list(csv.reader(stream))[1:]]
    most = max((count for _name, count in rows), default=0)
    return [Bar(name, count, 100 * count / most if most else 0.0) for name, count in rows]


def _of(plots: Sequence[Path], target: str) -> list[str]:
    return [_inline(plot) for plot in plots if plot.stem.partition("-")[2] == target]


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
