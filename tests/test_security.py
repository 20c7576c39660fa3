"""Hostile and careless files do no harm."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import audit
import pytest
from conftest import ROOT, TINY, commit, make_project, run, write_pipelines
from receiver import receiver
from team import SCHEDULED


def test_a_name_in_pipelines_yaml_reaches_no_shell(tmp_path: Path, api: str) -> None:
    """DVC runs a stage's command by a shell, and knows nothing of which names are valid."""
    folder = make_project(tmp_path / "project", TINY)
    content: dict[str, Any] = copy.deepcopy(TINY)
    bad = "small; touch pwned; $(touch pwned) `touch pwned`"
    content["enabled"], content["pipelines"] = [bad], {bad: content["pipelines"]["small"]}
    content["datasets"]["folders"] = {"parts; touch pwned": {"path": "parts"}}
    write_pipelines(folder, content)
    result = run(folder, "dvc", "repro", PREFECT_API_URL=api)
    assert result.returncode != 0 and "Running stage" in result.stdout
    assert not list(tmp_path.rglob("pwned"))
    ours = run(folder, "changepair", "retrain", bad)
    assert ours.returncode == 2 and "expected String should match pattern" in ours.stderr and not list(tmp_path.rglob("pwned"))


def test_a_stage_of_a_dataset_that_is_not_there_is_told_in_one_line(tmp_path: Path, api: str) -> None:
    folder = make_project(tmp_path / "project", TINY)
    result = run(folder, "python", "-m", "flows.ingest", "digit", PREFECT_API_URL=api)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "changepair: pipelines.yaml: datasets: no dataset 'digit'; did you mean 'digits'?"


@pytest.mark.parametrize(
    "parameters",
    [
        {"pipeline": "../../elsewhere", "repository": "parts.git"},
        {"pipeline": "small", "repository": "--upload-pack=touch pwned"},
        {"pipeline": "small", "repository": "parts.git", "revision": "--orphan"},
    ],
)
def test_parameters_given_in_the_ui_are_no_paths_and_no_options(parameters: dict[str, str], api: str, tmp_path: Path) -> None:
    parameters = {**parameters, "workspaces": str(tmp_path / "workspaces")}
    result = run(tmp_path, "python", "-c", SCHEDULED, json.dumps(parameters), PYTHONPATH=str(ROOT), PREFECT_API_URL=api)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    [told] = [line for line in result.stderr.splitlines() if line.startswith("changepair: ")]  # Prefect may add lines of its own
    assert told.startswith("changepair: parameters of the run: ")
    assert not list(tmp_path.iterdir())


def test_the_audit_finds_a_known_vulnerability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The real pip-audit, which asks a service of ours in OSV's words (https://ossf.github.io/osv-schema)."""

    def answer(asked: Any) -> object:
        package = asked["package"]
        if package["name"] != "pillow":
            return {}
        fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "12.0.1"}]}
        return {"vulns": [{"id": "GHSA-0000-0000-0001", "affected": [{"package": package, "ranges": [fixed]}]}]}

    lock = [f"{name} --hash=sha256:{number:064x}" for number, name in enumerate(("numpy==2.3.0", "pillow==12.0.0"))]
    (tmp_path / audit.LOCK).write_text("\n".join(lock))
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    with receiver(answer=answer) as service:
        monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", service.url)
        assert not audit.vulnerabilities()
        assert capsys.readouterr().out.splitlines() == [
            "pillow 12.0.0: GHSA-0000-0000-0001, mended in 12.0.1",
            "pip-audit: 2 of 2 packages looked up, 1 known vulnerabilities",
        ]
        monkeypatch.setattr(audit, "ACCEPTED", {"GHSA-0000-0000-0001": "not reached by us"})
        assert audit.vulnerabilities()


def test_the_secret_scan_finds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "settings.py").write_text("KEY = 'nothing'\n")
    commit(tmp_path)
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    assert audit.secrets()
    (tmp_path / "settings.py").write_text('aws_secret_access_key = "' + "wJalrXUtnFEMI/K7MDENG/" + 'bPxRfiCYzEXAMPLEKEY"\n')
    assert not audit.secrets()
    assert "settings.py:1: looks like a secret" in capsys.readouterr().out
