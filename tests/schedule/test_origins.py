"""Whose code scheduled runs execute, and whose results are adopted: those of the deployment's repository, which the worker allows."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import ROOT, TINY, commit, make_project, run, write_pipelines
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from processes import started, wait_until
from repositories import repository
from servers import LOGIN, ask, request
from team import git

from changepair.flows.schedule import workspace
from changepair.flows.schedule.deployments import JOB
from changepair.flows.schedule.workspace import Workspace
from changepair.tasks.common.errors import BadInput

pytestmark = pytest.mark.attack
OFTEN = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}  # seconds between two looks for what is due, ten by default
METRICS = Path("data/evaluation/small/metrics.json")


def retrain(place: Workspace, metric: str) -> None:
    """What a scheduled run does with Git, with a metric as the result that another model would have."""
    revision = workspace.prepare(place, "main", print)
    file = place.folder / METRICS
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(metric)
    workspace.commit_results(place, revision, metric, promoted=True)
    workspace.send_results(place)


def everything(bare: Path) -> str:
    """Every reference of a repository, and every text that its history ever had."""
    return git(bare, "for-each-ref") + git(bare, "log", "--all", "--patch", "--format=%H %s")


@pytest.mark.parametrize("results", ["branch", "tag"])
def test_nothing_of_a_fork_reaches_the_origin(tmp_path: Path, results: Any) -> None:
    """A run of a fork between two ordinary ones is refused, and the second ordinary one goes on from the first."""
    origin, fork = repository(tmp_path / "origin", "ours: 1"), repository(tmp_path / "fork", "forked: 1")
    ordinary, forked = (Workspace(tmp_path / "workspaces", "small", str(one), results, None, 60) for one in (origin, fork))
    retrain(ordinary, "first metric")
    with pytest.raises(BadInput, match=r"this clone belongs to .*origin\.git, not to .*fork\.git"):
        retrain(forked, "forked metric")
    retrain(ordinary, "second metric")
    assert "forked" not in everything(origin) and "second metric" in everything(origin)
    assert everything(fork).count("metric") == 0
    newest = "changepair/small" if results == "branch" else "changepair/small/2"
    assert git(origin, "rev-parse", f"{newest}^1") != git(origin, "rev-parse", "main")  # its parent are the first results


def test_results_of_a_fork_that_came_first_are_not_adopted(tmp_path: Path) -> None:
    origin, fork = repository(tmp_path / "origin", "ours: 1"), repository(tmp_path / "fork", "forked: 1")
    ordinary, forked = (Workspace(tmp_path / "workspaces", "small", str(one), "branch", None, 60) for one in (origin, fork))
    retrain(forked, "forked metric")
    before = everything(origin)
    with pytest.raises(BadInput, match="or move the clone"):
        retrain(ordinary, "first metric")
    assert everything(origin) == before
    shutil.move(forked.folder, tmp_path / "away")
    retrain(ordinary, "first metric")
    assert "forked" not in everything(origin) and "first metric" in everything(origin)


def test_a_workspace_of_the_same_origin_is_kept_however_its_address_is_written(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin", "ours: 1")
    (tmp_path / "link").symlink_to(origin)
    for number, address in enumerate((str(origin), f"{origin}/", str(tmp_path / "link"))):
        retrain(Workspace(tmp_path / "workspaces", "small", address, "branch", None, 60), f"metric {number}")
    assert git(origin, "log", "--first-parent", "--format=%s", "changepair/small").splitlines()[:3] == ["metric 2", "metric 1", "metric 0"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, api: str) -> Path:
    """A project whose pipeline is deployed. Its runs end when they would clone: the repository is not there."""
    top = tmp_path_factory.mktemp("run")
    folder = make_project(top / "project", TINY)
    write_pipelines(folder, TINY | {"runs": {"workspaces": str(top / "workspaces"), "repository": str(top / "gone.git")}})
    commit(folder)
    assert run(folder, "changepair", "deploy", PREFECT_API_URL=api).returncode == 0
    return folder


def asked_for(api: str, **given: Any) -> str:
    """Ask for a run of the deployment, whether the server finds its parameters right or not; return the run's id."""
    [deployment] = ask(api, "deployments")
    made = request("POST", f"{api}/deployments/{deployment['id']}/create_flow_run", {"enforce_parameter_schema": False, **given})
    return str(made["id"])


def end_of(api: str, run_id: str) -> tuple[str, str]:
    """Wait for the end of a run; return the type and the message of its state."""

    def state() -> dict[str, Any]:
        return dict(request("GET", f"{api}/flow_runs/{run_id}")["state"])

    wait_until(lambda: state()["type"] in ("FAILED", "CRASHED", "COMPLETED"), what="the end of the run")
    return state()["type"], str(state()["message"])


def ended(api: str, **given: Any) -> str:
    """Ask for a run of the deployment; return the message that it ended with."""
    return end_of(api, asked_for(api, **given))[1]


@pytest.mark.parametrize(
    "parameters",
    [
        {"repository": "https://example.org/evil.git"},
        {"revision": "someone/evil"},
        {"workspaces": "/home/someone"},
        {"remote_timeout": 0},
        {"revisoin": "v2"},
    ],
)
def test_the_server_refuses_what_a_run_cannot_set(project: Path, api: str, parameters: dict[str, Any]) -> None:
    [deployment] = ask(api, "deployments")
    asked = httpx.post(f"{api}/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters}, auth=LOGIN)
    assert asked.status_code == httpx.codes.CONFLICT and next(iter(parameters)) in asked.text, asked.text


def test_the_form_of_a_run_explains_each_parameter(project: Path, api: str) -> None:
    [deployment] = ask(api, "deployments")
    properties = deployment["parameter_openapi_schema"]["properties"]
    assert all(len(one["description"]) > 20 for one in properties.values()), properties
    assert "dotted keys" in properties["override"]["description"]


def test_a_run_that_gets_around_the_server_executes_nothing(project: Path, api: str) -> None:
    with started(project, "changepair", "serve", PREFECT_API_URL=api, **OFTEN):
        unknown = end_of(api, asked_for(api, parameters={"revisoin": "v2"}))
        assert unknown == ("FAILED", "parameters of the run: revisoin: unknown; only override can be set for one run")
        wrong = end_of(api, asked_for(api, parameters={"results": "nothing"}))
        assert wrong[0] == "FAILED" and "results: Input should be 'branch', 'tag' or 'none'" in wrong[1]
        evil = ended(api, parameters={"repository": str(ROOT)})
        assert "repository: " in evil and "only override can be set for one run" in evil
        assert "revision: " in ended(api, parameters={"revision": "evil"})
        assert "cannot clone" in ended(api, parameters={})  # as far as the deployment's own repository comes
    assert not (project.parent / "workspaces/small").exists()


def test_a_worker_runs_the_code_of_the_repositories_that_its_environment_names(project: Path, api: str) -> None:
    with started(project, "changepair", "serve", PREFECT_API_URL=api, **OFTEN, CHANGEPAIR_REPOSITORIES="https://example.org/ours.git"):
        told = ended(api, parameters={})
    assert "this worker may not run the code of this repository" in told
    assert json.dumps(told).count("CHANGEPAIR_REPOSITORIES=") == 1


def test_what_a_user_wrote_in_the_local_configuration_of_a_workspace_is_kept(tmp_path: Path) -> None:
    """It is where the keys of a store belong, and no run may take them away."""
    place = Workspace(tmp_path / "workspaces", "small", str(repository(tmp_path / "origin", "ours: 1")), "branch", None, 60)
    retrain(place, "first metric")
    for command in (
        "remote add --local store s3://there/store",
        "remote modify --local store read_timeout 7",
        "config --local cache.type symlink",
    ):
        assert run(place.folder, "dvc", *command.split()).returncode == 0
    retrain(place, "second metric")
    told = run(place.folder, "dvc", "config", "--list", "--local").stdout.splitlines()
    assert {"remote.store.url=s3://there/store", "remote.store.read_timeout=7", "cache.type=symlink"} <= set(told)
    assert f"cache.dir={tmp_path}/workspaces/cache" in told
    (place.folder / ".dvc/config.local").write_text("[cache\n")
    with pytest.raises(BadInput, match=r"config\.local: DVC cannot read this configuration .*; repair the file"):
        retrain(place, "third metric")


def test_a_run_of_a_work_pool_of_ours_chooses_neither_its_command_nor_its_environment(api: str) -> None:
    chosen = {"command": "touch pwned", "env": {"CHANGEPAIR_REPOSITORIES": "evil", "PYTHONPATH": "/evil"}, "working_dir": "/evil"}
    for template, taken in ((JOB, False), (ProcessWorker.get_default_base_job_template(), True)):
        with temporary_settings({PREFECT_API_URL: api}):
            job = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, dict(chosen)))
        assert (job.command == "touch pwned") == (job.env == chosen["env"]) == (job.working_dir == Path("/evil")) == taken


@contextmanager
def at_work(project: Path, api: str, how: str) -> Iterator[psutil.Process]:
    """What starts the runs of the project's deployment: a worker of the pool `machines`, or `changepair serve`."""
    pool = {"pool": "machines"} if how == "work" else {}
    runs = {"workspaces": str(project.parent / "workspaces"), "repository": str(project.parent / "gone.git"), **pool}
    write_pipelines(project, TINY | {"runs": runs})
    assert run(project, "changepair", "deploy", PREFECT_API_URL=api).returncode == 0
    command = ("work", "--pool", "machines") if how == "work" else ("serve",)
    quick = {"PREFECT_API_URL": api, "PREFECT_WORKER_QUERY_SECONDS": "1", "CHANGEPAIR_REPOSITORIES": runs["repository"], **OFTEN}
    with started(project, "changepair", *command, **quick) as process:
        yield psutil.Process(process.pid)
        process.terminate()  # a worker is in a process group of its own
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["work", "serve"])
def test_an_edited_pool_or_deployment_chooses_no_code(project: Path, api: str, how: str, tmp_path: Path) -> None:
    """By someone with the login: each planted command would leave a file, in the process of the run or in what starts it."""

    def planted(name: str) -> str:
        return f"touch {tmp_path / name}"

    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'environment')!r}, 'w')")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'entrypoint')!r}, 'w')\ndef evil(): pass\n")
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/__init__.py").write_text(f"open({str(tmp_path / 'folder')!r}, 'w')")
    chosen = {"command": planted("command"), "env": {"PYTHONPATH": str(tmp_path)}, "working_dir": str(tmp_path)}
    with at_work(project, api, how) as worker:
        [deployed] = ask(api, "deployments")
        if how == "work":
            template = {"job_configuration": chosen, "variables": {"type": "object", "properties": {}}}
            request("PATCH", f"{api}/work_pools/machines", {"base_job_template": template})
        kept = ("name", "flow_id", "parameters", "work_pool_name", "entrypoint")
        evil = {name: deployed[name] for name in kept} | {"job_variables": chosen if how == "work" else {}, "path": str(tmp_path)}
        evil["pull_steps"] = [{"prefect.deployments.steps.run_shell_script": {"script": planted("pull-step")}}]
        request("POST", f"{api}/deployments/", evil)
        assert "cannot clone" in ended(api)  # as far as an ordinary run comes
        engines = lambda: [one for one in worker.children(recursive=True) if "prefect.engine" in said(one)]  # noqa: E731
        wait_until(lambda: not engines(), what="the end of its process")
        crashed = asked_for(api)  # after a crash, what started the run loads its flow, for the hooks
        wait_until(engines, what="the process of the run")
        engines()[0].kill()
        assert end_of(api, crashed)[0] == "CRASHED"

        request("POST", f"{api}/deployments/", {**evil, "pull_steps": None, "entrypoint": "evil.py:evil"})
        refused = end_of(api, asked_for(api))
        assert refused == ("FAILED", "evil.py:evil: not a flow of changepair; this worker only runs deployments of `changepair deploy`")
        request("POST", f"{api}/deployments/", {**evil, "pull_steps": None, "job_variables": {}})
    assert {file.name for file in tmp_path.iterdir()} == {"sitecustomize.py", "evil.py", "prefect"}


def said(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_relative_dvc_remote_is_refused_as_it_names_another_folder_in_a_clone(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "workspaces", "small", str(tmp_path / "origin"), "branch", None, 60)
    place.folder.mkdir(parents=True)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "remote", "add", "-q", "--default", "store", "../store"]):
        subprocess.run(command, cwd=place.folder, check=True)
    with pytest.raises(BadInput, match=r"the remote 'store' has the relative path \.\./\.\./store, .*dvc remote modify store url"):
        workspace.has_remote(place)
    subprocess.run(["dvc", "remote", "modify", "store", "url", str(tmp_path / "store")], cwd=place.folder, check=True)
    assert workspace.has_remote(place)


@pytest.mark.parametrize(
    ("config", "local", "refused"),
    [
        ("[core]\n    remote = s\n['remote \"s\"']\n    url = ../store\n", "", True),
        ('[core]\nremote=s # ours\n  [\'remote "s"\']\n    url = "../a, b"\n', "", True),
        ('[core]\n    remote = s\n[\'remote "s"\']\n    url = "/stores/a, b"\n', "", False),
        ("[core]\n    remote = s\n['remote \"s\"']\n    url = ~/store\n", "", False),
        ("[core]\n    remote = s\n['remote \"s\"']\n    url = ~nobody-here/store\n", "", True),
        ("[core]\n    remote = s\n['remote \"s\"']\n    url = s3://bucket/store\n", "", False),
        ("[core]\n    remote = s\n['remote \"s\"']\n    url = remote://t/x\n['remote \"t\"']\n    url = ../store\n", "", True),
        ("[core]\n    remote = s\n['remote \"s\"']\n    url = ../store\n", "['remote \"s\"']\n    url = /store\n", False),
        ("['remote \"s\"']\n    url = ../store\n", "[core]\n    remote = s\n", True),
        ("", "[core]\n    remote = s\n['remote \"s\"']\n    url = /store\n", False),
    ],
)
def test_a_remote_is_read_as_dvc_reads_it(tmp_path: Path, config: str, local: str, refused: bool) -> None:
    place = Workspace(tmp_path / "workspaces", "small", str(tmp_path / "origin"), "branch", None, 60)
    for folder in (".git/refs", ".git/objects", ".dvc"):
        (place.folder / folder).mkdir(parents=True)
    (place.folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (place.folder / ".dvc" / "config").write_text(config)
    if local:
        (place.folder / ".dvc" / "config.local").write_text(local)
    if refused:
        with pytest.raises(BadInput, match=r"^\.dvc/config: the remote '[st]' has the relative path"):
            workspace.has_remote(place)
    else:
        assert workspace.has_remote(place)
