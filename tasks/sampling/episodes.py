"""The files sampling writes and training and evaluation read.

data/episodes/<pipeline>.parquet           one row an episode (EPISODES)
data/episodes/<pipeline>.sources.parquet   the normal pictures to make pairs from (rows of the manifests)
data/episodes/<pipeline>.textures.parquet  the pictures that DRAEM's textures are cut from (rows of the manifests)
data/episodes/<pipeline>.auxiliary.parquet the labelled pictures to train on, if any (rows of the manifests)
data/episodes/<pipeline>.objects.parquet   where the sources' objects are, as far as anyone said (rows of tasks.ingestion.objects)
data/episodes/<pipeline>.targets.parquet   the target pictures the episodes name (rows of the manifests)
data/episodes/<pipeline>.rejected.csv      the files that ingestion left out of the pipeline's datasets: dataset, file, reason
data/episodes/<pipeline>.near_duplicates.csv  training and target pictures that look the same and are not, byte for byte
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.common.files import read_table
from tasks.ingestion.manifest import SCHEMA

MADE_BY = "sample"

EPISODES = pa.schema(
    [
        pa.field("target", pa.string(), nullable=False),  # a dataset
        pa.field("category", pa.string(), nullable=False),  # of the queries
        pa.field("protocol", pa.string(), nullable=False),  # of tasks.sampling.settings
        pa.field("shots", pa.int32(), nullable=False),  # normal prompts a category
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("prompts", pa.list_(pa.string()), nullable=False),  # images; class-agnostic: of all categories
        # Images, shuffled so that the first n are a random subset with the labels in the same shares: a slow detector scores
        # those. The same order in every episode of a category.
        pa.field("queries", pa.list_(pa.string()), nullable=False),
        pa.field("labels", pa.list_(pa.int8()), nullable=False),  # of the queries, as the protocol has them: 0 normal, 1 anomalous
        pa.field("own", pa.list_(pa.string()), nullable=False),  # the one prompt of each query, where a file gives each its own
    ]
)


@dataclass(frozen=True)
class Episode:
    """One draw of prompts and the queries they are held against; paths of pictures."""

    target: str
    category: str
    protocol: str
    shots: int
    seed: int
    prompts: tuple[str, ...]
    queries: tuple[str, ...]
    labels: tuple[int, ...]
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class EpisodeFiles:
    """Where a pipeline's sampling files are."""

    episodes: Path
    sources: Path
    textures: Path
    auxiliary: Path
    objects: Path
    targets: Path
    rejected: Path
    near_duplicates: Path

    @classmethod
    def of(cls, folder: Path, pipeline: str) -> EpisodeFiles:
        names = ("sources", "textures", "auxiliary", "objects", "targets")
        tables = {name: folder / f"{pipeline}.{name}.parquet" for name in names}
        lists = {name: folder / f"{pipeline}.{name}.csv" for name in ("rejected", "near_duplicates")}
        return cls(episodes=folder / f"{pipeline}.parquet", **tables, **lists)


def read_episodes(path: Path) -> list[Episode]:
    rows = read_table(path, EPISODES, MADE_BY).to_pylist()
    lists = ("prompts", "queries", "labels", "own")
    return [Episode(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]


def protocols_of(path: Path) -> list[str]:
    """In the order of sampling's settings, which the episodes are in."""
    return list(dict.fromkeys(episode.protocol for episode in read_episodes(path)))


def read_pictures(path: Path) -> list[dict[str, Any]]:
    """The manifest rows of sources or targets."""
    return read_table(path, SCHEMA, MADE_BY).to_pylist()
