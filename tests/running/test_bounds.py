"""The bounds of pyproject.toml hold without the lock: the newest versions that they let in start a Prefect server."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

SERVER = ("fastapi", "httpx", "prefect", "psutil", "pydantic", "rich", "ruamel.yaml", "sqlalchemy", "typing-extensions")
"""The dependencies that a server is made of, and what starts one."""
START = """import httpx
from changepair.flows.running.temporary import temporary_server
print(httpx.get(temporary_server('a:b') + '/health').json())"""


@pytest.mark.slow
@pytest.mark.parametrize("prefect", ["the newest", "prefect<3.9"])
def test_a_server_starts_with_the_newest_that_is_let_in(prefect: str, tmp_path: Path) -> None:
    """Without a package index to install from it is skipped."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["pipelines"]]
    wanted = [line for line in listed if re.split(r"[\[<>=]", line)[0] in SERVER]
    assert len(wanted) == len(SERVER)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "new")], check=True)
    python = str(tmp_path / "new/bin/python")
    more = [] if prefect == "the newest" else [prefect]
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted, *more], capture_output=True, text=True)
    if "No matching distribution" in installed.stderr and "prefect" in installed.stderr:
        pytest.skip("no package index")
    assert installed.returncode == 0, installed.stderr
    variables = {"PREFECT_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    started = subprocess.run([python, "-c", START], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert started.returncode == 0 and started.stdout.strip().endswith("True"), started.stdout + started.stderr
