"""Define the shards, their index and their overview. Synthesis writes them, and training reads them.

data/pairs/<pipeline>/00000.tar, …     the shards
data/pairs/<pipeline>/pairs.parquet    one row a pair
data/pairs/<pipeline>/overview/        a contact sheet a kind, and kinds.csv, changed_area.csv, drops.csv

A shard is a WebDataset tar of `<key>.query.png`, `<key>.prompt.png`, `<key>.mask.png`, `<key>.json`. Its bytes depend on its pairs alone.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from changepair.tasks.common.files import written_beside
from changepair.tasks.common.pictures import Mask, Picture, png
from changepair.tasks.common.rows import Int32, read_rows

MADE_BY = "synthesize"
INDEX_NAME = "pairs.parquet"
OVERVIEW_NAME = "overview"


@dataclass(frozen=True)
class PairRow:
    key: str  # of the sample in its shard
    shard: str  # file name beside the index
    kind: str
    method: str  # how: inpainted, pasted, perlin, unchanged
    source: str  # the photograph's path
    seed: int
    index: int  # with the seed and the draw, all that the pair was drawn from
    draw: Int32  # 0 but where earlier draws were dropped
    changed_area: float  # share of the query, 0..1
    swapped: bool  # whether prompt and query changed roles
    held_out: bool  # to measure on; made of photographs that no other pair is made of


@dataclass(frozen=True)
class Pair:
    """Query and prompt HxWx3 uint8 RGB; mask HxW bool, on the query's grid, of what differs."""

    index: int
    kind: str
    method: str  # how it was made
    source: str  # the photograph's path
    draw: int  # how many draws before it were dropped
    query: Picture
    prompt: Picture
    mask: Mask
    swapped: bool = False
    held_out: bool = False


class Drop(NamedTuple):
    """The reason of a dropped draw."""

    kind: str
    method: str
    reason: str


def write_shard(path: Path, pairs: Iterable[Pair], seed: int) -> list[PairRow]:
    """Write one shard. Return its rows of the index."""
    import webdataset as wds  # it brings torch, which who reads an index does not wait for

    rows = []
    with written_beside(path) as partial, wds.TarWriter(str(partial), user="", group="", mode=0o644, mtime=0) as shard:
        for pair in pairs:
            key, area = f"{pair.index:08d}", float(pair.mask.mean())
            row = PairRow(
                key, path.name, pair.kind, pair.method, pair.source, seed, pair.index, pair.draw, area, pair.swapped, pair.held_out
            )
            sample = {"query.png": png(pair.query), "prompt.png": png(pair.prompt), "mask.png": png(pair.mask)}
            shard.write({"__key__": row.key, **sample, "json": json.dumps(asdict(row), sort_keys=True).encode()})
            rows.append(row)
    return rows


def read_index(folder: Path) -> list[PairRow]:
    return read_rows(folder / INDEX_NAME, PairRow, MADE_BY)


class ShardReader:
    """Reads single files of a shard, by their place in the tar."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream, tarfile.open(fileobj=stream) as tar:
            self._place = {member.name: (member.offset_data, member.size) for member in tar}

    def read(self, name: str) -> bytes:
        """Read the bytes of a file, for example `00000017.query.png`."""
        offset, size = self._place[name]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
