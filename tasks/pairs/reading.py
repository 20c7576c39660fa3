"""Read finished pairs as stored files and as arrays: the folder of the index `pairs.parquet` and its shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.pictures import Mask, Picture, open_image
from changepair.tasks.common.places import place_of
from changepair.tasks.synthesis.shards import INDEX_NAME, PairRow, ShardReader, read_index

PARTS = ("query", "prompt", "mask")
TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
SAME = ("none", "distractor")
"""Kinds of pairs in which nothing has changed. The whole picture has changed in a pair of another kind without a mask."""


@dataclass(frozen=True)
class StoredPair:
    """A pair as stored: its row of the index, and its PNG files as bytes."""

    row: PairRow
    query: bytes
    prompt: bytes
    mask: bytes

    @cached_property
    def arrays(self) -> tuple[Picture, Picture, Mask]:
        """Query and prompt (H, W, 3) uint8 RGB, and mask (H, W) bool."""
        query, prompt, mask = (np.asarray(open_image(io.BytesIO(file))) for file in (self.query, self.prompt, self.mask))
        return query, prompt, mask > 0


class PairsFolder:
    """A folder of finished pairs, local or in a store. Raises BadInput if its index is missing, empty or of another version."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = place_of(folder)
        if not (self.folder / INDEX_NAME).is_file():
            raise BadInput(f"{self.folder}: is no folder of finished pairs, because it has no {INDEX_NAME}")
        self.rows = read_index(self.folder)
        if not self.rows:
            raise BadInput(f"{self.folder / INDEX_NAME}: lists no pair")

    @property
    def name(self) -> str:
        return self.folder.name or self.folder.resolve().name

    @property
    def kinds(self) -> list[str]:
        return sorted({row.kind for row in self.rows})

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in the order of the index."""
        return list(dict.fromkeys(row.shard for row in self.rows))

    def read(self, rows: Iterable[PairRow] | None = None) -> Iterator[StoredPair]:
        """Read pairs in the order of `rows`; None reads all. Raises BadInput if a shard or a file in it is missing or damaged."""
        name, reader = "", None
        for row in self.rows if rows is None else rows:
            if reader is None or row.shard != name:
                name, reader = row.shard, open_shard(self.folder / row.shard)
            try:
                yield StoredPair(row, *(reader.read(f"{row.key}.{part}.png") for part in PARTS))
            except KeyError as error:
                raise BadInput(
                    f"{self.folder / name}: has {in_short(error)}, which the index lists; copy or make the pairs again"
                ) from error


def open_shard(path: Path) -> ShardReader:
    """Open a shard. Raises BadInput if it is missing or damaged."""
    try:
        return ShardReader(path)
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{path}: cannot be read ({in_short(error)}); copy or make the pairs again") from error


def split_of(row: PairRow) -> str:
    """Return the split of a pair: the held-out pairs are the validation split."""
    return VALIDATION if row.held_out else TRAIN


def spread(rows: list[PairRow], count: int) -> list[PairRow]:
    """Select at most `count` rows, evenly spread over the list and in its order."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
