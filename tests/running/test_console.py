"""What a run says while it runs: how much of the whole is done, and which of its libraries' lines are news."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dvc.exceptions import DvcException

from changepair.flows.running import progress
from changepair.flows.running.console import VOLUME, Volume, set_volume
from changepair.flows.running.dvc import reproduce
from changepair.flows.running.exit_handling import exit_on_bad_input
from changepair.flows.running.provenance import locked
from changepair.flows.runs.states import StageState
from changepair.flows.runs.status import ProgressDisplay
from changepair.tasks.common.errors import BadInput

ROOT = Path(__file__).parents[2]


def test_a_stage_that_ran_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    milestones = ProgressDisplay(["code", "train_small", "report_small"])
    milestones.ended("code", StageState.UP_TO_DATE, 0.2)
    milestones.ended("train_small", StageState.RAN, 95.6)
    milestones.ended("report_small", StageState.RAN, 2.2)
    assert capsys.readouterr().out.splitlines() == ["stage 2 of 3: train small, 96 s", "stage 3 of 3: report small, 2 s"]


@pytest.mark.parametrize(("volume", "hidden"), [(Volume.QUIET, True), (Volume.NORMAL, True), (Volume.VERBOSE, False)])
def test_a_log_has_no_progress_bars_unless_it_is_asked_for_all(volume: Volume, hidden: bool) -> None:
    program = "from changepair.flows.running.console import hide_bars; hide_bars(); from tqdm import tqdm; list(tqdm(range(3)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env={**os.environ, VOLUME: volume})
    assert done.returncode == 0 and ("3/3" not in done.stderr) == hidden


def test_a_process_tells_the_run_that_started_it_why_it_fails_and_prints_it_where_none_did(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BadInput("parts: no pictures at https://name:secret@host/parts")  # pragma: allowlist secret

    with progress.listening():
        with pytest.raises(SystemExit):
            exit_on_bad_input(fail)
        assert "parts: no pictures at" in progress.told().failure and "secret" not in progress.told().failure
        assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        exit_on_bad_input(fail)
    assert "parts: no pictures at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("volume", "shown"),
    [
        (Volume.QUIET, ["the disk is slow to death"]),
        (
            Volume.NORMAL,
            ["waiting for it to end", "Task run failed with exception: OSError() - Retry 1/2 will start", "the disk is slow to death"],
        ),
    ],
)
def test_what_prefect_says_is_shown_where_the_run_does_not_say_it_itself(
    volume: Volume, shown: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    monkeypatch.setenv(VOLUME, os.environ.get(VOLUME, Volume.NORMAL))
    stream = io.StringIO()
    handler, logger = PrefectConsoleHandler(stream=stream), logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger.name)
    try:
        set_volume(volume)
        logger.info("Beginning flow run 'retrain small'")
        logger.warning("waiting for it to end")
        logger.warning("small: Kept: it may be worse", extra={"changepair_said": True})
        logger.info("Task run failed with exception: OSError() - Retry 1/2 will start")
        logger.error("Finished in state Failed('…')")
        try:
            raise BadInput("no pictures")
        except BadInput:
            logger.exception("Encountered exception during execution: no pictures")
        logger.error("the disk is slow to death")
    finally:
        logger.removeHandler(handler)
    assert [line.strip() for line in stream.getvalue().splitlines()] == shown


SAYING = (
    "from changepair.flows.running.exit_handling import exit_on_bad_input as run; run(lambda: print('90.1 \u00b1 0.3, \u00ab\u732b\u00bb'))"
)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_is_said_ends_no_run_in_a_terminal_that_has_no_letters_for_it(encoding: str) -> None:
    said = subprocess.run([sys.executable, "-c", SAYING], capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert said.returncode == 0 and b"90.1" in said.stdout, said.stderr


def test_whoever_is_at_fault_it_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that this user may not read, DVC's own errors, a merge that was left in dvc.lock."""
    monkeypatch.chdir(tmp_path)

    def merged() -> None:
        (tmp_path / "dvc.lock").write_text("schema: 2\n<<<<<<< ours\na: 1\n=======\na: 2\n>>>>>>> theirs\n")
        locked()

    def forbidden() -> None:
        raise PermissionError(13, "Permission denied", "/srv/x")

    def of_dvc() -> None:
        raise DvcException("its cache is gone")

    for work, line in (
        (merged, "dvc.lock: invalid YAML in line 3: .*git checkout --ours dvc.lock"),
        (forbidden, "/srv/x: Permission denied; change its permissions"),
        (of_dvc, "DVC: its cache is gone"),
    ):
        with pytest.raises(SystemExit) as ended:
            exit_on_bad_input(work)
        assert ended.value.code == 2
        assert re.fullmatch(f"changepair: {line}.*\n", capsys.readouterr().err)


def test_a_stage_waits_while_another_dvc_holds_the_checkout_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC's own lock of a real repository is held, and given back."""
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo 1 > one, outs: [one]}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("changepair.flows.running.dvc.POLL", 0.1)
    held = tmp_path / ".dvc/tmp/rwlock"
    held.parent.mkdir(exist_ok=True)
    writer = {"write": {str(tmp_path / "one"): {"pid": os.getppid(), "cmd": "dvc repro"}}, "read": {}}
    held.write_text(json.dumps(writer), encoding="utf-8")
    threading.Timer(2.0, lambda: held.write_text("{}", encoding="utf-8")).start()
    start = time.monotonic()
    assert reproduce("one") and time.monotonic() - start > 1.5
    assert capsys.readouterr().err.count("waiting for another DVC process in this checkout") == 1
