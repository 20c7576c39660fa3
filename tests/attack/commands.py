"""Runs a command as a shell would, without importing all anew: a process that has imported, and computed nothing, forks for each.

Not the tests' own process: what forks from one in which torch has computed waits for threads that it does not have.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path

from changepair.flows.cli import main

LATEST = 60  # seconds


def told(command: list[str]) -> tuple[int, str]:
    """Runs a command in this folder and environment; gives its exit code, a signal's number below 0, and what it told."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["changepair.flows.cli", "changepair.tasks.prediction.predictor"])  # torch takes seconds
    file = Path("told.txt").absolute()
    process = context.Process(target=_run, args=(command, str(Path.cwd()), dict(os.environ), file))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, file.read_text(encoding="utf-8", errors="replace")


def _run(command: list[str], folder: str, environment: dict[str, str], file: Path) -> None:
    code = 70
    try:
        signal.alarm(LATEST)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
        sys.argv = ["changepair", *command]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 71
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
