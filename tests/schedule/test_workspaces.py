"""Scheduled runs as a team has them: a work pool with a worker, a repository, a DVC remote, clean clones."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import run
from servers import ask, free_port, prefect_server
from stores import S3, SECRET, store
from team import Team, git

pytestmark = pytest.mark.slow


def test_a_worker_of_a_pool_retrains_in_a_clean_clone_and_commits_the_results(team: Team) -> None:
    first = git(team.origin, "rev-parse", "changepair/small^1")
    assert git(team.origin, "rev-parse", f"{first}^1") == team.first
    assert git(team.origin, "log", "-1", "--format=%s", first) == f"small at {team.first[:8]}: Promoted"
    changed = set(git(team.origin, "diff", "--name-only", team.first, first).splitlines())
    models, evaluation = "data/models/small", "data/evaluation/small"
    assert changed == {
        "dvc.lock",
        *(f"{models}/{name}" for name in ("current", "history.jsonl", "in-use.dvc")),
        *(f"{evaluation}/{name}" for name in ("metrics.json", "metrics.csv")),
    }
    assert not (team.project / "data").exists()  # nothing was done in the checkout that deployed


def test_a_new_revision_builds_on_the_last_results(team: Team) -> None:
    """In the second run all was up to date but the metrics, whose resolution is another, and the report."""
    first, revision = git(team.origin, "rev-parse", "changepair/small^1", "changepair/small^2").split()
    assert revision == git(team.origin, "rev-parse", "main") == team.second and first != team.first
    second = max((item for item in team.runs if item["name"] == "retrain small"), key=lambda item: item["created"])
    assert second["state"]["message"].endswith("; ran code, metrics_small, report_small")


def test_a_run_is_reproduced_by_checking_out_its_results(team: Team) -> None:
    assert team.reproduce("changepair/small").splitlines()[-1] == "Data and pipelines are up to date."


def test_the_child_runs_are_linked_from_the_tasks_that_started_them(team: Team) -> None:
    flow_run_of = {item["id"]: item["flow_run_id"] for item in ask(team.api, "task_runs")}
    parents: dict[str, set[str]] = {}
    for item in team.runs:
        if item["parent_task_run_id"]:
            parents.setdefault(item["name"], set()).add(flow_run_of[item["parent_task_run_id"]])
    ids = {name: {item["id"] for item in team.runs if item["name"] == name} for name in ("small at main", "retrain small")}
    assert parents["retrain small"] == ids["small at main"] and len(ids["small at main"]) == 2
    for name in ("ingest parts", "score small patch-residual", "metrics small"):
        assert parents[name] <= ids["retrain small"]


@pytest.mark.parametrize("gone", [".", "cache"])
def test_another_machine_pulls_what_there_is_and_makes_nothing_again(team: Team, gone: str) -> None:
    """A machine whose cache was deleted to make room does so too."""
    shutil.rmtree(team.workspaces / gone)
    before = git(team.origin, "rev-parse", "changepair/small")
    result = team.scheduled(PREFECT_API_URL=team.api)
    assert result.returncode == 0, result.stderr
    assert team.state().startswith("In use already") and "every stage is up to date" in team.state()
    assert git(team.origin, "rev-parse", "changepair/small") == before  # nothing new, so nothing was committed
    assert list((team.workspaces / "cache/files/md5").rglob("*.dir"))


def test_a_revision_that_is_not_there_is_told_in_one_line(team: Team) -> None:
    result = team.scheduled(PREFECT_API_URL=team.api, parameters=json.dumps({"revision": "v2"}))
    assert result.returncode == 2 and "Traceback" not in result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].endswith("has no branch, tag or commit 'v2'")


def test_status_tells_of_scheduled_runs_with_no_server_running(team: Team) -> None:
    output = run(team.project, "changepair", "status").stdout
    assert f"small (scheduled, in {team.workspaces / 'small'})" in output and "current model: " in output
    assert re.search(r"report_small: (Ran|Up to date)", output) and "parts patch-residual: image_auroc " in output


def test_with_a_remote_in_s3_and_a_tag_a_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that opens the store is nowhere to be seen."""
    for name, value in S3.items():
        monkeypatch.setenv(name, value)
    with store(tmp_path_factory.mktemp("s3"), free_port()) as url, prefect_server(tmp_path / "prefect") as api:
        team = Team(tmp_path, api, {}, ["s3://changepair/store", f"dvc remote modify store endpointurl {url}"])
        parameters = json.dumps({"results": "tag"})
        for _time in range(2):
            result = team.scheduled(PREFECT_API_URL=api, PREFECT_LOGGING_LEVEL="INFO", parameters=parameters)
            assert result.returncode == 0, result.stderr
        # The second run had nothing new. The model that the first put to use is a version, as `gto show` lists it.
        assert git(team.origin, "tag", "--list").split() == ["changepair/small/1", "small@v0.0.1"]
        assert git(team.origin, "rev-parse", "small@v0.0.1^{commit}") == git(team.origin, "rev-parse", "changepair/small/1")
        versions = json.loads(run(team.workspaces / "small", "gto", "show", "--json").stdout)
        assert versions["small"]["version"] == "v0.0.1"
        assert team.reproduce("changepair/small/1").splitlines()[-1] == "Data and pipelines are up to date."
        output = result.stdout + result.stderr

        override = {"evaluation.convention": "published"}  # for one run, whose results say so; the next is as it was
        for parameters, said in (({"override": override}, "published"), ({}, "exact")):
            result = team.scheduled(PREFECT_API_URL=api, parameters=json.dumps({"results": "tag", **parameters}))
            assert result.returncode == 0, result.stderr
            tag = max(git(team.origin, "tag", "--list", "changepair/small/*").splitlines())
            settings = yaml.safe_load(git(team.origin, "show", f"{tag}:pipelines.yaml"))["pipelines"]["small"]["evaluation"]
            assert settings.get("convention", "exact") == said
            named = "with evaluation.convention=published" in git(team.origin, "log", "-1", "--format=%s", tag)
            assert named == (said == "published")
        assert team.reproduce("changepair/small/2").splitlines()[-1] == "Data and pipelines are up to date."
        wrong = team.scheduled(PREFECT_API_URL=api, parameters=json.dumps({"override": {"evaluation.convention": "none"}}))
        assert wrong.returncode == 2 and "evaluation.convention: expected 'exact' or 'published'" in wrong.stderr
    everything = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert any(file.name == "prefect.db" for file in everything)
    for file in everything:
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in output and os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
