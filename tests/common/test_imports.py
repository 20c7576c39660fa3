"""Imports without garbage collection."""

from __future__ import annotations

import gc

import pytest

from changepair.tasks.common.imports import uncollected


def test_the_collector_pauses_and_leaves_what_exists_out_afterwards() -> None:
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        made = [[] for _ in range(10_000)]  # type: ignore[var-annotated]
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(made)
    gc.unfreeze()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        before = gc.get_freeze_count()
        with uncollected():
            pass
        assert not gc.isenabled() and gc.get_freeze_count() == before
    finally:
        gc.enable()
