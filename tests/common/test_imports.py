"""Imports without garbage collection."""

from __future__ import annotations

import gc

import pytest

from changepair.tasks.common.imports import uncollected


def test_collection_pauses_and_later_skips_existing_objects() -> None:
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


def test_no_object_is_skipped_without_freeze() -> None:
    before = gc.get_freeze_count()
    with uncollected(freeze=False):
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == before


def test_disabled_collection_stays_disabled() -> None:
    gc.disable()
    try:
        before = gc.get_freeze_count()
        with uncollected(freeze=True):
            pass
        assert not gc.isenabled() and gc.get_freeze_count() == before
    finally:
        gc.enable()
