"""Synthesis in steps that can run anywhere, in any order: plan the shards, make each, write the index and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.files import write_table
from tasks.sampling.episodes import read_pictures
from tasks.synthesis.pair import make_pair
from tasks.synthesis.settings import SynthesisSettings
from tasks.synthesis.shards import INDEX, INDEX_NAME, shard_name, write_shard
from tasks.synthesis.sources import Sources


def source_images(sources_file: Path) -> list[str]:
    """The photographs' paths, in the order of the file that sampling wrote."""
    return [row["image"] for row in read_pictures(sources_file)]


def shard_count(settings: SynthesisSettings) -> int:
    return -(-settings.pairs // settings.pairs_per_shard)


def make_shard(settings: SynthesisSettings, images: Sequence[str], number: int, folder: Path) -> list[dict[str, Any]]:
    """Makes shard `number` in `folder` and gives its rows of the index. The same bytes wherever it runs."""
    sources = Sources(images, settings.crop, settings.resolution)
    first = number * settings.pairs_per_shard
    last = min(first + settings.pairs_per_shard, settings.pairs)
    pairs = (make_pair(settings, sources, index) for index in range(first, last))
    return write_shard(folder / shard_name(number), pairs, settings.seed)


def write_index(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes pairs.parquet, in the order of the pairs' numbers."""
    ordered = sorted(rows, key=lambda row: row["index"])
    write_table(folder / INDEX_NAME, pa.Table.from_pylist(ordered, schema=INDEX))
