"""The order of pairs in a training: each once, divided among ranks, and resumed where the training stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from changepair import ChangePairs, PairSampler
from changepair.tasks.common.errors import BadInput


@given(count=st.integers(0, 60), ranks=st.integers(1, 7), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_ranks_share_an_epoch_evenly(count: int, ranks: int, seed: int, epoch: int) -> None:
    drawn: list[int] = []
    for rank in range(ranks):
        sampler = PairSampler(range(count), seed=seed, rank=rank, ranks=ranks)
        sampler.set_epoch(epoch)
        part = list(sampler)
        assert len(part) == len(sampler) == count // ranks
        drawn += part
    assert len(set(drawn)) == len(drawn) == count - count % ranks and set(drawn) <= set(range(count))


@given(count=st.integers(1, 60), before=st.integers(1, 5), after=st.integers(1, 5), data=st.data())
def test_a_resumed_epoch_has_what_was_left_with_any_ranks(count: int, before: int, after: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(0, count // before))
    samplers = [PairSampler(range(count), rank=rank, ranks=before) for rank in range(before)]
    seen = [index for sampler in samplers for index in list(sampler)[:used]]
    state = samplers[0].state_dict(used)
    assert all(sampler.state_dict(used) == state for sampler in samplers)
    left = (count - used * before) // after
    resumed = []
    for rank in range(after):
        sampler = PairSampler(range(count), rank=rank, ranks=after)
        sampler.load_state_dict(state)
        resumed += list(sampler)
        assert sampler.epoch == (0 if left else 1)
    if left:
        assert len(resumed) == left * after and not set(seen) & set(resumed)


def test_each_iteration_is_an_epoch_in_another_order() -> None:
    sampler = PairSampler(range(50))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    sampler.set_epoch(0)
    assert list(sampler) == first and list(sampler) == second


def test_a_training_with_workers_resumes_after_the_batches_that_it_used(small_pairs: Path) -> None:
    pairs = ChangePairs(small_pairs, held_out=False)

    def batches(sampler: PairSampler, workers: int) -> list[torch.Tensor]:
        return [query for query, _prompt, _mask in DataLoader(pairs, batch_size=3, sampler=sampler, num_workers=workers)]

    whole = batches(PairSampler(pairs, seed=1), 0)
    sampler = PairSampler(pairs, seed=1)
    loader = iter(DataLoader(pairs, batch_size=3, sampler=sampler, num_workers=2, prefetch_factor=3))  # reads ahead to the end
    begun = [next(loader)[0] for _batch in range(2)]
    state = sampler.state_dict(used=6)
    del loader
    resumed = PairSampler(pairs, seed=1)
    resumed.load_state_dict(state)
    assert len(resumed) == 11
    rest = batches(resumed, 2)
    assert all(torch.equal(one, two) for one, two in zip([*begun, *rest], whole, strict=True))


def test_a_state_of_other_pairs_is_refused() -> None:
    state = PairSampler(range(10)).state_dict(used=4)
    with pytest.raises(BadInput, match="its count is 10, not 11"):
        PairSampler(range(11)).load_state_dict(state)
    with pytest.raises(BadInput, match="its seed is 0, not 2"):
        PairSampler(range(10), seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="used 11: must be from 0 to 10"):
        PairSampler(range(10)).state_dict(used=11)
    with pytest.raises(ValueError, match="rank 2: must be from 0 to 1"):
        PairSampler(range(10), rank=2, ranks=2)
