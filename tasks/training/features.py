"""Encode the pictures of pairs with a frozen encoder, and store its maps in a temporary file for later epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryFile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from changepair.tasks.encoders.encoder import Features
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.training.step import Batch


class EncodedPairs(Dataset[Batch]):
    """Change pairs whose pictures are replaced by a frozen encoder's maps (B, C, h, w), with channels last. The mask follows them.

    A pair that is read for the first time is encoded, and stored as long as the file has room. A map depends on its picture alone, so the
    room changes no result. The file has no name. The system deletes it when the process ends.
    """

    def __init__(self, pairs: ChangePairs, encode: Callable[[Tensor, Tensor], Features], folder: Path, room: int) -> None:
        """Set up the pairs. `encode` returns the maps of queries and prompts.

        `room` is the largest size in bytes of the file in `folder`. It is limited to a quarter of the free disk.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.pairs, self.encode = pairs, encode
        self.room = min(room, disk_usage(folder).free // 4)
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._places: dict[int, int] = {}  # of each stored pair in the file
        self._parts: list[_Part] = []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Batch:
        return tuple(part[0] for part in self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a batch, as `DataLoader` asks for it."""
        new = [index for index in indices if index not in self._places]
        encoded = dict(zip(new, self._encoded(new), strict=True)) if new else {}
        bytes_ = torch.stack([encoded[index] if index in encoded else self._read(index) for index in indices])
        columns = bytes_.split([part.size for part in self._parts], dim=1)
        batch = tuple(part.restored(column) for part, column in zip(self._parts, columns, strict=True))
        for index, pair in encoded.items():
            self._store(index, pair)
        return batch

    def _encoded(self, indices: Sequence[int]) -> Tensor:
        """Return the bytes of new pairs, (B, N)."""
        queries, prompts, mask = default_collate([self.pairs[index] for index in indices])
        tensors = [*(map_.permute(0, 2, 3, 1) for map_ in self.encode(queries, prompts)), mask]
        self._parts = [_Part(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors]
        return torch.cat([tensor.flatten(1).contiguous().view(torch.uint8) for tensor in tensors], dim=1)

    def _store(self, index: int, pair: Tensor) -> None:
        place = len(self._places) * len(pair)
        if place + len(pair) > self.room:
            return
        try:
            self._file.seek(place)
            written = self._file.write(pair.numpy().data)
        except OSError:
            written = 0
        if written == len(pair):
            self._places[index] = place
        else:
            self.room = 0  # the disk is full

    def _read(self, index: int) -> Tensor:
        pair = torch.empty(sum(part.size for part in self._parts), dtype=torch.uint8)
        self._file.seek(self._places[index])
        if self._file.readinto(pair.numpy().data) != len(pair):
            raise OSError("the temporary file of encoded pairs is shorter than what was written to it")
        return pair


class _Part(NamedTuple):
    """One tensor of a pair: a map (h, w, C), or the mask (H, W)."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def restored(self, column: Tensor) -> Tensor:
        """Convert bytes (B, N) to a batch of this tensor; maps to (B, C, h, w)."""
        tensor = column.clone(memory_format=torch.contiguous_format).view(self.dtype).unflatten(1, self.shape)
        return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
