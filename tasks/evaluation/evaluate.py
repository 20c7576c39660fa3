"""Evaluation in steps that can run anywhere: load the contenders, evaluate each target, write what came of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.detector_settings import DetectorName, DetectorSettings
from tasks.detectors import load_detectors, resolution_of
from tasks.evaluation.figures import FIGURES, image_figures, pixel_figures
from tasks.evaluation.score import Contender, Scored, score_category
from tasks.evaluation.settings import EvaluationSettings
from tasks.files import write_table, write_text
from tasks.ingestion.manifest import ANOMALOUS
from tasks.pictures import Mask, read_mask
from tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes, read_pictures

SCORES = pa.schema(
    [
        pa.field("target", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("shots", pa.int32(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """The figures of one detector on one episode, as fractions. Pixel figures are absent where there are no masks."""

    detector: DetectorName
    episode: Episode
    queries: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """A query to look at: what prompted it, its mask if there is one, and each detector's anomaly map RxR."""

    image: str
    prompt: str | None  # None where nothing prompted it
    category: str
    label: int
    mask: str | None
    maps: dict[DetectorName, NDArray[np.float32]]


@dataclass(frozen=True)
class TargetResult:
    target: str
    measured: list[Measured]
    scores: pa.Table  # of SCORES
    shown: list[Shown]


def load_contenders(detectors: DetectorSettings, settings: EvaluationSettings, models: Path, device: str) -> list[Contender]:
    """Every detector of the pipeline, trained ones with their weights, ready to score on `device`."""
    return [
        Contender(name, detector.to(device).eval(), resolution_of(detectors, name), settings.subset.get(name))
        for name, detector in load_detectors(detectors, models).items()
    ]


def evaluate_target(
    target: str, contenders: Sequence[Contender], files: EpisodeFiles, settings: EvaluationSettings, device: str
) -> TargetResult:
    """Scores and measures every contender on every episode of one target."""
    episodes = [episode for episode in read_episodes(files.episodes) if episode.target == target]
    row_of = {row["image"]: row for row in read_pictures(files.targets) if row["dataset"] == target}
    measured: list[Measured] = []
    scores: list[dict[str, Any]] = []
    shown: list[Shown] = []
    for category, queries in dict.fromkeys((episode.category, episode.queries) for episode in episodes):
        mine = [episode for episode in episodes if (episode.category, episode.queries) == (category, queries)]
        masks = _masks([row_of[image] for image in mine[0].queries], settings.resolution)
        gallery = _Gallery(mine, row_of, settings.shown)
        maps_at = settings.resolution if masks is not None else None
        for group in _sharing_an_encoder(contenders):
            if masks is None:  # pictures to look at need maps all the same: of one episode, a few queries
                gallery.fill(group, settings, device)
            for batch in score_category(group, mine, maps_at=maps_at, batch_size=settings.batch_size, device=device):
                with ThreadPoolExecutor() as pool:  # sorting millions of pixels releases the GIL
                    measured.extend(pool.map(partial(_measure, masks=masks), batch))
                for scored in batch:
                    gallery.keep(scored)
                    scores.extend(_score_rows(scored))
        shown.extend(gallery.shown())
    return TargetResult(target, measured, pa.Table.from_pylist(scores, schema=SCORES), shown)


def _measure(scored: Scored, masks: NDArray[np.bool_] | None) -> Measured:
    labels = np.array(scored.episode.labels[: len(scored.images)]) == ANOMALOUS
    figures = image_figures(labels, scored.scores)
    if masks is not None and scored.maps is not None:
        figures |= pixel_figures(masks[: len(scored.images)], scored.maps)
    return Measured(scored.detector, scored.episode, len(scored.images), figures)


def metrics(measured: Sequence[Measured]) -> dict[str, Any]:
    """{target: {detector: {protocol: {shots: {figure: {mean, std}}}}}}.

    A seed's figure is the mean over categories; mean and (population) standard deviation are over seeds.
    """
    by_seed: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in measured:
        episode = item.episode
        for figure, value in item.figures.items():
            by_seed[episode.target, item.detector, episode.protocol, str(episode.shots), figure][episode.seed].append(value)
    tree: dict[str, Any] = {}
    for (target, detector, protocol, shots, figure), seeds in by_seed.items():
        values = [float(np.mean(categories)) for categories in seeds.values()]
        leaf = {"mean": round(float(np.mean(values)), 6), "std": round(float(np.std(values)), 6)}
        tree.setdefault(target, {}).setdefault(detector, {}).setdefault(protocol, {}).setdefault(shots, {})[figure] = leaf
    return tree


def table(tree: Mapping[str, Any]) -> list[dict[str, str]]:
    """The metrics as rows of text for people: one a target, detector, protocol and shots; percent, mean ± std over seeds."""
    rows = []
    for target, detectors in tree.items():
        for detector, protocols in detectors.items():
            for protocol, shots in protocols.items():
                for count, figures in shots.items():
                    cells = {
                        name: f"{100 * figures[name]['mean']:.1f} ± {100 * figures[name]['std']:.1f}" if name in figures else ""
                        for name in FIGURES
                    }
                    rows.append({"target": target, "detector": detector, "protocol": protocol, "shots": count, **cells})
    return rows


def write_results(folder: Path, results: Sequence[TargetResult]) -> dict[str, Any]:
    """Writes metrics.json and scores.parquet; gives the metrics."""
    tree = metrics([item for result in results for item in result.measured])
    write_text(folder / "metrics.json", json.dumps(tree, indent=1) + "\n")
    write_table(folder / "scores.parquet", pa.concat_tables([result.scores for result in results]))
    return tree


class _Gallery:
    """Collects the maps of a few queries of a category, of the first class-specific episode with the most shots."""

    def __init__(self, episodes: Sequence[Episode], row_of: Mapping[str, Row], count: int) -> None:
        self.episode = min(episodes, key=lambda episode: (episode.protocol != "class-specific", -episode.shots, episode.seed))
        self.images = self.episode.queries[:count]
        self.row_of = row_of
        self.maps: dict[str, dict[DetectorName, NDArray[np.float32]]] = {image: {} for image in self.images}

    def fill(self, group: Sequence[Contender], settings: EvaluationSettings, device: str) -> None:
        if self.images:
            episode = replace(self.episode, queries=self.images)
            for batch in score_category(group, [episode], maps_at=settings.resolution, batch_size=settings.batch_size, device=device):
                for scored in batch:
                    self.keep(scored)

    def keep(self, scored: Scored) -> None:
        same = (scored.episode.protocol, scored.episode.shots, scored.episode.seed) == (
            self.episode.protocol,
            self.episode.shots,
            self.episode.seed,
        )
        if same and scored.maps is not None:
            for image, map_ in zip(scored.images, scored.maps, strict=True):
                if image in self.maps:
                    self.maps[image][scored.detector] = map_.copy()

    def shown(self) -> list[Shown]:
        rows = [self.row_of[image] for image in self.images]
        return [
            Shown(row["image"], next(iter(self.episode.prompts), None), self.episode.category, label, row["mask"], self.maps[row["image"]])
            for row, label in zip(rows, self.episode.labels, strict=False)
        ]


def _sharing_an_encoder(contenders: Sequence[Contender]) -> list[list[Contender]]:
    groups: dict[tuple[int, int], list[Contender]] = defaultdict(list)
    for contender in contenders:
        groups[id(contender.detector.encoder), contender.resolution].append(contender)
    return list(groups.values())


def _masks(rows: Sequence[Row], resolution: int) -> NDArray[np.bool_] | None:
    """The queries' masks NxRxR, all False for normal pictures; None for a category without masks."""
    if not any(row["mask"] for row in rows):
        return None
    nothing: Mask = np.zeros((resolution, resolution), dtype=bool)
    return np.stack([read_mask(Path(row["mask"]), resolution) if row["mask"] else nothing for row in rows])


def _score_rows(scored: Scored) -> Iterator[dict[str, Any]]:
    episode = scored.episode
    about = {name: getattr(episode, name) for name in ("target", "category", "protocol", "shots", "seed")}
    for image, label, score in zip(scored.images, episode.labels, scored.scores.tolist(), strict=False):  # a slow detector scores the first
        yield {**about, "detector": scored.detector, "image": image, "label": label, "score": score}
