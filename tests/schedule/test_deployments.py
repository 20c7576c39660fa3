"""Deployments on a real Prefect server: what `changepair deploy` makes of pipelines.yaml, and how what is due is run."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, commit, make_project, run, write_pipelines
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes import started, wait_until
from servers import ask, events, prefect_server, request

from changepair.flows.running.entry import LIMIT
from changepair.flows.runs.states import DRIFT_EVENT, OF_AN_END, RunState, emit, resource_of
from changepair.flows.schedule import deployments
from changepair.flows.settings.reader import parse
from changepair.flows.settings.runs import Runs, Schedule, ScheduleSettings
from changepair.tasks.common.errors import BadInput


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("run") / "project", TINY)
    commit(folder)
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_deployed(project: Path, api: str) -> None:
    """Takes away what the test before left on the server and in pipelines.yaml."""
    write_pipelines(project, TINY)
    for item in ask(api, "deployments"):
        request("DELETE", f"{api}/deployments/{item['id']}")
    for limit in request("POST", f"{api}/v2/concurrency_limits/filter", {}):
        if limit["name"] == LIMIT:
            request("DELETE", f"{api}/v2/concurrency_limits/{limit['id']}")


def settings(folder: Path, *, enabled: tuple[str, ...] = ("small",), runs: dict[str, Any] | None = None, **pipeline: Any) -> None:
    content = copy.deepcopy(TINY)
    content["enabled"] = list(enabled)
    content["runs"] = {"workspaces": str(folder.parent / "workspaces"), **(runs or {})}
    content["pipelines"]["other"] = copy.deepcopy(content["pipelines"]["small"])  # type: ignore[index]
    content["pipelines"]["small"] |= pipeline  # type: ignore[index]
    write_pipelines(folder, content)


def deployed(folder: Path, api: str) -> list[str]:
    result = run(folder, "changepair", "deploy", PREFECT_API_URL=api)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def of(api: str, name: str) -> dict[str, Any]:
    deployments = {item["name"]: item for item in ask(api, "deployments")}
    return deployments[name]


def test_deploy_makes_one_of_each_enabled_pipeline_and_says_what_it_did(project: Path, api: str) -> None:
    settings(project, runs={"tags": ["line-3"], "gpus": 2}, schedule={"cron": "0 3 * * 1", "timezone": "Europe/Berlin"})
    assert deployed(project, api) == ["GPU stages: 2 at a time", "created: small, 0 3 * * 1 (Europe/Berlin)"]
    deployment = of(api, "small")
    assert [item["schedule"]["cron"] for item in deployment["schedules"]] == ["0 3 * * 1"]
    assert deployment["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin" and set(deployment["tags"]) == {"changepair", "line-3"}
    assert deployment["parameters"]["pipeline"] == "small" and deployment["parameters"]["repository"] == str(project)
    assert deployment["concurrency_limit"] == 1 or deployment["global_concurrency_limit"]["limit"] == 1
    assert deployed(project, api) == ["unchanged: small, 0 3 * * 1 (Europe/Berlin)"]


def test_deploy_follows_pipelines_yaml_and_removes_what_is_no_longer_named(project: Path, api: str) -> None:
    settings(project, schedule={"cron": "0 3 * * 1"}, runs={"gpus": 2})
    deployed(project, api)
    settings(project, enabled=("small", "other"), schedule={"interval": "6 hours"}, runs={"overlap": "skip"})
    assert deployed(project, api) == ["GPU stages: 1 at a time", "updated: small, every 6:00:00", "created: other, no schedule"]
    assert of(api, "small")["schedules"][0]["schedule"]["interval"] == 6 * 3600 and of(api, "other")["schedules"] == []
    assert of(api, "small")["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    settings(project, enabled=("other",))
    assert deployed(project, api)[-1] == "removed: small"
    assert [item["name"] for item in ask(api, "deployments")] == ["other"]


def test_an_interval_is_counted_from_the_same_moment_however_often_it_is_deployed_and_served(project: Path, api: str) -> None:
    """Else a weekly run never comes on a machine that is restarted every week."""
    settings(project, schedule={"interval": "1 week"})
    deployed(project, api)
    planned = lambda: of(api, "small")["schedules"][0]["schedule"]["anchor_date"]  # noqa: E731
    first = planned()
    settings(project, schedule={"interval": "1 week"}, runs={"tags": ["line-3"]})
    assert deployed(project, api) == ["updated: small, every 7 days, 0:00:00"] and planned() == first
    with started(project, "changepair", "serve", log="served.log", PREFECT_API_URL=api):
        wait_until(lambda: of(api, "small")["status"] == "READY", what="its first look for what is due")
        wait_until(lambda: "unchanged: small" in (project / "served.log").read_text(), what="the deployment")
    assert planned() == first
    settings(project, schedule={"interval": "6 hours"}, runs={"tags": ["line-3"]})
    assert deployed(project, api) == ["updated: small, every 6:00:00"] and planned() > first


def test_a_watched_line_has_a_deployment_beside_and_its_drift_retrains(project: Path, api: str) -> None:
    watch = {"folder": "/line", "prompts": "/normal.png", "normals": "/normals", "schedule": {"interval": "10 minutes"}}
    settings(project, watch=watch)
    assert deployed(project, api)[-2:] == ["created: small, no schedule", "created: small, new pictures, every 0:10:00"]
    both = {item["entrypoint"].rpartition(".")[2]: item for item in ask(api, "deployments")}
    assert set(both) == {"scheduled", "watched"} and both["watched"]["schedules"][0]["schedule"]["interval"] == 600
    assert deployed(project, api) == ["unchanged: small, no schedule", "unchanged: small, new pictures, every 0:10:00"]
    [automation] = ask(api, "automations")
    assert set(automation["trigger"]["expect"]) == {"changepair.drifted", "changepair.labelled"}
    assert automation["actions"][0]["deployment_id"] == both["scheduled"]["id"]
    with temporary_settings({PREFECT_API_URL: api}):
        emit("small", DRIFT_EVENT, {})
        wait_until(
            lambda: [run for run in of_deployments(api) if run["deployment_id"] == both["scheduled"]["id"]], what="a run for the drift"
        )
    settings(project)
    assert deployed(project, api) == ["updated: small, no schedule", "removed: small, new pictures"]
    assert not ask(api, "automations")


def test_an_automation_acts_on_what_a_run_ends_with(project: Path, api: str) -> None:
    """As a team may have it: once a model was kept out, the schedule rests until somebody has looked."""
    settings(project, schedule={"interval": "6 hours"})
    deployed(project, api)
    deployment = of(api, "small")
    automation = {
        "name": "rest when a model is kept out",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": [OF_AN_END[RunState.KEPT]],
            "match": {"prefect.resource.id": resource_of("small")},
            "threshold": 1,
            "within": 0,
        },
        "actions": [{"type": "pause-deployment", "source": "selected", "deployment_id": deployment["id"]}],
    }
    made = request("POST", f"{api}/automations/", automation)
    try:
        with temporary_settings({PREFECT_API_URL: api}):
            emit("small", OF_AN_END[RunState.PROMOTED], {"reason": "better"})  # which it does not act on
            emit("other", OF_AN_END[RunState.KEPT], {"reason": "worse"})
            emit("small", OF_AN_END[RunState.KEPT], {"reason": "worse", "in use": {"hash": "0123.dir"}})
            wait_until(lambda: of(api, "small")["paused"], what="the automation")
        [event] = events(api, OF_AN_END[RunState.PROMOTED])
        assert event["payload"]["reason"] == "better" and event["resource"]["prefect.resource.id"] == "changepair.pipeline.small"
    finally:
        request("DELETE", f"{api}/automations/{made['id']}")


def test_deploy_leaves_the_deployments_of_others_alone(project: Path, api: str, tmp_path: Path) -> None:
    settings(project, enabled=("small",))
    deployed(project, api)
    stranger = make_project(tmp_path / "stranger", TINY)
    commit(stranger)
    settings(stranger, enabled=("other",))
    deployed(stranger, api)
    assert {item["name"] for item in ask(api, "deployments")} == {"small", "other"}
    settings(stranger, enabled=("other", "small"), runs={"gpus": 4})
    refused = run(stranger, "changepair", "deploy", PREFECT_API_URL=api)
    assert refused.returncode == 2 and refused.stdout == ""
    message = f"changepair: pipelines.small: a deployment with this name exists for {project}, not for {stranger}; "
    assert refused.stderr.splitlines()[-1].startswith(message)
    assert of(api, "small")["parameters"]["repository"] == str(project)
    settings(stranger, enabled=())
    assert deployed(stranger, api) == ["removed: other"]
    assert {item["name"] for item in ask(api, "deployments")} == {"small"}


def test_a_server_with_more_deployments_than_it_gives_at_once_is_asked_again(
    project: Path, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(project, enabled=("small", "other"))
    deployed(project, api)
    monkeypatch.setattr(deployments, "PAGE", 1)
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        assert sorted(item.name for item in deployments.of_this_project(client)) == ["other", "small"]


def test_without_a_server_deploy_says_where_one_comes_from(project: Path) -> None:
    result = run(project, "changepair", "deploy")
    assert result.returncode == 2 and "`changepair ui`" in result.stderr.splitlines()[-1]


def test_a_password_in_the_repositorys_address_is_refused(project: Path, api: str) -> None:
    settings(project, runs={"repository": "https://someone:hunter2secret@example.org/parts.git"})  # pragma: allowlist secret
    result = run(project, "changepair", "deploy", PREFECT_API_URL=api)
    assert result.returncode == 2 and "password" in result.stderr and "hunter2secret" not in result.stdout + result.stderr


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_what_serves_ends_when_it_is_asked_to_and_warns_of_nothing(project: Path, api: str, sign: signal.Signals) -> None:
    settings(project)
    command = [sys.executable, "-m", "changepair.flows.cli", "serve"]
    with subprocess.Popen(
        command, cwd=project, env={**os.environ, "PREFECT_API_URL": api}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        while "small" not in (line := process.stdout.readline()):
            assert line, "it ended before it had deployed"
        time.sleep(3)  # until it looks for what is due
        process.send_signal(sign)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and said == "changepair: stopped\n", said


@pytest.mark.slow
def test_after_a_time_in_which_nothing_ran_one_run_makes_up_for_all(project: Path, tmp_path: Path) -> None:
    """A server is stopped with runs ahead, and comes back when all are past. The repository is not there, so a run ends at once."""
    settings(project, runs={"repository": str(project.parent / "gone.git")}, schedule={"interval": "6 hours"})
    few = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "4"}
    with prefect_server(tmp_path / "prefect", **few) as api:
        deployed(project, api)
        often = {"schedule": {"interval": 1.0}, "active": True}
        request("PATCH", f"{api}/deployments/{of(api, 'small')['id']}", {"schedules": [often]})
        wait_until(lambda: len(of_deployments(api)) >= 4, what="the scheduling of four runs")
    time.sleep(5)
    with prefect_server(tmp_path / "prefect", PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED="false") as api:
        missed = len(due(api))
        assert missed >= 4
        with started(project, "changepair", "serve", PREFECT_API_URL=api):
            wait_until(lambda: not due(api) and not at_work(api), what="the end of what was due")
        states = Counter(item["state"]["name"] for item in of_deployments(api) if item["state"]["type"] != "SCHEDULED")
        assert states == Counter({"Missed": missed - 1, "Failed": 1}), states
        [failed] = [item for item in of_deployments(api) if item["state"]["name"] == "Failed"]
        assert "cannot clone" in failed["state"]["message"]


def of_deployments(api: str) -> list[dict[str, Any]]:
    return [item for item in ask(api, "flow_runs") if item["deployment_id"]]


def due(api: str) -> list[dict[str, Any]]:
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return [item for item in of_deployments(api) if item["state"]["type"] == "SCHEDULED" and item["expected_start_time"] < now]


def at_work(api: str) -> list[dict[str, Any]]:
    return [item for item in of_deployments(api) if item["state"]["type"] in ("PENDING", "RUNNING")]


HOLD = """
import sys, time
import torch
torch.cuda.is_available = lambda: True
from changepair.flows.running.entry import gpu_slot
with gpu_slot():
    start = time.time()
    time.sleep(2)
    open(sys.argv[1], "w").write(f"{start} {time.time()}")
"""


@pytest.mark.slow
def test_gpu_stages_share_the_servers_limit(project: Path, api: str) -> None:
    """Two processes on machines with a GPU (said so for the test), one slot: one after the other."""
    settings(project)
    deployed(project, api)
    files = [project / "first.span", project / "second.span"]
    with (
        started(project, "python", "-c", HOLD, str(files[0]), PREFECT_API_URL=api) as first,
        started(project, "python", "-c", HOLD, str(files[1]), PREFECT_API_URL=api) as second,
    ):
        assert first.wait(timeout=120) == 0 and second.wait(timeout=120) == 0
    spans = sorted([float(number) for number in file.read_text().split()] for file in files)
    assert spans[1][0] >= spans[0][1]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"cron": "0 3 * *"}, "a cron line"),
        ({"interval": "6"}, "a duration such as"),
        ({"interval": "0 hours"}, "a duration such as"),
        ({"cron": "0 3 * * 1", "interval": "6 hours"}, "exactly one of cron and interval"),
        ({"cron": "0 3 * * 1", "timezone": "Europe/Berln"}, "Europe/Berlin"),
        ("every day", "a cron line"),
    ],
)
def test_a_schedule_that_cannot_be_is_told_in_one_line(said: Any, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        parse(ScheduleSettings, said, ("schedule",))  # type: ignore[arg-type]


def test_schedules_as_they_may_be_written() -> None:
    assert parse(ScheduleSettings, "0 3 * * 1") == Schedule(cron="0 3 * * 1")  # type: ignore[arg-type]
    assert parse(ScheduleSettings, {"interval": "1 day"}).interval == timedelta(days=1)  # type: ignore[arg-type,attr-defined]


@pytest.mark.parametrize("value", ["--upload-pack=touch x", "-n", "main; touch x", "$(touch x)", "a b", ""])
def test_a_revision_is_no_option_and_no_command(value: str) -> None:
    with pytest.raises(BadInput):
        parse(Runs, {"revision": value})
