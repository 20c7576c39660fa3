"""Ctrl-C and SIGTERM, sent as a terminal and systemd send them: to the run and to all that it started."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import TINY, commit, make_project, run
from processes import started, within
from servers import ask

pytestmark = pytest.mark.attack
RETRAIN = ("changepair", "retrain", "small")


@pytest.fixture(scope="module", autouse=True)
def heard() -> Iterator[None]:
    """A shell ignores Ctrl-C for what it starts in the background, these tests perhaps, and what a process ignores its children do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("signals") / "project", TINY)
    commit(folder)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project", symlinks=True))


def below(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


def at_work(project: Path) -> bool:
    """Tells whether a stage that can be stopped is at work: the first has been run."""
    return (project / "output.log").is_file() and "stage 2 of" in (project / "output.log").read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_with_a_server_of_its_own_ends_with_one_line_and_the_server_last(project: Path, number: signal.Signals, code: int) -> None:
    with started(project, *RETRAIN) as process:
        within(180, lambda: at_work(project), "a stage")
        assert any("changepair.flows.running.temporary" in " ".join(one.cmdline()) for one in below(process.pid))
        parts = below(process.pid)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == code
    assert not [part for part in parts if part.is_running() and part.status() != psutil.STATUS_ZOMBIE]
    output = (project / "output.log").read_text()
    assert "Traceback" not in output and output.count("changepair: stopped (") == 1, output
    assert output.splitlines()[-1].startswith("changepair: stopped (") and "the next run resumes from there" in output
    assert re.search(r"run 1, .*: Stopped: ", run(project, "changepair", "status").stdout)
    assert run(project, *RETRAIN).returncode == 0


@pytest.mark.slow
def test_a_run_that_is_stopped_is_stopped_in_the_ui_too(project: Path, api: str) -> None:
    with started(project, *RETRAIN, PREFECT_API_URL=api) as process:
        within(180, lambda: at_work(project), "a stage")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    others = (one for one in ask(api, "flow_runs") if one["name"] == "retrain small")  # other tests' among them, in whichever order
    retrain = max(others, key=lambda one: one["created"])
    assert (retrain["state"]["type"], retrain["state"]["name"]) == ("CANCELLED", "Stopped")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(project: Path) -> None:
    with started(project, *RETRAIN) as process:
        within(180, lambda: at_work(project), "a stage")
        within(60, lambda: any("changepair.flows.sample" in " ".join(part.cmdline()) for part in below(process.pid)), "the next stage")
        parts = below(process.pid)
        for part in parts:  # one that does not listen any more
            if "changepair.flows.running.temporary" not in " ".join(part.cmdline()):
                part.suspend()
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=10) == 130
    within(10, lambda: not any(part.is_running() and part.status() != psutil.STATUS_ZOMBIE for part in parts), "the end of all")
    assert "killed; the next run resumes" in (project / "output.log").read_text()


@pytest.mark.slow
def test_a_server_of_a_runs_own_ends_with_a_run_that_is_killed(project: Path) -> None:
    with started(project, *RETRAIN) as process:
        within(180, lambda: at_work(project), "a stage")
        [server] = [one for one in below(process.pid) if "changepair.flows.running.temporary" in " ".join(one.cmdline())]
        process.kill()
        within(30, lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server's end")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 1.0, 3.0])
def test_dvc_repro_ends_at_ctrl_c(project: Path, after: float) -> None:
    with started(project, "dvc", "repro") as process:
        log = project / "output.log"
        within(180, lambda: "Running stage 'sample_small'" in log.read_text(), "a stage")
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
    output = log.read_text()
    assert "Traceback" not in output and output.count("changepair: stop") <= 2, output


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["damaged", "a folder", "home is a file", "locked"])
def test_a_database_that_cannot_be_used_is_told_in_one_line(project: Path, tmp_path: Path, trouble: str) -> None:
    home = tmp_path / "prefect"
    if trouble == "home is a file":
        home.write_text("x")
    elif trouble == "a folder":
        (home / "prefect.db").mkdir(parents=True)
    elif trouble == "damaged":
        home.mkdir()
        (home / "prefect.db").write_bytes(b"no database " * 1000)
    else:
        import sqlite3

        home.mkdir()
        database = sqlite3.connect(home / "prefect.db")
        database.execute("CREATE TABLE x (y)")
        database.commit()
        database.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    result = run(project, *RETRAIN, PREFECT_HOME=str(home))
    took = time.monotonic() - start
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("changepair: ")]
    assert "cannot start a Prefect server for this run" in line and str(home) in line, line
    assert took < 30  # half of it on a machine that is not busy


COMMANDS = {
    "deploy": ("changepair", "deploy"),
    "inspect": ("changepair", "inspect", "folder", "parts"),
    "plan": ("changepair", "plan"),
    "retrain": RETRAIN,
    "serve": ("changepair", "serve"),
    "status": ("changepair", "status"),
    "ui": ("changepair", "ui", "--port", "48217"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_at_ctrl_c_without_a_traceback_wherever_it_is(project: Path, api: str, command: str) -> None:
    """In its imports, and in its work."""
    for number, after in enumerate((0.05, 0.3, 0.8, 1.5, 3.0)):
        with started(project, *COMMANDS[command], log=f"{number}.log", PREFECT_API_URL=api) as process:
            time.sleep(after)
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(timeout=60)
        output = (project / f"{number}.log").read_text()
        assert "Traceback" not in output and code in (0, 1, 2, 130, -signal.SIGINT), (after, code, output)


@pytest.mark.slow
def test_the_server_ends_at_ctrl_c_while_it_becomes_prefects_own(project: Path) -> None:
    """Python that has just begun ends in a traceback, unless the signal waits."""
    for number in range(12):
        with started(project, *COMMANDS["ui"], log=f"{number}.log") as process:
            file = project / f"{number}.log"
            within(30, lambda file=file: "for the prefect command" in file.read_text(), "its address")
            time.sleep(number * 0.01)
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(timeout=60)
        assert "Traceback" not in file.read_text() and code in (0, 130, -signal.SIGINT), (number, code, file.read_text())
