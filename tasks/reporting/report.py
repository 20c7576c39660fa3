"""Write report.html: one file that opens from disk without a network."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from changepair.tasks.common.errors import in_general
from changepair.tasks.common.files import write_text
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.texts import csv_lines, percent
from changepair.tasks.reporting.advice import BESIDE, METRIC, Advice, advice_of, next_steps
from changepair.tasks.reporting.charts import charts_of, training_chart
from changepair.tasks.reporting.curves import Curves
from changepair.tasks.reporting.galleries import KINDS, STRIP, Gallery, caption, strip
from changepair.tasks.scoring.metrics import METRICS, heading
from changepair.tasks.scoring.operating import OperatingRow
from changepair.tasks.scoring.recommendation import NEAR, Recommendation
from changepair.tasks.scoring.results import ALL, ComparisonRow, MetricRow, table
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.training.log import LOG_NAME

COUNTS = {"pairs by kind": "kinds.csv", "pairs by the share of the query that changed": "changed_area.csv", "draws dropped": "drops.csv"}
VERSIONS = ("torch", "timm", "open_clip_torch", "segmentation_models_pytorch", "numpy", "scikit-image", "pillow", "opencv-python-headless")
LISTED = 200  # rejected files and near duplicates that are named; the others are counted


METAUAS = "authors' repository of MetaUAS (arXiv 2505.09265), 5 draws of one prompt"


@dataclass(frozen=True)
class Published:
    """One row of a published table. Its AUPRO follows `evaluation.convention: published`."""

    layout: str  # of the dataset, a name of `changepair datasets`
    protocol: str
    shots: int
    resolution: int  # pixels a side that maps and masks were compared at
    name: str
    metrics: dict[str, str]  # percent, mean or mean ± std
    source: str


def _row(layout: str, resolution: int, name: str, metrics: str, source: str = METAUAS) -> Published:
    """Return a row of the class-specific protocol at one shot. metrics: the seven, in the order of METRICS."""
    values = [value.replace("±", " ± ") for value in metrics.split()]
    return Published(layout, "class-specific", 1, resolution, name, dict(zip(METRICS, values, strict=True)), source)


# Their class-agnostic metrics (MetaUAS*, MetaUAS*+) are not comparable: they choose a prompt among all normal training pictures of a class,
# our class-agnostic protocol among one for each class.
PUBLISHED = (
    _row("mvtec-ad", 256, "MetaUAS, 256", "90.7±0.7 95.7±0.6 92.5±0.3 94.6±0.2 59.3±1.4 57.5±1.1 82.6±0.6"),
    _row("visa", 512, "MetaUAS, 512", "81.2±1.7 84.5±1.4 80.2±0.7 92.2±0.7 42.7±0.8 44.7±0.6 60.4±1.5"),
    _row("real-iad", 256, "MetaUAS, 256", "80.0±0.4 77.9±0.4 72.4±0.4 95.6±0.2 36.6±1.1 39.7±1.0 83.5±0.7"),
    _row(
        "mvtec-ad",
        256,
        "MetaUAS, retrained by others",
        "89.1±1.1 94.5±1.0 92.1±0.6 95.1±0.2 54.8±0.9 53.4±0.6 83.8±0.6",
        "a retraining by others: COCO, LaMa inpainting, 4 GPUs of 24 GB",
    ),
)


def beside(layout: str, resolution: int, protocols: Sequence[tuple[str, int]]) -> list[Published]:
    """List the rows of a dataset layout at a resolution. protocols: the protocols and shots that were measured."""
    return [row for row in PUBLISHED if (row.layout, row.resolution) == (layout, resolution) and (row.protocol, row.shots) in protocols]


@dataclass(frozen=True)
class Origin:
    pipeline: str
    settings: Mapping[str, Any]  # all that the evaluation depends on, by their keys in pipelines.yaml
    layouts: Mapping[str, str]  # of each target
    artifacts: Mapping[str, str]  # hashes by path, as DVC has them
    versions: Mapping[str, str]  # of packages beside those that the work itself uses


@dataclass(frozen=True)
class Inputs:
    """The files of earlier stages that the report shows."""

    pairs: Path  # the overview that the synthesize stage wrote
    models: Sequence[Path]  # the model folders
    inpainter: Path
    rejected: Path
    near_duplicates: Path


def write_report(
    file: Path,
    *,
    origin: Origin,
    inputs: Inputs,
    metrics: Sequence[MetricRow],
    comparisons: Sequence[ComparisonRow],
    curves: Curves,
    operating: Sequence[OperatingRow],
    recommendation: Recommendation,
    galleries: Sequence[Gallery],
    evaluation: EvaluationSettings,
    trained: Collection[str] = (),
    undefined: Sequence[str] = (),
) -> None:
    """Write the report: how to use the model and what to do next; metrics, curves, galleries, failures, training, and how to reproduce it.
    trained: the detectors that were trained here. undefined: sentences on undefined metrics, of `undefined_metrics`."""
    advised = {advice.target: advice for advice in advice_of(recommendation, metrics, operating)}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html")
    trainings = [*((folder.name, folder) for folder in sorted(inputs.models)), ("inpainting model", inputs.inpainter)]
    logs = [(name, folder / LOG_NAME) for name, folder in trainings if (folder / LOG_NAME).is_file()]
    write_text(
        file,
        page.render(
            origin=origin,
            columns=[(name, heading(name)) for name in METRICS],
            metrics=_lines(metrics, over_all=True),
            categories=_lines(metrics, over_all=False),
            published=_published(metrics, origin.layouts, evaluation.resolution),
            convention=evaluation.convention,
            resolution=evaluation.resolution,
            comparisons=[(row, heading(row.metric)) for row in comparisons],
            main_comparisons=[(row, heading(row.metric)) for row in _main(comparisons)],
            steps={target: next_steps(advice, origin.pipeline, metrics, comparisons, trained) for target, advice in advised.items()},
            near=NEAR,
            metric=heading(recommendation.choice.metric) if recommendation.choice is not None else "",
            percent=percent,
            undefined=undefined,
            targets=[_target(gallery, curves, advised.get(gallery.target)) for gallery in galleries],
            training=[_chart(*training_chart(title, log)) for title, log in logs],
            sheets={sheet.stem: _jpeg(Image.fromarray(read_picture(sheet))) for sheet in sorted(inputs.pairs.glob("*.png"))},
            counts={title: _bars(inputs.pairs / name) for title, name in COUNTS.items() if (inputs.pairs / name).is_file()},
            rejected=_listed(inputs.rejected),
            near_duplicates=_listed(inputs.near_duplicates),
            settings=json.dumps(origin.settings, indent=2, default=str),
            versions={**_versions(), **origin.versions},
        ),
    )


def markdown(rows: Sequence[MetricRow]) -> str:
    columns = ["target", "detector", "protocol", "shots", *METRICS]
    lines = ["| " + " | ".join(heading(name) for name in columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row[name] for name in columns) + " |" for row in table(rows)]) + "\n"


@dataclass(frozen=True)
class ListedFiles:
    """The first lines of a CSV, how many there are, and how many of each reason."""

    header: list[str]
    lines: list[list[str]]
    count: int
    reasons: list[tuple[str, int]]


@dataclass(frozen=True)
class TargetPart:
    name: str
    advice: Advice | None
    charts: list[tuple[str, list[tuple[str, str]]]]  # by kind, each a title and an inline picture
    galleries: Mapping[str, Mapping[str, list[tuple[str, str]]]]  # by detector and kind, each an inline picture and its caption
    strip: str  # what the pictures of a gallery show, from left to right

    @property
    def first(self) -> list[tuple[str, str]]:
        """The first found and the first missed picture in the recommended detector's gallery, each with its kind."""
        own = self.galleries.get(self.advice.detector, {}) if self.advice else {}
        return [(own[kind][0][0], kind) for kind in ("found", "missed") if own.get(kind)]


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):  # a bare machine lacks some of them
            versions[name] = version(name)
    return versions


def _lines(rows: Sequence[MetricRow], *, over_all: bool) -> list[tuple[MetricRow, dict[str, MetricRow]]]:
    """Group the lines of a table: the first row of each, and all its rows by metric."""
    lines: dict[tuple[object, ...], dict[str, MetricRow]] = {}
    for row in rows:
        if (row.category == ALL) == over_all:
            lines.setdefault((row.target, row.category, row.detector, row.protocol, row.shots), {})[row.metric] = row
    return [(next(iter(cells.values())), cells) for cells in lines.values()]


def _main(comparisons: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """List the main comparisons: of each target its first protocol at the fewest shots, by METRIC and BESIDE."""
    first: dict[str, str] = {}
    for row in comparisons:
        first.setdefault(row.target, row.protocol)
    own = [row for row in comparisons if row.protocol == first[row.target] and row.metric in (METRIC, BESIDE)]
    shots = {target: [row.shots for row in own if row.target == target] for target in first}
    fewest = {target: min(of_target, key=lambda count: (count == 0, count), default=0) for target, of_target in shots.items()}
    return [row for row in own if row.shots == fewest[row.target]]


def _published(rows: Sequence[MetricRow], layouts: Mapping[str, str], resolution: int) -> list[tuple[str, Published]]:
    lines = []
    for target in dict.fromkeys(row.target for row in rows):
        measured = [(row.protocol, row.shots) for row in rows if row.target == target]
        lines += [(target, row) for row in beside(layouts.get(target, target), resolution, measured)]
    return lines


def _target(gallery: Gallery, curves: Curves, advice: Advice | None) -> TargetPart:
    galleries: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for pick in gallery.picks:
        kinds = galleries.setdefault(pick.detector, {kind: [] for kind in KINDS})
        kinds[pick.kind].append((_jpeg(strip(gallery, pick)), caption(pick)))
    charts = [(title, [_chart(*chart) for chart in drawn]) for title, drawn in charts_of(curves, gallery.target)]
    return TargetPart(gallery.target, advice, charts, galleries, ", ".join(STRIP))


def _chart(title: str, svg: bytes) -> tuple[str, str]:
    return title, _inline(svg, "svg+xml")


def _bars(table: Path) -> list[tuple[str, int, float]]:
    """Read names and counts, the first two columns of a CSV, each with its share of the highest count, in percent."""
    rows = [(name, int(count)) for _line, (name, count, *_rest) in list(csv_lines(table))[1:]]
    most = max((count for _name, count in rows), default=0)
    return [(name, count, 100 * count / most if most else 0.0) for name, count in rows]


def _listed(table: Path) -> ListedFiles:
    """Read a CSV whose last column is the reason."""
    if not table.is_file():
        return ListedFiles([], [], 0, [])
    header, *lines = [list(cells) for _line, cells in csv_lines(table)]
    return ListedFiles(header, lines[:LISTED], len(lines), Counter(in_general(line[-1]) for line in lines).most_common())


def _jpeg(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return _inline(stream.getvalue(), "jpeg")


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
