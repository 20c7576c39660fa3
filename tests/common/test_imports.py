"""Imports without garbage collection."""

from __future__ import annotations

import gc

import pytest

from changepair.tasks.common.imports import uncollected


def test_the_collector_pauses_and_leaves_what_exists_out_afterwards() -> None:
    before = gc.get_freeze_count()
    with uncollected(freeze=True):
        assert not gc.isenabled()
        made = [[] for _ in range(10_000)]  # type: ignore[var-annotated]
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(made)
    gc.unfreeze()
    with pytest.raises(ImportError), uncollected(freeze=True):
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


def test_nothing_is_left_out_in_a_process_of_somebody_else() -> None:
    before = gc.get_freeze_count()
    with uncollected(freeze=False):
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == before


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        before = gc.get_freeze_count()
        with uncollected(freeze=True):
            pass
        assert not gc.isenabled() and gc.get_freeze_count() == before
    finally:
        gc.enable()
