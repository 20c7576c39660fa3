"""Results name the package versions that are installed; a difference from requirements.lock is refused, or recorded where that is set."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import TINY, make_project, run, write_pipelines

from changepair.flows.code import code
from changepair.flows.plan import planned
from changepair.flows.running.unchanged import unchanged
from changepair.flows.settings import reader
from changepair.tasks.common.errors import BadInput


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_project(tmp_path / "project", TINY)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(reader, "_held", {})
    return folder


def lock(folder: Path, name: str, locked: str) -> None:
    """Edit the version of a package in requirements.lock."""
    file = folder / "requirements.lock"
    file.write_text(re.sub(rf"^{name}==\S+", f"{name}=={locked}", file.read_text(), flags=re.MULTILINE))


def records(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "data/code").glob("*.json")}


def recorded(folder: Path, stage: str, name: str) -> str:
    return str(json.loads((folder / f"data/code/{stage}.json").read_text())["packages"][name])


def test_a_lock_that_names_another_version_is_refused_in_one_line(project: Path) -> None:
    lock(project, "torch", "9.9.9")
    result = run(project, "dvc", "repro", "code")
    [line] = [line for line in result.stderr.splitlines() if line.startswith("changepair: ")]
    assert result.returncode != 0 and not (project / "data/code").exists()
    assert line.startswith(f"changepair: requirements.lock: torch 9.9.9 is locked, but {version('torch')} is installed; ")
    assert "`pip install torch==9.9.9`" in line and "execution.packages: installed" in line


def test_a_package_that_no_stage_uses_may_differ(project: Path) -> None:
    code()
    before = records(project)
    lock(project, "shtab", "9.9.9")  # of the command line
    code()
    assert records(project) == before


def test_with_the_setting_the_installed_version_is_recorded_of_what_differs_alone(project: Path) -> None:
    code()
    before = records(project)
    write_pipelines(project, {**TINY, "execution": {"workers": 2, "packages": "installed"}})
    code()
    assert records(project) == before  # no stage runs again
    lock(project, "scikit-learn", "9.9.9")
    code()
    assert recorded(project, "ingest", "scikit-learn") == version("scikit-learn")
    lock(project, "scikit-learn", "9.9.8")  # and the lock is no matter
    changed = records(project)
    lock(project, "tifffile", "9.9.9")
    code()
    assert {name for name, content in records(project).items() if content != changed[name]} == {
        name for name, content in changed.items() if b"tifffile" in content
    }


def test_with_the_setting_dvc_asks_for_the_environment_each_time(project: Path) -> None:
    assert not planned()[0].always
    write_pipelines(project, {**TINY, "execution": {"packages": "installed"}})
    assert planned()[0].name == "code" and planned()[0].always


def test_a_stage_refuses_an_environment_that_changed_since_its_code_was_recorded(project: Path) -> None:
    """DVC does not look at the environment: without this, new pictures would be scored by another torch under the old record."""
    code()
    file = project / "data/code/score_patch-residual.json"
    file.write_text(file.read_text().replace(f'"torch": "{version("torch")}"', '"torch": "2.0.1"'))
    line = (
        rf"score_patch-residual.json: torch 2.0.1 was recorded, but {re.escape(version('torch'))} is installed; .*pip install torch==2.0.1"
    )
    with pytest.raises(BadInput, match=line), unchanged("score", "small", "patch-residual"):
        raise AssertionError("it ran")
    with unchanged("metrics", "small"):
        pass
