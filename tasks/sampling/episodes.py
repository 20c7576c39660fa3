"""The files sampling writes and training and evaluation read.

data/episodes/<pipeline>.parquet           one row an episode (EPISODES)
data/episodes/<pipeline>.sources.parquet   the normal pictures to make pairs from (rows of the manifests)
data/episodes/<pipeline>.textures.parquet  the pictures that DRAEM's textures are cut from (rows of the manifests)
data/episodes/<pipeline>.auxiliary.parquet the labelled pictures to train on, if any (rows of the manifests)
data/episodes/<pipeline>.objects.parquet   where the sources' objects are, as far as anyone said (rows of tasks.ingestion.objects)
data/episodes/<pipeline>.targets.parquet   the target pictures the episodes name (rows of the manifests)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.files import read_table
from tasks.ingestion.manifest import SCHEMA

MADE_BY = "sample"

EPISODES = pa.schema(
    [
        pa.field("target", pa.string(), nullable=False),  # a dataset
        pa.field("category", pa.string(), nullable=False),  # of the queries
        pa.field("protocol", pa.string(), nullable=False),  # class-specific or class-agnostic
        pa.field("shots", pa.int32(), nullable=False),  # normal prompts a category
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("prompts", pa.list_(pa.string()), nullable=False),  # images; class-agnostic: of all categories
        # Images, shuffled so that the first n are a random subset with the labels in the same shares: a slow detector scores
        # those. The same order in every episode of a category.
        pa.field("queries", pa.list_(pa.string()), nullable=False),
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


@dataclass(frozen=True)
class EpisodeFiles:
    """Where a pipeline's sampling files are."""

    episodes: Path
    sources: Path
    textures: Path
    auxiliary: Path
    objects: Path
    targets: Path

    @classmethod
    def of(cls, folder: Path, pipeline: str) -> EpisodeFiles:
        parts = (folder / f"{pipeline}.{part}.parquet" for part in ("sources", "textures", "auxiliary", "objects", "targets"))
        return cls(folder / f"{pipeline}.parquet", *parts)


def read_episodes(path: Path) -> list[Episode]:
    rows = read_table(path, EPISODES, MADE_BY).to_pylist()
    return [Episode(**{**row, "prompts": tuple(row["prompts"]), "queries": tuple(row["queries"])}) for row in rows]


def read_pictures(path: Path) -> list[dict[str, Any]]:
    """The manifest rows of sources or targets."""
    return read_table(path, SCHEMA, MADE_BY).to_pylist()
