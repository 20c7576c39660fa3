"""Evaluation in steps that can run anywhere: load the contenders, measure them on each target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.detector_settings import DetectorSettings
from tasks.detectors import load_detectors, resolution_of
from tasks.evaluation.figures import image_figures, tally
from tasks.evaluation.gallery import Gallery, choose
from tasks.evaluation.pixels import Truth, truth_of
from tasks.evaluation.results import SCORES, Measure, Measured
from tasks.evaluation.score import Contender, Scored, anomaly_maps, score_category
from tasks.evaluation.settings import Convention, EvaluationSettings
from tasks.evaluation.spread import Draws, coarse_figures, image_draws, pixel_draws, resample
from tasks.ingestion.manifest import ANOMALOUS
from tasks.pictures import Mask, read_mask
from tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes, read_pictures

BY_PIXEL = ("class-specific", "class-agnostic")
"""Protocols in which a mask says what is anomalous; in the others a whole picture is, of another class."""

Row = Mapping[str, Any]
Resamples = Mapping[int, NDArray[np.float32]]
"""Of the first so many queries, for each number of them that some detector scores."""


@dataclass(frozen=True)
class TargetResult:
    target: str
    measured: list[Measured]
    scores: pa.Table  # of SCORES
    gallery: Gallery


def load_contenders(detectors: DetectorSettings, settings: EvaluationSettings, models: Path, device: str) -> list[Contender]:
    """Every detector of the pipeline, trained ones with their weights, ready to score on `device`."""
    return [
        Contender(name, detector.to(device).eval(), resolution_of(detectors, name), settings.subset.get(name))
        for name, detector in load_detectors(detectors, models).items()
    ]


def evaluate_target(
    target: str,
    contenders: Sequence[Contender],
    files: EpisodeFiles,
    settings: EvaluationSettings,
    device: str,
    report: Callable[[float], None] = lambda share: None,
) -> TargetResult:
    """Scores and measures every contender on every episode of one target. report: is told the share of the work that is done."""
    episodes = [episode for episode in read_episodes(files.episodes) if episode.target == target]
    row_of = {row["image"]: row for row in read_pictures(files.targets) if row["dataset"] == target}
    groups = _sharing_an_encoder(contenders)
    measured: list[Measured] = []
    scored: list[Scored] = []
    with ThreadPoolExecutor() as pool:
        running: list[Future[Measured]] = []
        for batch, resamples in _batches(groups, episodes, row_of, settings, device, report):
            # Sorting millions of pixels releases the GIL: it goes on beside the scoring of the next batch.
            started = [pool.submit(_measure, item, resamples, settings.convention) for item in batch]
            scored.extend(Scored(item.detector, item.episode, item.images, item.scores, None) for item in batch)
            measured.extend(future.result() for future in running)
            running = started
        measured.extend(future.result() for future in running)
    order = {name: place for place, name in enumerate(contender.name for contender in contenders)}
    number_of = {episode: number for number, episode in enumerate(episodes)}
    for found in (measured, scored):
        found.sort(key=lambda item: (order[item.detector], number_of[item.episode]))
    gallery = choose(target, scored, row_of, settings.shown)
    for episode, images in gallery.wanted():
        for group in groups:
            able = [contender for contender in group if episode.prompts or not contender.detector.needs_prompts]
            if able:
                gallery.keep(episode, anomaly_maps(able, episode, images, batch_size=settings.batch_size, device=device))
    return TargetResult(target, measured, pa.concat_tables([SCORES.empty_table(), *map(_score_rows, scored)]), gallery)


def _batches(
    groups: Sequence[Sequence[Contender]],
    episodes: Sequence[Episode],
    row_of: Mapping[str, Row],
    settings: EvaluationSettings,
    device: str,
    report: Callable[[float], None],
) -> Iterator[tuple[list[Scored], Resamples]]:
    """Every contender on every episode, those of equal queries together, and the resamples of those queries."""
    kinds = list(dict.fromkeys((episode.category, episode.queries, episode.labels) for episode in episodes))
    parts = [(kind, group) for kind in kinds for group in groups]
    for number, ((category, queries, labels), group) in enumerate(parts):
        mine = [episode for episode in episodes if (episode.category, episode.queries, episode.labels) == (category, queries, labels)]
        masks = _Masks([row_of[image] for image in queries], mine[0], settings.resolution)
        counts = {min(contender.queries or len(queries), len(queries)) for each in groups for contender in each}
        resamples = {count: resample(queries[:count], labels[:count]) for count in counts}
        for batch in score_category(
            group,
            mine,
            masks=masks if masks.any else None,
            resolution=settings.resolution,
            batch_size=settings.batch_size,
            device=device,
            report=lambda share, before=number: report((before + share) / len(parts)),  # type: ignore[misc]
        ):
            yield batch, resamples


def _measure(scored: Scored, resamples: Resamples, convention: Convention) -> Measured:
    episode, count = scored.episode, len(scored.images)
    by_picture = scored.pixels.by_picture() if scored.pixels else None
    exact = scored.pixels.figures(convention) if scored.pixels else {}
    figures = _measures(episode, scored.scores, by_picture, exact, resamples[count])
    few = min(resamples)
    some = figures
    if few < count:
        first = None if by_picture is None else by_picture[:, :few]
        some = _measures(episode, scored.scores[:few], first, {} if first is None else coarse_figures(first), resamples[few])
    levels = None if by_picture is None else by_picture.sum(1, dtype=np.float64)
    return Measured(scored.detector, episode, count, figures, some, few, levels)


def _measures(
    episode: Episode,
    scores: NDArray[np.float32],
    by_picture: NDArray[np.float32] | None,
    pixel_values: dict[str, float],
    counts: NDArray[np.float32],
) -> dict[str, Measure]:
    """The figures of the first so many queries as there are scores, and their draws."""
    labels = np.array(episode.labels[: len(scores)]) == ANOMALOUS
    values = {name: float(value) for name, value in image_figures(tally(scores[labels], np.sort(scores[~labels]))).items()}
    draws: dict[str, Draws] = image_draws(counts, labels, scores)
    if by_picture is not None:
        values |= pixel_values
        draws |= pixel_draws(counts, by_picture, pixel_values)
    return {name: Measure(value, draws[name]) for name, value in values.items()}


class _Masks:
    """The masks of an episode's queries, read a batch at a time."""

    def __init__(self, rows: Sequence[Row], episode: Episode, resolution: int) -> None:
        self.files: list[str | None] = [row["mask"] for row in rows]
        self.labels = episode.labels
        self.resolution = resolution
        self.any = episode.protocol in BY_PIXEL and any(self.files)

    def __call__(self, start: int, stop: int) -> Truth:
        masks = [self._read(file, label) for file, label in zip(self.files[start:stop], self.labels[start:stop], strict=True)]
        return truth_of(masks, (self.resolution, self.resolution))

    def _read(self, file: str | None, label: int) -> Mask | None:
        if file is not None:
            return read_mask(Path(file), self.resolution)
        return None if label == ANOMALOUS else np.zeros((self.resolution, self.resolution), dtype=bool)


def _sharing_an_encoder(contenders: Sequence[Contender]) -> list[list[Contender]]:
    groups: dict[tuple[int, int], list[Contender]] = defaultdict(list)
    for contender in contenders:
        groups[id(contender.detector.encoder), contender.resolution].append(contender)
    return list(groups.values())


def _score_rows(scored: Scored) -> pa.Table:
    episode, count = scored.episode, len(scored.images)
    about = [
        [value] * count for value in (episode.target, episode.category, episode.protocol, episode.shots, episode.seed, scored.detector)
    ]
    columns = [*about, scored.images, episode.labels[:count], scored.scores]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCORES, strict=True)], schema=SCORES)
