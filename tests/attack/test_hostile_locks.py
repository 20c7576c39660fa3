"""Locks that a killed Git left in a workspace: in each place that Git has them, the next run removes them or names the file."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from processes import kill_group, wait_until
from repositories import repository
from team import git

from changepair.flows.schedule import commands
from changepair.flows.schedule.workspace import Workspace, commit_results, prepare, send_results
from changepair.tasks.common.errors import BadInput

pytestmark = pytest.mark.attack
LOCKS = (
    "index.lock",
    "HEAD.lock",
    "config.lock",
    "packed-refs.lock",
    "shallow.lock",
    "refs/heads/changepair/small.lock",
    "refs/remotes/origin/main.lock",
    "refs/remotes/origin/changepair/small.lock",
    "refs/tags/small@v0.0.1.lock",
    "refs/tags/changepair/small/1.lock",
)


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace in which a run has worked."""
    place = Workspace(tmp_path / "workspaces", "small", str(repository(tmp_path / "origin", "ours: 1")), "branch", None, 60)
    work(place, "first")
    return place


def work(place: Workspace, metric: str) -> list[str]:
    told: list[str] = []
    revision = prepare(place, "main", told.append)
    file = place.folder / "data/metric"
    file.parent.mkdir(exist_ok=True)
    file.write_text(metric)
    commit_results(place, revision, metric, promoted=True)
    send_results(place)
    return told


def planted(place: Workspace, lock: str, *, age: float = 3600) -> Path:
    file = place.folder / ".git" / lock
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.mark.parametrize("lock", LOCKS)
def test_a_stale_lock_is_removed_and_the_run_ends_as_without_it(place: Workspace, lock: str) -> None:
    file = planted(place, lock)
    git(Path(place.repository), "branch", "new", "main")  # so that a fetch has something to write
    assert f"{file}: removed the lock of a killed Git process" in work(place, "second")
    assert not file.exists() and git(Path(place.repository), "log", "-1", "--format=%s", "changepair/small") == "second"


def test_a_young_lock_is_awaited(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "STALE_AFTER", 2.0)
    planted(place, "index.lock", age=0)
    start = time.monotonic()
    work(place, "second")
    assert 1.5 < time.monotonic() - start < 10


def test_a_lock_that_a_git_at_work_holds_is_named(place: Workspace) -> None:
    """A real `git commit` that waits for its editor holds the index."""
    (place.folder / "data/metric").write_text("third")
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--all"]
    editor = {**os.environ, "GIT_EDITOR": "sleep 600 #"}
    git(place.folder, "add", "data/metric")
    process = subprocess.Popen(command, cwd=place.folder, env=editor, start_new_session=True, stderr=subprocess.DEVNULL)
    lock = place.folder / ".git/index.lock"
    try:
        wait_until(lock.exists, process=process, what="the lock")
        os.utime(lock, (time.time() - 3600,) * 2)
        with pytest.raises(BadInput, match=rf"^{lock}: Git is running there \(process {process.pid}\) and holds this lock"):
            prepare(place, "main", print)
        assert lock.exists()
    finally:
        kill_group(process)  # type: ignore[arg-type]
    assert lock.exists()  # as the kill left it
    work(place, "second")
    assert not lock.exists()
