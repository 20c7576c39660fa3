"""Score a detector with combinations of settings, and rank them. Combinations with one encoder network share one pass over the pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_csv
from changepair.tasks.common.rows import write_rows
from changepair.tasks.detectors.registry import base_of
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.detectors.store import load_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.sampling.episodes import Episode, TargetFiles, read_episodes
from changepair.tasks.scoring.decision import PromotionSettings, choices
from changepair.tasks.scoring.measure import measure
from changepair.tasks.scoring.metrics import heading
from changepair.tasks.scoring.results import Measured, MetricRow, draw_rows, metric_rows
from changepair.tasks.scoring.score import Contender, score
from changepair.tasks.scoring.scores import ScoresFolder
from changepair.tasks.scoring.settings import EvaluationSettings


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of the deciding metric, as fractions. Each seed has a mean over targets, protocols and shots."""

    mean: float
    """Mean over seeds."""
    std: float
    """Population standard deviation over seeds."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f}"


@dataclass(frozen=True)
class Swept:
    """The result of one combination of settings."""

    number: int
    """Index of the combination, from 0."""
    overall: Spread
    """Deciding metric over all targets."""
    targets: Mapping[str, Spread]
    """Deciding metric by target."""
    close: bool
    """Whether the 95 % interval of the paired difference to the best combination includes 0. True for the best."""
    rows: tuple[MetricRow, ...]
    """Metrics by target, protocol and shots. Their `detector` is `number`."""


@dataclass(frozen=True)
class Sweep:
    """A detector of a pipeline and the settings to evaluate it with."""

    detector: str
    """Name of the detector in the pipeline."""
    settings: Sequence[Mapping[str, Any]]
    """Settings of all detectors of the pipeline by name, for each combination."""
    evaluation: EvaluationSettings
    metric: PromotionSettings
    """Section `promotion` of the pipeline, which names the metric that ranks combinations."""
    files: TargetFiles
    models: Path
    """Folder of the detectors' model folders."""


def sweep(asked: Sweep, work: Path, device: torch.device, report: Callable[[float], None] = lambda share: None) -> list[Swept]:
    """Score and measure every combination, and rank them by the deciding metric, the best first.

    Combinations with the same encoder network, resolution and resizing are scored in one pass over the pictures, which encodes each picture
    once at each scale. Scores are written below `work`. `report` receives the share of the work that is done. Raises BadInput if a detector
    cannot be created, or no combination has the metric.
    """
    folders = {str(number): work / "scores" / str(number) for number in range(len(asked.settings))}
    passes = passes_of(asked)
    for place, (encoder, numbers) in enumerate(passes.items()):
        score(
            _contenders(asked, numbers, encoder, work, device),
            asked.files,
            {str(number): folders[str(number)] for number in numbers},
            batch_size=asked.evaluation.batch_size,
            device=device,
            report=lambda share, before=place: report((before + share) / len(passes)),  # type: ignore[misc]
        )
    return ranked(measure(folders, asked.files, asked.evaluation), asked.metric)


def passes_of(asked: Sweep) -> dict[tuple[EncoderSettings, int], list[int]]:
    """Group the indices of combinations by encoder and resolution in pixels. The encoder of a group has the scales of all of them."""
    alike: dict[tuple[EncoderSettings, int], list[int]] = {}
    for number in range(len(asked.settings)):
        own = _with_encoder(asked, number)
        alike.setdefault((replace(own.encoder, scales=(1.0,)), own.resolution), []).append(number)
    passes = {}
    for (encoder, resolution), numbers in alike.items():
        scales = tuple(dict.fromkeys(scale for number in numbers for scale in _with_encoder(asked, number).encoder.scales))
        passes[replace(encoder, scales=scales), resolution] = numbers
    return passes


def _with_encoder(asked: Sweep, number: int) -> DetectorSettings:
    """Return the settings that name the encoder of a combination: those of its detector, or of its base."""
    detectors = asked.settings[number]
    own: DetectorSettings = detectors[base_of(asked.detector, detectors)]
    return own


def _contenders(
    asked: Sweep, numbers: Sequence[int], encoder: tuple[EncoderSettings, int], work: Path, device: torch.device
) -> list[Contender]:
    """Load the detectors of some combinations with one encoder network."""
    network, contenders = build_encoder(*encoder).to(device), []
    for number in numbers:
        own = _with_encoder(asked, number)
        scaled = network.at(own.encoder.scales)
        detector = load_detector(asked.detector, asked.settings[number], asked.models, scaled).to(device).eval()
        subset, scores = asked.evaluation.subset.get(asked.detector), ScoresFolder(work / "parts" / str(number))
        contenders.append(Contender(str(number), detector, own.resolution, subset, scores, own.encoder.resize, own.tiles))
    return contenders


def ranked(measured: Sequence[Measured], metric: PromotionSettings) -> list[Swept]:
    """Rank combinations by the deciding metric, the best first. The detectors of `measured` are the indices of the combinations.

    Raises BadInput if no combination has the metric.
    """
    close = {choice.detector for choice in choices(draw_rows(measured), metric, ())}
    rows, targets = metric_rows(measured), list(dict.fromkeys(item.episode.target for item in measured))
    swept = []
    for name in dict.fromkeys(item.detector for item in measured):
        items = [item for item in measured if item.detector == name and metric.metric in item.metrics]
        if items:
            by_target = {target: [item for item in items if item.episode.target == target] for target in targets}
            spreads = {target: spread_of(own, metric.metric) for target, own in by_target.items() if own}
            own_rows = tuple(row for row in rows if row.detector == name)
            swept.append(Swept(int(name), spread_of(items, metric.metric), spreads, name in close, own_rows))
    if not swept:
        raise BadInput(f"promotion.metric: no combination has {heading(metric.metric)} on these targets; choose another metric")
    return sorted(swept, key=lambda one: -one.overall.mean)


def spread_of(measured: Sequence[Measured], metric: str) -> Spread:
    """Return the mean over targets, protocols and shots of the mean over categories, and its standard deviation over seeds."""
    seeds: dict[int, dict[tuple[str, str, int], list[float]]] = {}
    for item in measured:
        episode = item.episode
        groups = seeds.setdefault(episode.seed, {})
        groups.setdefault((episode.target, episode.protocol, episode.shots), []).append(item.metrics[metric].value)
    values = [np.mean([np.mean(categories) for categories in groups.values()]) for groups in seeds.values()]
    return Spread(float(np.mean(values)), float(np.std(values)))


def on_targets(files: TargetFiles, targets: Collection[str], folder: Path) -> TargetFiles:
    """Write the episodes of some targets to a folder. Return their files. Raises BadInput if a target has no episode."""
    episodes = read_episodes(files.episodes)
    known = list(dict.fromkeys(episode.target for episode in episodes))
    for target in targets:
        if target not in known:
            raise BadInput(f"--target {target}: the pipeline has no such target; choose from {', '.join(known)}")
    file = folder / "episodes.parquet"
    write_rows(file, Episode, [episode for episode in episodes if episode.target in targets])
    return replace(files, episodes=file)


def write_sweep(file: Path, keys: Sequence[str], values: Sequence[Sequence[str]], swept: Sequence[Swept]) -> None:
    """Write a CSV in the order of `swept`. It has a column for each key, then the columns of metrics.csv without `detector`.

    `values` has the values of the keys in YAML, for each combination.
    """
    names = [field.name for field in fields(MetricRow)]
    place = names.index("detector")
    rows = [[*values[one.number], *_without(astuple(row), place)] for one in swept for row in one.rows]
    write_csv(file, [*keys, *_without(names, place)], rows)


def _without(values: Sequence[Any], place: int) -> list[Any]:
    return [*values[:place], *values[place + 1 :]]
