"""Select the change pairs that a training learns from: those of the shards, or new ones in each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from changepair.tasks.common.files import sha256
from changepair.tasks.common.places import is_remote, state_of
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.pair import Maker, recipe
from changepair.tasks.synthesis.shards import INDEX_NAME, PairRow, read_index


class FreshPairs:
    """Pairs that every epoch has of its own: epoch e learns from the pairs numbered e·n on, of n that the synthesis made, each made when
    it is asked for, as the synthesis would make it. What an inpainting model paints takes too long: of such the shards' are taken.
    """

    def __init__(self, made: ChangePairs, maker: Maker) -> None:
        """made: the pairs to learn from, as the shards hold them. maker: of what they were made."""
        self.made = made
        self.maker = maker
        self.painted = [place for place, row in enumerate(made.rows) if recipe(maker.settings, row.index).repaints]

    def of(self, epoch: int) -> Dataset[tuple[Tensor, Tensor, Tensor]]:
        """Gives the pairs of an epoch, as `ChangePairs` does; of the first those of the shards."""
        return self.made if epoch == 0 else _Epoch(self, epoch)


class _Epoch(Dataset[tuple[Tensor, Tensor, Tensor]]):
    def __init__(self, pairs: FreshPairs, epoch: int) -> None:
        self.pairs = pairs
        self.first = epoch * pairs.maker.settings.pairs

    def __len__(self) -> int:
        return len(self.pairs.made)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        made, painted = self.pairs.made, self.pairs.painted
        number = self.first + made.rows[index].index
        if recipe(self.pairs.maker.settings, number).repaints:
            return made[painted[number % len(painted)] if painted else index]
        [pair] = self.pairs.maker.make([number])
        return made.tensors(Image.fromarray(pair.query), Image.fromarray(pair.prompt), Image.fromarray(pair.mask))


def split_pairs(folder: Path) -> tuple[list[PairRow], list[PairRow]]:
    """Gives the rows of pairs.parquet to train on, and those to measure on, made of other photographs."""
    rows = read_index(folder)
    return [row for row in rows if not row.held_out], [row for row in rows if row.held_out]


def hashes(folder: Path) -> dict[str, Any]:
    """Gives the fingerprints of the index and of every shard."""
    shards = dict.fromkeys(row.shard for row in read_index(folder))
    of_shard = state_of if is_remote(folder) else sha256  # a store knows when a file changes; here it is as quick to read it
    return {"pairs": sha256(folder / INDEX_NAME), "shards": {shard: of_shard(folder / shard) for shard in shards}}
