"""`changepair doctor`: what a machine lacks is said in a line each, with how to get it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, make_project, run
from servers import free_port

AHEAD = (
    "import os, sys; os.environ['PATH'] = sys.argv.pop(1) + os.pathsep + os.environ['PATH']; from changepair.flows.cli import main; main()"
)
"""Runs the command with a folder before all others on PATH."""


def lines(output: str) -> dict[str, tuple[str, str]]:
    """What was looked at -> its sign, and how it is."""
    found = {}
    for line in output.splitlines():
        what, _, how = line[8:].partition(": ")
        found[what] = (line[:8].strip(), how)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("doctor") / "project", TINY)


def test_a_machine_that_has_all_is_told_so(project: Path) -> None:
    result = run(project, "changepair", "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    found = lines(result.stdout)
    assert {found[what][0] for what in ("Python", "git", "dvc", "python", "small")} == {"ok"}
    assert found["DVC remote"] == (
        "-",
        "none, so artifacts exist only on this disk; add one with `dvc remote add --default store <folder or URL>`",
    )


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path: Path) -> None:
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["datasets"]["folders"]["parts"]["path"] = "elsewhere"
    folder = make_project(tmp_path / "project", content)
    (folder / "requirements.lock").write_text("numpy==1.0 \\\n    --hash=sha256:0\n")
    other = tmp_path / "bin"
    other.mkdir()
    (other / "python").write_text("#!/bin/sh\n")
    (other / "python").chmod(0o755)
    url = f"http://127.0.0.1:{free_port()}/api"
    assert run(folder, "dvc", "remote", "add", "--default", "store", "s3://no-such-bucket/store").returncode == 0
    away = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1"}
    keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "nobodys"}  # pragma: allowlist secret
    result = run(folder, "python", "-c", AHEAD, str(other), "doctor", PREFECT_API_URL=url, **away, **keys)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    found = lines(result.stdout)
    assert {what for what, (sign, _how) in found.items() if sign == "MISSING"} == {"python", "Prefect server", "DVC remote", "small"}
    assert result.stderr.startswith("changepair: 4 missing: ")
    assert str(other / "python") in found["python"][1] and "export PATH=" in found["python"][1]
    assert url in found["Prefect server"][1] and found["DVC remote"][1].startswith("store does not answer")
    assert found["small"][1] == "dataset parts: no folder elsewhere" and found["packages"][1].startswith("numpy ")


def test_a_mistake_in_pipelines_yaml_is_a_finding(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "project", {**TINY, "enabled": ["smal"]})
    result = run(folder, "changepair", "doctor")
    assert result.returncode == 2 and "smal" in lines(result.stdout)["pipelines.yaml"][1]


def test_a_dataset_of_pipelines_yaml_is_inspected_by_its_name(project: Path, tmp_path: Path) -> None:
    result = run(project, "changepair", "inspect", "parts", "--out", str(tmp_path / "sheet.png"), COLUMNS="160")
    assert result.returncode == 0 and "bricks" in result.stdout and (tmp_path / "sheet.png").is_file(), result.stderr
    wrong = {("part",): "did you mean 'parts'?", ("visa",): "this is a layout; add the folder", ("vsa", "parts"): "did you mean 'visa'?"}
    for arguments, told in wrong.items():
        refused = run(project, "changepair", "inspect", *arguments)
        assert refused.returncode == 2 and told in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
