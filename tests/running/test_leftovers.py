"""No process of a run outlives it, however it ends: no server of its own, no stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from conftest import TINY, make_project, run
from processes import started, within

MARK = "CHANGEPAIR_TEST_MARK"
LATER = """
import threading
from changepair.flows.running.api import one_api
from prefect.settings import PREFECT_API_URL
with one_api():
    inside = PREFECT_API_URL.value()
seen = []
thread = threading.Thread(target=lambda: seen.append(PREFECT_API_URL.value()))
thread.start()
thread.join()
assert inside and seen == [inside], (inside, seen)
"""


def left(mark: str) -> list[str]:
    """List the commands of the processes that inherited a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_threads_that_prefect_starts_at_a_runs_end_know_its_server() -> None:
    """One that knows none starts a server, which nobody ends."""
    variables = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    mark = uuid.uuid4().hex
    subprocess.run([sys.executable, "-c", LATER], check=True, env={**variables, MARK: mark}, timeout=120)
    within(10, lambda: not left(mark), "the end of the server")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("left") / "project", TINY)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_stage_by_dvc_alone_leaves_nothing(project: Path, number: int) -> None:
    mark = uuid.uuid4().hex
    result = run(project, "dvc", "repro", "--force", "ingest_parts", PREFECT_LOGGING_LEVEL="INFO", **{MARK: mark})
    assert result.returncode == 0, result.stderr
    time.sleep(1)
    assert left(mark) == []


@pytest.mark.slow
def test_a_stage_that_fails_leaves_nothing(project: Path) -> None:
    mark = uuid.uuid4().hex
    assert run(project, "python", "-m", "changepair.flows.ingest", "no-such-dataset", **{MARK: mark}).returncode == 2
    time.sleep(1)
    assert left(mark) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_that_is_killed_leaves_nothing(project: Path, number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    with started(project, "python", "-m", "changepair.flows.ingest", "parts", **{MARK: mark}) as process:
        within(60, lambda: any("changepair.flows.running.temporary" in command for command in left(mark)), "its server")
        time.sleep(3)
        process.send_signal(number)
        process.wait(timeout=60)
        within(30, lambda: not left(mark), "the end of all")


@pytest.mark.slow
def test_a_retrain_leaves_nothing(project: Path) -> None:
    mark = uuid.uuid4().hex
    result = run(project, "changepair", "retrain", "small", **{MARK: mark})
    assert result.returncode == 0, result.stderr
    time.sleep(1)
    assert left(mark) == []
