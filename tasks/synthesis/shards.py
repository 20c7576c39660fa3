"""Define the shards, their index and their overview. Synthesis writes them, and training reads them.

    data/pairs/<pipeline>/00000.tar, …     the shards
    data/pairs/<pipeline>/pairs.parquet    one row a pair
    data/pairs/<pipeline>/overview/        a contact sheet a kind, and kinds.csv, changed_area.csv, drops.csv

A shard is a WebDataset tar of `<key>.query.png`, `<key>.prompt.png`, `<key>.mask.png` and `<key>.json`. Its bytes depend only on its pairs.
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
    key: str  # name of the sample in its shard
    shard: str  # file name, next to the index
    kind: str
    method: str  # inpainted, pasted, perlin, drawn or unchanged
    source: str  # path of the photograph
    seed: int
    index: int  # seed, index and draw determine the pair
    draw: Int32  # number of earlier draws that were dropped
    changed: bool  # whether prompt and query differ; a change of the whole picture has no changed area
    changed_area: float  # share of the query, 0 to 1
    swapped: bool  # whether prompt and query changed roles
    held_out: bool  # for measuring; its photographs are in no other pairs


@dataclass(frozen=True)
class Pair:
    """Query and prompt (H, W, 3) uint8 RGB, and the bool mask (H, W) of their difference, on the query's grid."""

    index: int
    kind: str
    method: str  # inpainted, pasted, perlin, drawn or unchanged
    source: str  # path of the photograph
    draw: int  # number of earlier draws that were dropped
    query: Picture
    prompt: Picture
    mask: Mask
    changed: bool = True
    swapped: bool = False
    held_out: bool = False


class Drop(NamedTuple):
    """The reason for a dropped draw."""

    kind: str
    method: str
    reason: str


def write_shard(path: Path, pairs: Iterable[Pair], seed: int) -> list[PairRow]:
    """Write one shard. Return its rows of the index."""
    import webdataset as wds  # here, because it imports torch, which readers of the index do not need

    rows = []
    with written_beside(path) as partial, wds.TarWriter(str(partial), user="", group="", mode=0o644, mtime=0) as shard:
        for pair in pairs:
            key, area = f"{pair.index:08d}", float(pair.mask.mean())
            origin = (pair.kind, pair.method, pair.source, seed, pair.index, pair.draw)
            row = PairRow(key, path.name, *origin, pair.changed, area, pair.swapped, pair.held_out)
            sample = {"query.png": png(pair.query), "prompt.png": png(pair.prompt), "mask.png": png(pair.mask)}
            shard.write({"__key__": row.key, **sample, "json": json.dumps(asdict(row), sort_keys=True).encode()})
            rows.append(row)
    return rows


def read_index(folder: Path) -> list[PairRow]:
    return read_rows(folder / INDEX_NAME, PairRow, MADE_BY)


class ShardReader:
    """Reads single files of a shard, by their position in the tar."""

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
