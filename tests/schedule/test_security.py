"""Hostile and careless files do no harm."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, commit, make_project, run, write_pipelines
from receiver import receiver
from servers import ask
from team import SCHEDULED

from changepair.flows.running.secrets import hidden, hide, hide_in_log, holds_secret
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import holds_password, place_of

sys.path.append(str(ROOT / ".ci"))
import audit

PASSWORD = "hunter2" + "secret"  # pragma: allowlist secret


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
    assert ours.returncode == 2 and "expected text that matches" in ours.stderr and not list(tmp_path.rglob("pwned"))


def test_a_stage_of_a_dataset_that_is_not_there_is_told_in_one_line(tmp_path: Path, api: str) -> None:
    folder = make_project(tmp_path / "project", TINY)
    result = run(folder, "python", "-m", "changepair.flows.ingest", "digit", PREFECT_API_URL=api)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "changepair: pipelines.yaml: datasets: unknown dataset 'digit'; did you mean 'digits'?"


@pytest.mark.parametrize(
    "parameters",
    [
        {"pipeline": "../../elsewhere", "repository": "parts.git"},
        {"pipeline": "small", "repository": "--upload-pack=touch pwned"},
        {"pipeline": "small", "repository": "parts.git", "revision": "--orphan"},
        {"pipeline": "small", "repository": "parts.git", "remote_timeout": 0},
    ],
)
def test_parameters_given_in_the_ui_are_no_paths_and_no_options(parameters: dict[str, Any], api: str, tmp_path: Path) -> None:
    parameters = {**parameters, "workspaces": str(tmp_path / "workspaces")}
    result = run(tmp_path, "python", "-c", SCHEDULED, json.dumps(parameters), PYTHONPATH=str(ROOT), PREFECT_API_URL=api)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    [told] = [line for line in result.stderr.splitlines() if line.startswith("changepair: ")]  # Prefect may add lines of its own
    assert told.startswith("changepair: parameters of the run: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"workspaces": "/proc/x"}, "runs.workspaces: cannot create /proc/x"),
        ({"repository": f"https://me:{PASSWORD}@example.org/parts.git"}, "runs.repository: https://***@example.org/parts.git: must not"),
    ],
)
def test_what_a_run_cannot_use_is_told_in_one_line(parameters: dict[str, Any], told: str, api: str, tmp_path: Path) -> None:
    parameters = {"pipeline": "small", "repository": "parts.git", "workspaces": str(tmp_path), **parameters}
    result = run(tmp_path, "python", "-c", SCHEDULED, json.dumps(parameters), PYTHONPATH=str(ROOT), PREFECT_API_URL=api)
    assert result.returncode == 2 and "Traceback" not in result.stderr and PASSWORD not in result.stderr + result.stdout
    assert f"changepair: {told}" in result.stderr
    states = [item["state"]["message"] for item in ask(api, "flow_runs")]
    assert any(told in message for message in states) and not any(PASSWORD in message for message in states)


@pytest.mark.parametrize("command", ["pipelines", "doctor", "retrain small"])
def test_a_password_in_a_url_of_pipelines_yaml_is_refused_and_never_printed(tmp_path: Path, command: str) -> None:
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["datasets"]["folders"]["parts"]["path"] = f"https://me:{PASSWORD}@example.org/parts"
    folder = make_project(tmp_path / "project", content)
    result = run(folder, "changepair", *command.split())
    assert result.returncode in (1, 2) and PASSWORD not in result.stdout + result.stderr
    told = "pipelines.yaml: datasets.folders.parts.path: a password or token in a URL would be copied"
    assert told in " ".join((result.stdout + result.stderr).split()) and not (folder / "dvc.yaml").exists()


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{PASSWORD}@bucket/parts",
        f"https://{PASSWORD}@example.org/parts",
        f"sftp://me:{PASSWORD}@host/parts",
        f"git+https://me:{PASSWORD}/x@example.org/parts",
        f"https://bucket.example.org/parts?X-Amz-Date=1&X-Amz-Signature={PASSWORD}",
        f"https://example.org/parts?token={PASSWORD}",
    ],
)
def test_secrets_in_urls_are_recognised(url: str) -> None:
    assert holds_password(url) and PASSWORD not in hide(url)
    with pytest.raises(BadInput) as raised:
        place_of(url)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/small@v1/parts",
        "s3://bucket/a:b@c",
        "sftp://me@host/parts",
        "abfs://container@account.dfs.core.windows.net/parts",
        "http://localhost:9000/parts@v1",
        "https://example.org/notify?channel=quality",
        "me@example.org:parts.git",
        "parts",
    ],
)
def test_urls_without_a_secret_are_accepted(url: str) -> None:
    assert not holds_password(url)


def test_secrets_are_taken_out_of_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("SOME_TOKEN", "abc")  # too short to be one
    hidden = hide("push to https://me:pass@example.org/x with wJalrXUtnFEMI failed, abc")
    assert hidden == "push to https://***@example.org/x with *** failed, abc"
    record = logging.LogRecord("x", logging.INFO, "file", 1, "key %s", ("wJalrXUtnFEMI",), None)
    assert hide_in_log(record) and record.getMessage() == "key ***"


@pytest.mark.parametrize(
    "address",
    [
        "https://TOPSECRET@example.org/x.git", "https://example.org/TOPSECRET@x", "HTTPS://TOPSECRET@EXAMPLE.ORG",
        "https://me:TOPSECRET@example.org/x.git", "https://me:TOP@TOPSECRET@example.org/x",  # pragma: allowlist secret
        "https://me:p/TOPSECRET@example.org/x", "postgresql+asyncpg://u:TOPSECRET@127.0.0.1/db",  # pragma: allowlist secret
        "https://example.org/x?private_token=TOPSECRET", "s3://example.org/x?a=1&key=TOPSECRET#y",
        "https://example.org/?TOPSECRET", "https://:TOPSECRET@example.org:8080/x?TOPSECRET",
    ],
)  # fmt: skip
def test_of_an_address_nothing_is_told_but_where_it_is(address: str) -> None:
    for text in (address, f"cannot reach {address}: gone", f"'{address}'", f"({address})", f"<{address}> and {address}"):
        assert "TOPSECRET" not in hide(text), hide(text)
    assert holds_secret(address)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/x.git", "ssh://git@example.org/x.git", "git@example.org:x.git", "/srv/x.git", "file:///srv/x", "s3://b/c"],
)
def test_an_address_that_says_no_more_is_no_secret(address: str) -> None:
    assert not holds_secret(address)


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
            "pillow 12.0.0: GHSA-0000-0000-0001, fixed in 12.0.1",
            "pip-audit: checked 2 of 2 packages, found 1 known vulnerabilities",
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
    assert "settings.py:1: possible secret" in capsys.readouterr().out


def test_secrets_in_the_settings_that_the_ui_shows_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_TOKEN", "0123456789")
    shown = hidden({"path": "azure://box/parts?sig=abc", "read": ["a/0123456789/b", 3, None]})
    assert shown == {"path": "azure://box/parts?***", "read": ["a/***/b", 3, None]}
