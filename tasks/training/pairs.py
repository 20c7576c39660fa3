"""Reads change pairs from shards as tensors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from changepair.tasks.common.files import sha256
from changepair.tasks.common.pictures import open_image
from changepair.tasks.synthesis.shards import INDEX_NAME, PairRow, ShardReader, read_index


class Pairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The pairs of some rows of pairs.parquet: query and prompt 3xHxW in [0, 1], mask HxW of 0 and 1, all float32.

    resolution: pixels a side; pairs made at another size are resized (masks by nearest neighbour).
    """

    def __init__(self, folder: Path, rows: Sequence[PairRow], resolution: int) -> None:
        self.folder = folder
        self.rows = list(rows)
        self.resolution = resolution
        self._shards: dict[str, ShardReader] = {}  # opened on first use, so that a worker process opens its own

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        key, name = self.rows[index].key, self.rows[index].shard
        if name not in self._shards:
            self._shards[name] = ShardReader(self.folder / name)
        files = (self._shards[name].read(f"{key}.{part}.png") for part in ("query", "prompt", "mask"))
        query, prompt, mask = (open_image(io.BytesIO(file)) for file in files)
        return self._picture(query), self._picture(prompt), self._mask(mask)

    def _picture(self, image: Image.Image) -> Tensor:
        sized = self._sized(image, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(sized)).permute(2, 0, 1).float().div_(255)

    def _mask(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(self._sized(image, Image.Resampling.NEAREST)) > 0).float()

    def _sized(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        side = (self.resolution, self.resolution)
        return image if image.size == side else image.resize(side, resampling)


def split_pairs(folder: Path) -> tuple[list[PairRow], list[PairRow]]:
    """Gives the rows of pairs.parquet to train on, and those to measure on, made of other photographs."""
    rows = read_index(folder)
    return [row for row in rows if not row.held_out], [row for row in rows if row.held_out]


def hashes(folder: Path) -> dict[str, Any]:
    """Gives the fingerprints of the index and of every shard."""
    shards = dict.fromkeys(row.shard for row in read_index(folder))
    return {"pairs": sha256(folder / INDEX_NAME), "shards": {shard: sha256(folder / shard) for shard in shards}}
