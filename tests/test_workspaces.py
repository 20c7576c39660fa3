"""Scheduled runs as a team has them: a server, a work pool with a worker, a repository, a DVC remote, clean clones."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import TINY, commit, make_project, run, write_pipelines
from processes import started, wait_until
from servers import ask, free_port, prefect_server

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"  # of nobody: the key that the store of the test is given


class Team:
    """A repository, a remote, and a project deployed to a server."""

    def __init__(self, top: Path, api: str, runs: dict[str, Any], remote: list[str]) -> None:
        self.top, self.api = top, api
        self.project, self.origin, self.workspaces = top / "project", top / "origin.git", top / "workspaces"
        content = copy.deepcopy(TINY)
        content["runs"] = {"workspaces": str(self.workspaces), **runs}
        shutil.move(make_project(self.project, content) / "parts", top / "parts")  # pictures are where all machines see them
        content["datasets"]["folders"]["parts"]["path"] = str(top / "parts")  # type: ignore[index]
        write_pipelines(self.project, content)
        for command in (["dvc", "remote", "add", "--default", "store", remote[0]], *remote[1:]):
            came = run(self.project, *(command if isinstance(command, list) else command.split()))
            assert came.returncode == 0, came.stderr
        self.first = commit(self.project, "the project")
        subprocess.run(["git", "clone", "--quiet", "--bare", str(self.project), str(self.origin)], check=True)
        git(self.project, "remote", "add", "origin", str(self.origin))

    def scheduled(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """A run of the flow, in a process of its own as a worker starts it."""
        parameters = {"pipeline": "small", "repository": str(self.origin), "workspaces": str(self.workspaces), "remote_timeout": 60}
        parameters |= json.loads(environment.pop("parameters", "{}"))
        code = "import sys, json; from flows.scheduled import scheduled; from flows.stage import exit_on_bad_input\n"
        code += "exit_on_bad_input(lambda: scheduled(**json.loads(sys.argv[1])))"
        return run(self.top, "python", "-c", code, json.dumps(parameters), **{"PYTHONPATH": str(self.project), **environment})

    def state(self) -> str:
        """Of the newest run, with its message."""
        mine = [item for item in ask(self.api, "flow_runs") if item["name"].startswith("small at ")]
        newest = max(mine, key=lambda item: item["created"])
        return f"{newest['state']['name']}: {newest['state']['message']}"

    def reproduce(self, revision: str) -> str:
        """What `dvc repro` says in a new clone of that revision, with nothing but the remote."""
        folder = self.top / f"again-{revision.replace('/', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", str(self.origin), str(folder)], check=True)
        git(folder, "checkout", "--quiet", revision)
        pulled = run(folder, "dvc", "pull")
        assert pulled.returncode == 0, pulled.stderr
        return run(folder, "dvc", "repro").stdout


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, api: str) -> Team:
    top = tmp_path_factory.mktemp("team")
    return Team(top, api, {"pool": "machines", "tags": ["line-3"]}, [str(top / "remote")])


@pytest.fixture(scope="module")
def ran(team: Team) -> Iterator[Team]:
    """Deployed to a work pool, and run once by a worker of it."""
    came = run(team.project, "changepair", "deploy", PREFECT_API_URL=team.api)
    assert came.returncode == 0 and "created: work pool machines" in came.stdout, came.stdout + came.stderr
    with started(team.project, "prefect", "worker", "start", "--pool", "machines", PREFECT_API_URL=team.api) as worker:
        asked = run(team.project, "prefect", "deployment", "run", "scheduled/small", "--watch", PREFECT_API_URL=team.api)
        assert asked.returncode == 0, asked.stdout + asked.stderr + (team.project / "output.log").read_text()
        assert worker.poll() is None
    yield team


def test_a_worker_of_a_pool_retrains_in_a_clean_clone_and_commits_the_results(ran: Team) -> None:
    assert ran.state().startswith("Promoted: Promoted: the first model of this pipeline")
    assert git(ran.origin, "rev-parse", "changepair/small^1") == ran.first == git(ran.origin, "rev-parse", "main")
    changed = set(git(ran.origin, "diff", "--name-only", "main", "changepair/small").splitlines())
    models, evaluation = "data/models/small", "data/evaluation/small"
    assert changed == {
        "dvc.lock",
        *(f"{models}/{name}" for name in ("current", "history.jsonl", "in-use.dvc")),
        *(f"{evaluation}/{name}" for name in ("metrics.json", "figures.csv")),
    }
    assert not (ran.project / "data").exists()  # nothing was done in the checkout that deployed


def test_a_run_is_reproduced_by_checking_out_its_results(ran: Team) -> None:
    assert ran.reproduce("changepair/small").splitlines()[-1] == "Data and pipelines are up to date."


def test_the_child_runs_are_linked_from_the_tasks_that_started_them(ran: Team) -> None:
    runs = {item["name"]: item for item in ask(ran.api, "flow_runs")}
    tasks = {item["id"]: item for item in ask(ran.api, "task_runs")}
    assert tasks[runs["retrain small"]["parent_task_run_id"]]["flow_run_id"] == runs["small at main"]["id"]
    for name in ("ingest parts", "sample small", "train small", "evaluate small"):
        assert tasks[runs[name]["parent_task_run_id"]]["flow_run_id"] == runs["retrain small"]["id"]
    links = [item["data"] for item in ask(ran.api, "artifacts") if item["data"] and "run of" in str(item["data"])]
    assert any(runs["train small"]["id"] in link for link in links)


def test_another_machine_pulls_what_there_is_and_makes_nothing_again(ran: Team) -> None:
    shutil.rmtree(ran.workspaces)
    before = git(ran.origin, "rev-parse", "changepair/small")
    came = ran.scheduled(PREFECT_API_URL=ran.api)
    assert came.returncode == 0, came.stderr
    assert ran.state().startswith("In use already") and "every stage is up to date" in ran.state()
    assert git(ran.origin, "rev-parse", "changepair/small") == before  # nothing new, so nothing was committed


def test_a_new_revision_builds_on_the_last_results(ran: Team) -> None:
    content = ran.project / "pipelines.yaml"
    content.write_text(content.read_text().replace("evaluation:\n      resolution: 64", "evaluation:\n      resolution: 48"))
    second = commit(ran.project, "coarser")
    git(ran.project, "push", "--quiet", "origin", "main")
    before = git(ran.origin, "rev-parse", "changepair/small")
    came = ran.scheduled(PREFECT_API_URL=ran.api)
    assert came.returncode == 0, came.stderr
    assert ran.state().split("ran ")[-1].startswith("evaluate@small;"), ran.state()
    assert git(ran.origin, "rev-parse", "changepair/small^1", "changepair/small^2").split() == [before, second]


def test_a_revision_that_is_not_there_is_told_in_one_line(ran: Team) -> None:
    came = ran.scheduled(PREFECT_API_URL=ran.api, parameters=json.dumps({"revision": "v2"}))
    assert came.returncode == 2 and "Traceback" not in came.stdout + came.stderr
    assert came.stderr.splitlines()[-1].endswith("has no branch, tag or commit 'v2'")


def test_status_tells_of_scheduled_runs_with_no_server_running(ran: Team) -> None:
    told = run(ran.project, "changepair", "status").stdout
    assert f"small (scheduled, in {ran.workspaces / 'small'})" in told and "in use: model " in told
    assert "evaluate@small: Ran" in told and "parts patch-residual: image_auroc " in told


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server that speaks S3, with a bucket; gives its address."""
    import boto3

    port, home = free_port(), tmp_path_factory.mktemp("s3")
    with started(home, "moto_server", "-H", "127.0.0.1", "-p", str(port)):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url), what="the start of the store")
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS).create_bucket(Bucket="changepair")
        yield url


KEYS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": SECRET}
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": KEYS["aws_access_key_id"], "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_with_a_remote_in_s3_and_a_tag_a_run(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the key that opens the store is nowhere to be seen."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with prefect_server(tmp_path / "prefect") as api:
        team = Team(tmp_path, api, {}, ["s3://changepair/store", f"dvc remote modify store endpointurl {store}"])
        parameters = json.dumps({"results": "tag"})
        for _time in range(2):
            came = team.scheduled(PREFECT_API_URL=api, PREFECT_LOGGING_LEVEL="INFO", parameters=parameters)
            assert came.returncode == 0, came.stderr
        assert git(team.origin, "tag", "--list") == "changepair/small/1"  # the second run had nothing new
        assert team.reproduce("changepair/small/1").splitlines()[-1] == "Data and pipelines are up to date."
        said = came.stdout + came.stderr
    everything = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert any(file.name == "prefect.db" for file in everything)
    for file in everything:
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in said and os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
