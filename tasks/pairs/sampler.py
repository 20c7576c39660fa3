"""Draw the order of pairs for a training: shuffled, divided among ranks, and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import Sampler

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.randomness import generator


class PairSampler(Sampler[int]):
    """Shuffled indices of `pairs` for one rank of a training, with any number of DataLoader workers.

    `rank` is from 0 to `ranks` - 1. In an epoch, no index comes twice, and each rank has the same number. Up to `ranks` - 1 indices are
    left out. The order depends only on `seed` and the epoch, not on `ranks`. Each iteration is an epoch, the first is 0.

    A DataLoader reads ahead, so the sampler cannot see which samples a training has used. `state_dict` takes their number.

        sampler = PairSampler(pairs, rank=rank, ranks=ranks)
        loader = DataLoader(pairs, batch_size=8, sampler=sampler, num_workers=4)
        state = sampler.state_dict(used=8 * batches)  # used by this rank in this epoch

    >>> sampler = PairSampler(range(10), rank=1, ranks=2)
    >>> first = list(sampler)
    >>> resumed = PairSampler(range(10), rank=1, ranks=2)
    >>> resumed.load_state_dict(PairSampler(range(10), ranks=2).state_dict(used=2))
    >>> list(resumed) == first[2:]
    True
    """

    def __init__(self, pairs: Sized, *, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank}: must be from 0 to {ranks - 1}")
        self.count, self.seed, self.rank, self.ranks = len(pairs), seed, rank, ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch at its start. Without a call, each new iteration begins the next epoch."""
        self.epoch, self._start, self._begun = epoch, 0, False

    def __len__(self) -> int:
        """Return the number of indices of this rank in the epoch, from where it was resumed."""
        return (self.count - self._start) // self.ranks

    def __iter__(self) -> Iterator[int]:
        if self._begun:
            self.set_epoch(self.epoch + 1)
        self._begun = True
        order = generator(self.seed, "order of pairs", self.epoch).permutation(self.count)[self._start :]
        return iter(order[self.rank :: self.ranks][: len(self)].tolist())

    def state_dict(self, used: int) -> dict[str, Any]:
        """Return the state after each rank has used `used` samples of the iteration that began last. All ranks have the same state."""
        if not 0 <= used <= len(self):
            raise ValueError(f"used {used}: must be from 0 to {len(self)}")
        return {"seed": self.seed, "count": self.count, "epoch": self.epoch, "start": self._start + used * self.ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, also with another number of ranks. Raises BadInput if it is of other pairs or another seed."""
        for name, own in (("count", self.count), ("seed", self.seed)):
            if state[name] != own:
                raise BadInput(f"state of the sampler: its {name} is {state[name]}, not {own}; use the same pairs and seed to resume")
        self.set_epoch(state["epoch"])
        self._start = state["start"]
        if not len(self):
            self.set_epoch(self.epoch + 1)
