"""One at a time, between real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from processes import started, wait_until

from changepair.flows.running.locks import Held, holder, one_at_a_time
from changepair.flows.schedule.workspace import Workspace, prepare
from changepair.tasks.common.errors import BadInput

HOLD = """
import pathlib, sys, time
from changepair.flows.schedule.workspace import Workspace, prepare
from changepair.tasks.common.errors import BadInput
from changepair.flows.running.locks import one_at_a_time
with one_at_a_time("it", "work", folder=pathlib.Path(sys.argv[1]), wait=True, tell=print):
    time.sleep(60)
"""


def test_who_comes_second_is_refused_or_told_and_waits_and_death_frees(tmp_path: Path) -> None:
    file = tmp_path / "it.lock"
    with started(tmp_path, "python", "-c", HOLD, str(tmp_path), PYTHONPATH=str(ROOT)) as process:
        wait_until(lambda: file.exists() and holder(file), process=process, what="the lock")
        assert str(holder(file)).startswith(f"work (process {process.pid} on ")
        hold = one_at_a_time("it", "mine", folder=tmp_path, where=tmp_path / "clone", wait=False, tell=print)
        with pytest.raises(Held, match=rf"mine: another run is active in {tmp_path}/clone: work \(process .*\)$"), hold:
            raise AssertionError("two at once")
        messages: list[str] = []

        def kill(line: str) -> None:
            messages.append(line)
            os.kill(process.pid, signal.SIGKILL)

        with one_at_a_time("it", "mine", folder=tmp_path, wait=True, tell=kill):
            assert len(messages) == 1 and messages[0].endswith("waiting for it to end")
    assert holder(file) is None and holder(tmp_path / "none.lock") is None


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """Looking means taking the lock for a moment; here for as long as a slow machine might."""
    with (tmp_path / "it.lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        threading.Timer(0.03, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with one_at_a_time("it", "mine", folder=tmp_path, wait=False, tell=print):
            pass


def test_a_folder_that_stands_where_the_clone_would_is_refused_and_kept(tmp_path: Path) -> None:
    place = Workspace(tmp_path, "small", str(tmp_path / "origin.git"), "branch", None, 60)
    place.folder.mkdir()
    (place.folder / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="exists and is not a clone of changepair"):
        prepare(place, "main", print)
    assert (place.folder / "thesis.txt").read_text(encoding="utf-8") == "mine"
