"""Read change pairs from shards as tensors."""

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
from changepair.tasks.common.places import place_of
from changepair.tasks.synthesis.shards import INDEX_NAME, PairRow, ShardReader, read_index


class ChangePairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Change pairs as a torch dataset: query and prompt (3, H, W) in [0, 1], and mask (H, W) of 0 and 1, all float32.

    `folder` holds pairs.parquet and its shards; it is local or a URL such as s3://bucket/pairs. `resolution` is the side in pixels, and
    None keeps the size of the pairs. Pictures are resized bicubically, masks by nearest neighbour. `held_out` True selects the pairs to
    measure on, False those to train on, and None all. `masked` leaves out the pairs whose whole picture has changed, because they have no
    mask. `rows` selects rows of pairs.parquet instead. Raises BadInput if the index is missing.

        loader = DataLoader(ChangePairs("data/pairs/quickstart", 256), batch_size=8, shuffle=True)
    """

    def __init__(
        self,
        folder: str | Path,
        resolution: int | None = None,
        *,
        held_out: bool | None = None,
        masked: bool = False,
        rows: Sequence[PairRow] | None = None,
    ) -> None:
        self.folder = place_of(folder)
        selected = read_index(self.folder) if rows is None else rows
        self.rows = [
            row
            for row in selected
            if (held_out is None or row.held_out == held_out) and not (masked and row.changed and not row.changed_area)
        ]
        self.resolution = resolution
        self._shards: dict[str, ShardReader] = {}  # opened on first use, so that each worker process opens its own

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        key, name = self.rows[index].key, self.rows[index].shard
        if name not in self._shards:
            self._shards[name] = ShardReader(self.folder / name)
        files = (self._shards[name].read(f"{key}.{part}.png") for part in ("query", "prompt", "mask"))
        query, prompt, mask = (open_image(io.BytesIO(file)) for file in files)
        return self.tensors(query, prompt, mask)

    def tensors(self, query: Image.Image, prompt: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
        """Convert the pictures of a pair in the same way as those of the shards."""
        pictures = [self._sized(image, Image.Resampling.BICUBIC).permute(2, 0, 1).float().div_(255) for image in (query, prompt)]
        return pictures[0], pictures[1], (self._sized(mask, Image.Resampling.NEAREST) > 0).float()

    def _sized(self, image: Image.Image, resampling: Image.Resampling) -> Tensor:
        side = image.size if self.resolution is None else (self.resolution, self.resolution)
        return torch.from_numpy(np.array(image if image.size == side else image.resize(side, resampling)))


def hashes(folder: Path) -> dict[str, Any]:
    """Return the hashes of the index and of every shard."""
    shards = dict.fromkeys(row.shard for row in read_index(folder))
    return {"pairs": sha256(folder / INDEX_NAME), "shards": {shard: sha256(folder / shard) for shard in shards}}
