"""Write report.html: one self-contained page that opens from disk without a network."""

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

from jinja2 import Environment, FileSystemLoader, Template
from PIL import Image

from changepair.tasks.common.errors import in_general
from changepair.tasks.common.files import write_text
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.texts import csv_lines, percent
from changepair.tasks.reporting.advice import LEAST_SPLIT, METRIC, SECOND_METRIC, Advice, advice_of, next_steps, tied
from changepair.tasks.reporting.charts import charts_of, training_chart
from changepair.tasks.reporting.curves import Curves
from changepair.tasks.reporting.galleries import KINDS, Gallery, caption, colour_scale, strip
from changepair.tasks.reporting.readiness import MOST_FALSE_ALARMS, MOST_MISSES, Verdict
from changepair.tasks.reporting.robustness import robustness_part
from changepair.tasks.sampling.settings import PREFERRED
from changepair.tasks.scoring.metrics import METRICS, heading
from changepair.tasks.scoring.operating import OperatingRow
from changepair.tasks.scoring.ranks import mean_ranks
from changepair.tasks.scoring.recommendation import NEAR, Recommendation
from changepair.tasks.scoring.results import ALL, ComparisonRow, MetricRow, table
from changepair.tasks.scoring.robustness import RobustnessRow
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.training.log import LOG_NAME

COUNTS = {"Pairs by kind": "kinds.csv", "Pairs by changed share of the query": "changed_area.csv"}
DROPPED = "drops.csv"
VERSIONS = ("torch", "timm", "open_clip_torch", "segmentation_models_pytorch", "numpy", "scikit-image", "pillow", "opencv-python-headless")
LISTED = 200  # rejected files and near duplicates that are listed; the others are counted

METAUAS = "authors' repository of MetaUAS (arXiv 2505.09265), 5 draws of one prompt"


@dataclass(frozen=True)
class Published:
    """One row of a published table. Its AUPRO follows `evaluation.convention: published`."""

    layout: str
    """Layout of the dataset, as `changepair datasets` lists it."""
    protocol: str
    shots: int
    resolution: int
    """Pixels a side at which maps and masks were compared."""
    name: str
    metrics: dict[str, str]
    """Percent, mean or mean ± standard deviation, by metric."""
    source: str


def _row(layout: str, resolution: int, name: str, metrics: str, source: str = METAUAS) -> Published:
    """Return a row of the class-specific protocol at one shot. metrics: the seven, in the order of METRICS."""
    values = [value.replace("±", " ± ") for value in metrics.split()]
    return Published(layout, "class-specific", 1, resolution, name, dict(zip(METRICS, values, strict=True)), source)


# Their class-agnostic metrics (MetaUAS*, MetaUAS*+) are not comparable. They choose a prompt among all normal training pictures of a class;
# our class-agnostic protocol chooses among one for each class.
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


def published_rows(layout: str, resolution: int, protocols: Sequence[tuple[str, int]]) -> list[Published]:
    """List the published rows of a dataset layout at a resolution. protocols: the protocols and shots that were measured."""
    return [row for row in PUBLISHED if (row.layout, row.resolution) == (layout, resolution) and (row.protocol, row.shots) in protocols]


@dataclass(frozen=True)
class Origin:
    """How a report can be reproduced."""

    pipeline: str
    settings: Mapping[str, Any]
    """All settings that the evaluation depends on, by their keys in pipelines.yaml."""
    layouts: Mapping[str, str]
    """Dataset layout by target."""
    artifacts: Mapping[str, str]
    """Hashes from dvc.lock, by path."""
    versions: Mapping[str, str]
    """Versions of packages that run the work, in addition to VERSIONS."""


@dataclass(frozen=True)
class Inputs:
    """The files of earlier stages that the report shows."""

    pairs: Path
    """The overview folder that the synthesize stage writes."""
    models: Sequence[Path]
    """Folders of the trained models."""
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
    scores: Mapping[str, Path] | None = None,
    trained: Collection[str] = (),
    undefined: Sequence[str] = (),
    robustness: Sequence[RobustnessRow] = (),
) -> None:
    """Write the report: verdict and next step by target, metrics, curves, galleries, training, and how to reproduce it.

    scores: the folders that the score stage wrote, by detector. Without them the trade-off is left out. trained: the detectors that were
    trained here. undefined: sentences on undefined metrics, from `undefined_metrics`. robustness: rows of robustness.csv.
    """
    of_recommended = (scores or {}).get(recommendation.detector)
    advised = {advice.target: advice for advice in advice_of(recommendation, metrics, operating, of_recommended)}
    folders = [target for target, layout in origin.layouts.items() if layout == "folder"]
    repeated = _repeated(metrics)
    shown = [row for row in metrics if (row.target, row.detector, row.protocol) not in repeated]
    compared = [row for row in comparisons if {(row.target, name, row.protocol) for name in (row.detector, row.other)} - repeated]
    write_text(
        file,
        _template().render(
            **_training(inputs, trained),
            origin=origin,
            columns=[(name, heading(name)) for name in METRICS if any(row.metric == name for row in metrics)],
            metrics=_lines(shown, over_all=True),
            categories=_lines(shown, over_all=False),
            ranks=mean_ranks(shown, METRIC),
            repeated=sorted({target for target, _detector, _protocol in repeated}),
            published=_published(metrics, origin.layouts, evaluation.resolution),
            convention=evaluation.convention,
            resolution=evaluation.resolution,
            comparisons=[(row, heading(row.metric)) for row in compared],
            main_comparisons=[(row, heading(row.metric)) for row in _main(compared)],
            steps={
                target: next_steps(advice, origin.pipeline, metrics, comparisons, trained, folders) for target, advice in advised.items()
            },
            ties={target: tied(advice, metrics, comparisons) for target, advice in advised.items()},
            metric=_in_words(recommendation.choice.metric) if recommendation.choice is not None else "",
            undefined=undefined,
            robustness=robustness_part(robustness, {target: advice.shots for target, advice in advised.items()}),
            warnings={target: recommendation.warning(target) for target in advised},
            inline=_chart,
            targets=[_target(gallery, curves, advised.get(gallery.target)) for gallery in galleries],
            scale=_jpeg(colour_scale()),
            rejected=_listed(inputs.rejected),
            near_duplicates=_listed(inputs.near_duplicates),
            settings=json.dumps(origin.settings, indent=2, default=str),
            versions={**_versions(), **origin.versions},
        ),
    )


def _template() -> Template:
    """Load the template of the page, with the constants that it names."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.globals |= {
        "preferred": PREFERRED,
        "least": LEAST_SPLIT,
        "limits": (percent(MOST_MISSES), percent(MOST_FALSE_ALARMS)),
        "near": NEAR,
        "auroc": _in_words(METRIC),
        "percent": percent,
    }
    return environment.get_template("report.html")


def _training(inputs: Inputs, trained: Collection[str]) -> dict[str, Any]:
    """Return what the page shows of pairs and trainings. trained: the detectors that were trained here."""
    trainings = [*((folder.name, folder) for folder in sorted(inputs.models)), ("inpainting model", inputs.inpainter)]
    logs = [(name, folder / LOG_NAME) for name, folder in trainings if (folder / LOG_NAME).is_file()]
    sheets = sorted(inputs.pairs.glob("*.png")) if trained else []
    return {
        "training": [_chart(*training_chart(title, log)) for title, log in logs],
        "sheets": {sheet.stem: _jpeg(Image.fromarray(read_picture(sheet))) for sheet in sheets},
        "counts": {title: bars for title, name in COUNTS.items() if trained and (bars := _bars(inputs.pairs / name))},
        "dropped": _bars(inputs.pairs / DROPPED) if trained else [],
    }


def markdown(rows: Sequence[MetricRow]) -> str:
    """Return the metrics over all categories as a Markdown table."""
    columns = ["target", "detector", "protocol", "shots", *METRICS]
    lines = ["| " + " | ".join(heading(name) for name in columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row[name] for name in columns) + " |" for row in table(rows)]) + "\n"


@dataclass(frozen=True)
class ListedFiles:
    """The first lines of a CSV, the number of all lines, and their number by reason."""

    header: list[str]
    lines: list[list[str]]
    count: int
    reasons: list[tuple[str, int]]


@dataclass(frozen=True)
class TargetPart:
    """The sections of one target."""

    name: str
    advice: Advice | None
    """None if no detector is recommended."""
    charts: list[tuple[str, list[tuple[str, str]]]]
    """Titles and inline pictures, by kind of chart."""
    galleries: Mapping[str, Mapping[str, list[tuple[str, str]]]]
    """Inline pictures and their captions, by detector and kind."""
    tiles: Sequence[str]
    """Description of a gallery's pictures, from left to right."""
    prompted: bool
    """Whether the pictures have prompts."""

    @property
    def strip(self) -> str:
        return ", ".join(self.tiles)

    @property
    def verdict(self) -> Verdict | None:
        return self.advice.verdict if self.advice is not None else None

    @property
    def first(self) -> list[tuple[str, list[str]]]:
        """The clearest and the most difficult defect in the recommended detector's gallery, each with a label for each of its pictures."""
        kinds = self.galleries.get(self.advice.detector, {}) if self.advice else {}
        queries = {"found": "query with the clearest defect", "missed": "query with the most difficult defect"}
        prompt = "normal prompt" if self.prompted else "no prompt"
        return [
            (kinds[kind][0][0], [{"prompt": prompt, "query": query}.get(tile, tile) for tile in self.tiles])
            for kind, query in queries.items()
            if kinds.get(kind)
        ]


def _in_words(metric: str) -> str:
    """Name a metric in running text: image AUROC for image_auroc."""
    return heading(metric).replace("I-", "image ").replace("P-", "pixel ")


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):  # some are optional
            versions[name] = version(name)
    return versions


def _lines(rows: Sequence[MetricRow], *, over_all: bool) -> list[tuple[MetricRow, dict[str, MetricRow]]]:
    """Group the lines of a table: the first row of each, and all its rows by metric."""
    lines: dict[tuple[object, ...], dict[str, MetricRow]] = {}
    for row in rows:
        if (row.category == ALL) == over_all:
            lines.setdefault((row.target, row.category, row.detector, row.protocol, row.shots), {})[row.metric] = row
    return [(next(iter(cells.values())), cells) for cells in lines.values()]


def _repeated(rows: Sequence[MetricRow]) -> set[tuple[str, str, str]]:
    """List targets, detectors and protocols with the metrics of PREFERRED, as displayed. With one category, the prompts are the same."""
    values: dict[tuple[str, str, str], set[object]] = {}
    for row in rows:
        numbers = row.category, row.shots, row.metric, *(f"{100 * value:.1f}" for value in (row.mean, row.std, row.low, row.high))
        values.setdefault((row.target, row.detector, row.protocol), set()).add(numbers)
    return {key for key, of_one in values.items() if key[2] != PREFERRED and of_one == values.get((*key[:2], PREFERRED))}


def _main(comparisons: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """List the main comparisons of each target: its first protocol at the fewest shots, by METRIC and SECOND_METRIC."""
    first: dict[str, str] = {}
    for row in comparisons:
        first.setdefault(row.target, row.protocol)
    own = [row for row in comparisons if row.protocol == first[row.target] and row.metric in (METRIC, SECOND_METRIC)]
    shots = {target: [row.shots for row in own if row.target == target] for target in first}
    fewest = {target: min(of_target, key=lambda count: (count == 0, count), default=0) for target, of_target in shots.items()}
    return [row for row in own if row.shots == fewest[row.target]]


def _published(rows: Sequence[MetricRow], layouts: Mapping[str, str], resolution: int) -> list[tuple[str, Published]]:
    lines = []
    for target in dict.fromkeys(row.target for row in rows):
        measured = [(row.protocol, row.shots) for row in rows if row.target == target]
        lines += [(target, row) for row in published_rows(layouts.get(target, target), resolution, measured)]
    return lines


def _target(gallery: Gallery, curves: Curves, advice: Advice | None) -> TargetPart:
    galleries: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for pick in gallery.picks:
        kinds = galleries.setdefault(pick.detector, {kind: [] for kind in KINDS})
        kinds[pick.kind].append((_jpeg(strip(gallery, pick)), caption(pick)))
    charts = [(title, [_chart(*chart) for chart in drawn]) for title, drawn in charts_of(curves, gallery.target)]
    prompted = any(pick.shown.prompt is not None for pick in gallery.picks)
    return TargetPart(gallery.target, advice, charts, galleries, gallery.tiles, prompted)


def _chart(title: str, svg: bytes) -> tuple[str, str]:
    return title, _inline(svg, "svg+xml")


def _bars(table: Path) -> list[tuple[str, int, float]]:
    """Read the first two columns of a CSV, names and counts. Add each count's share of the highest, in percent."""
    if not table.is_file():
        return []
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
