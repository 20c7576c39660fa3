"""A checkout, and a home, that a user may read and not write: every command answers, or says in one line what it may not write."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, commit, make_project, run

COMMANDS = (
    "status",
    "plan",
    "retrain small",
    "retrain small --dry-run",
    "set small evaluation.resolution=48",
    "promote small",
    "verify",
    "inspect parts",
    "doctor",
)
UNPRIVILEGED = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Takes from root what makes every file writable; others have it not."""
pytestmark = [
    pytest.mark.attack,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everything, and no setpriv is here"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, api: str) -> Iterator[Path]:
    """A project that was retrained once, and may only be read."""
    folder = make_project(tmp_path_factory.mktemp("read-only") / "project", TINY)
    made = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api)
    assert made.returncode == 0, made.stderr
    commit(folder)
    subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


@pytest.mark.parametrize("server", ["a server", "none, and no home to have one in"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_may_not_write(project: Path, api: str, command: str, server: str) -> None:
    unprivileged = UNPRIVILEGED if os.geteuid() == 0 else ()
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(project / "home"), "PREFECT_HOME": str(project / "home/prefect")}
    if server == "a server":
        variables |= {"PREFECT_API_URL": api, "PREFECT_HOME": str(project.parent / "prefect")}
    result = run(project, *unprivileged, "changepair", *command.split(), **variables)
    assert "Traceback" not in result.stdout + result.stderr and result.returncode in (0, 1, 2), result.stderr
    if result.returncode == 2:
        line = result.stderr.splitlines()[-1]
        assert line.startswith("changepair: ") and ("denied" in line or "unable to open" in line or "not permitted" in line), line
    if command.startswith("set"):
        assert result.returncode == 2
    if command == "status":
        assert result.returncode == 0 and "Promoted" in result.stdout
