"""Compute the metrics of every detector on every episode, and their bootstrap draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from changepair.tasks.common import stopping
from changepair.tasks.common.pictures import Mask, read_mask
from changepair.tasks.common.places import place_of
from changepair.tasks.common.tensors import read_mask_as_published
from changepair.tasks.detectors.detector import upsample
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.sampling.episodes import Episode, TargetFiles, read_episodes, read_pictures
from changepair.tasks.sampling.settings import BY_PIXEL
from changepair.tasks.scoring.metrics import image_metrics, tally
from changepair.tasks.scoring.pixels import HELD_SCORES, PixelScores, Truth, truth_of
from changepair.tasks.scoring.results import Measure, Measured
from changepair.tasks.scoring.scores import Scored, read_scored, same_queries
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.scoring.spread import Draws, coarse_metrics, image_draws, pixel_draws, resample

AT_ONCE = 16  # pictures whose maps are resized together; the first batch sets the levels that draws are counted on

Resamples = Mapping[int, NDArray[np.float32]]  # resamples of the first N queries, by N


def measure(scores: Mapping[str, Path], files: TargetFiles, settings: EvaluationSettings) -> list[Measured]:
    """Measure every detector on every episode. Return the results sorted by target, detector and episode, in the given order.

    scores: the folders that the score stage wrote, by detector.
    """
    episodes = read_episodes(files.episodes)
    mask_of = {row.image: row.mask for row in read_pictures(files.targets)}
    scored = {detector: list(read_scored(folder)) for detector, folder in scores.items()}
    measured: dict[tuple[str, int], Measured] = {}
    for group in same_queries(dict(enumerate(episodes))):
        some = next(iter(group.values()))
        truths = _Truths(some, mask_of, settings)
        alike = {detector: [item for item in items if item.number in group] for detector, items in scored.items()}
        counts = {len(items[0].scores) for items in alike.values() if items}
        resamples = {count: resample(some.queries[:count], some.labels[:count], some.target, some.category) for count in counts}
        for detector, items in alike.items():
            for item, result in _measure_alike(detector, items, episodes, truths, resamples):
                measured[detector, item.number] = result
    targets = dict.fromkeys(episode.target for episode in episodes)
    return [
        measured[detector, item.number]
        for target in targets
        for detector, items in scored.items()
        for item in items
        if episodes[item.number].target == target
    ]


def _measure_alike(
    detector: str, items: Sequence[Scored], episodes: Sequence[Episode], truths: _Truths, resamples: Resamples
) -> Iterator[tuple[Scored, Measured]]:
    """Measure one detector on episodes with the same queries.

    The first episode with pixels sets the levels for the others. Episodes with several prompts come first, because their maps vary least.
    """
    first: PixelScores | None = None
    items = sorted(items, key=lambda item: _one_prompt(episodes[item.number]))
    with ThreadPoolExecutor() as pool:  # sorting millions of pixels releases the GIL
        waiting = []
        for item in items:
            episode = episodes[item.number]
            stopping.check(f"metrics, of {detector} on {episode.target}")
            by_pixel = item.maps is not None and truths.any and episode.protocol in BY_PIXEL
            own = _pixel_scores(item, truths, None) if by_pixel and first is None else None
            like = first if by_pixel else None
            first = first or own
            waiting.append((item, pool.submit(_measured, detector, item, episode, own, like, truths, resamples)))
        for item, future in waiting:
            yield item, future.result()


def _one_prompt(episode: Episode) -> bool:
    """Tell whether an episode compares each query with a single prompt."""
    return len(episode.prompts) < 2 or bool(episode.own) or (episode.protocol == "class-agnostic" and episode.shots == 1)


def _pixel_scores(item: Scored, truths: _Truths, like: PixelScores | None) -> PixelScores:
    assert item.maps is not None
    count, side = len(item.maps), truths.resolution
    scores = PixelScores(count * side**2, exact=4 * count * side**2 <= HELD_SCORES, like=like)
    for start in range(0, count, AT_ONCE):
        maps = torch.from_numpy(np.array(item.maps[start : start + AT_ONCE]))
        scores.add(upsample(maps, (side, side)).numpy(), truths.of(start, len(maps)))
    return scores


def _measured(
    detector: str,
    item: Scored,
    episode: Episode,
    pixels: PixelScores | None,
    like: PixelScores | None,
    truths: _Truths,
    resamples: Resamples,
) -> Measured:
    """Measure one detector on one episode. pixels: its pixel scores, if already collected. like: sets the levels to collect them on."""
    count = len(item.scores)
    if like is not None:
        pixels = _pixel_scores(item, truths, like)
    by_picture = pixels.by_picture() if pixels is not None else None
    exact = pixels.metrics(truths.convention) if pixels is not None else {}
    metrics = _measures(episode, item.scores, by_picture, exact, resamples[count])
    few, some = min(resamples), metrics
    if few < count:
        first = None if by_picture is None else by_picture[:, :few]
        some = _measures(episode, item.scores[:few], first, {} if first is None else coarse_metrics(first), resamples[few])
    levels = None if by_picture is None else by_picture.sum(1, dtype=np.float64)
    return Measured(detector, episode, count, metrics, some, few, levels)


def _measures(
    episode: Episode,
    scores: NDArray[np.float32],
    by_picture: NDArray[np.float32] | None,
    pixel_values: dict[str, float],
    counts: NDArray[np.float32],
) -> dict[str, Measure]:
    """Return the metrics of the scored queries, with their draws."""
    labels = np.array(episode.labels[: len(scores)]) == ANOMALOUS
    values = {name: float(value) for name, value in image_metrics(tally(scores[labels], np.sort(scores[~labels]))).items()}
    draws: dict[str, Draws] = image_draws(counts, labels, scores)
    if by_picture is not None:
        values |= pixel_values
        draws |= pixel_draws(counts, by_picture, pixel_values)
    return {name: Measure(value, draws[name]) for name, value in values.items()}


class _Truths:
    """Read the masks of queries once for all episodes that share them."""

    def __init__(self, episode: Episode, mask_of: Mapping[str, str | None], settings: EvaluationSettings) -> None:
        self.files, self.labels = [mask_of[image] for image in episode.queries], episode.labels
        self.resolution, self.convention = settings.resolution, settings.convention
        self.read = read_mask_as_published if settings.convention == "published" else read_mask
        self.any = any(self.files)
        self._read: dict[int, Truth] = {}

    def of(self, start: int, count: int) -> Truth:
        """Return the truth of `count` queries from `start`. start: a multiple of AT_ONCE."""
        if start not in self._read:
            stop = start + AT_ONCE
            masks = [self._mask(file, label) for file, label in zip(self.files[start:stop], self.labels[start:stop], strict=True)]
            self._read[start] = truth_of(masks, (self.resolution, self.resolution))
        return self._read[start].first(count)

    def _mask(self, file: str | None, label: int) -> Mask | None:
        if file is not None:
            return self.read(place_of(file), self.resolution)
        return None if label == ANOMALOUS else np.zeros((self.resolution, self.resolution), dtype=bool)
