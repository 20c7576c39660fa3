"""Define the files that sampling writes and that training and evaluation read.

Each pipeline has these files:

    data/episodes/<pipeline>.parquet           one row an episode
    data/episodes/<pipeline>.sources.parquet   the normal pictures to make pairs from (rows of the manifests)
    data/episodes/<pipeline>.textures.parquet  the pictures that DRAEM's textures are cut from (rows of the manifests)
    data/episodes/<pipeline>.auxiliary.parquet the labelled pictures to train on, if any (rows of the manifests)
    data/episodes/<pipeline>.objects.parquet   the annotated objects in the sources (rows of tasks/ingestion/objects)
    data/episodes/<pipeline>.targets.parquet   the target pictures that the episodes name (rows of the manifests)
    data/episodes/<pipeline>.rejected.csv      the rejected files of the pipeline's datasets: dataset, file, reason
    data/episodes/<pipeline>.near_duplicates.csv  training and target pictures that look the same but differ in their bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from changepair.tasks.common.rows import Int8, Int32, read_rows
from changepair.tasks.ingestion.manifest import ANOMALOUS, PictureRow
from changepair.tasks.sampling.settings import BY_PIXEL

MADE_BY = "sample"


@dataclass(frozen=True)
class Episode:
    """One draw of prompts and the queries to compare with them, as paths of pictures."""

    target: str  # name of a dataset
    category: str  # of the queries
    protocol: str  # one of tasks/sampling/settings.py
    shots: Int32  # normal prompts for each category
    seed: Int32
    prompts: tuple[str, ...]  # of all categories if class-agnostic
    # Shuffled, in the same order in every episode of a category. The first n are a random subset with the same shares of labels.
    queries: tuple[str, ...]
    labels: tuple[Int8, ...]  # labels of the queries by the protocol: 0 normal, 1 anomalous
    own: tuple[str, ...] = ()  # the prompt of each query, if a file sets one for each


@dataclass(frozen=True)
class TargetFiles:
    """The tables that detectors are evaluated on."""

    episodes: Path
    targets: Path


@dataclass(frozen=True)
class SourceFiles:
    """The tables of the material for change pairs."""

    sources: Path
    textures: Path
    objects: Path


@dataclass(frozen=True)
class EpisodeFiles(SourceFiles, TargetFiles):
    """All files of a pipeline's sampling."""

    auxiliary: Path
    rejected: Path
    near_duplicates: Path

    @property
    def tested(self) -> TargetFiles:
        return TargetFiles(self.episodes, self.targets)

    @property
    def made_of(self) -> SourceFiles:
        return SourceFiles(self.sources, self.textures, self.objects)

    @classmethod
    def of(cls, folder: Path, pipeline: str) -> EpisodeFiles:
        names = ("sources", "textures", "auxiliary", "objects", "targets")
        tables = {name: folder / f"{pipeline}.{name}.parquet" for name in names}
        lists = {name: folder / f"{pipeline}.{name}.csv" for name in ("rejected", "near_duplicates")}
        return cls(episodes=folder / f"{pipeline}.parquet", **tables, **lists)


def read_episodes(path: Path) -> list[Episode]:
    return read_rows(path, Episode, MADE_BY)


def protocols_of(path: Path) -> list[str]:
    """Return the episodes' protocols in the order of sampling's settings."""
    return list(dict.fromkeys(episode.protocol for episode in read_episodes(path)))


def read_pictures(path: Path) -> list[PictureRow]:
    """Read the manifest rows of sources, textures, auxiliary pictures or targets."""
    return read_rows(path, PictureRow, MADE_BY)


def shown_episodes(episodes: Mapping[int, Episode]) -> dict[int, Episode]:
    """Choose one episode for each category of each target, by number: class-specific, the most shots, the first seed."""

    def rank(number: int) -> tuple[bool, int, int]:
        episode = episodes[number]
        return episode.protocol != "class-specific", -episode.shots, episode.seed

    best: dict[tuple[str, str], int] = {}
    for number, episode in episodes.items():
        place = (episode.target, episode.category)
        best[place] = min(best.get(place, number), number, key=rank)
    return {number: episodes[number] for number in best.values()}


def undefined_metrics(episodes: Sequence[Episode], pictures: Iterable[PictureRow]) -> list[str]:
    """Return a sentence for each category whose test pictures have only one label. `pictures` are rows with the masks of the test
    pictures."""
    masked = {row.image for row in pictures if row.mask is not None}
    alike: dict[tuple[str, str], list[Episode]] = {}
    for episode in episodes:
        if len(set(episode.labels)) == 1:
            alike.setdefault((episode.target, episode.category), []).append(episode)
    sentences = []
    for (target, category), own in alike.items():
        count, label = len(own[0].queries), "anomalous" if own[0].labels[0] == ANOMALOUS else "normal"
        tested = f"all {count} test pictures are {label}" if count > 1 else f"its one test picture is {label}"
        by_pixel = any(episode.protocol in BY_PIXEL and not masked.isdisjoint(episode.queries) for episode in own)
        effect = "image AUROC, AP and F1max are undefined; pixel metrics are computed" if by_pixel else "every metric is undefined"
        sentences.append(f"category {category} of {target}: {tested}, so {effect}")
    return sentences
