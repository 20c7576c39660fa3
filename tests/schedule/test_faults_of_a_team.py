"""Faults between machines: a worker dies, a remote refuses or never answers, the cache that clones share is damaged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run
from processes import started, wait_until
from servers import ask, free_port, prefect_server, request
from stores import S3, store
from team import Team, git

pytestmark = pytest.mark.slow


def outs(team: Team) -> dict[str, str]:
    """path -> md5 of the clone's artifacts, as dvc.lock has them."""
    stages = yaml.safe_load((team.workspaces / "small/dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def runs_of_the_clone(team: Team) -> list[Path]:
    return sorted((team.workspaces / "small/data/runs/small").glob("*.json"), key=lambda file: int(file.stem))


def stages_of_the_clone(team: Team) -> list[dict[str, Any]]:
    """Reads the stages of its newest run."""
    files = runs_of_the_clone(team)
    return json.loads(files[-1].read_text())["stages"] if files else []


def ids_of_runs(team: Team) -> set[str]:
    return {item["id"] for item in ask(team.api, "flow_runs")}


def new_runs(team: Team, before: set[str]) -> list[dict[str, Any]]:
    """Lists the flow runs on the server, which other tests use too, that were not among those before."""
    return [item for item in ask(team.api, "flow_runs") if item["id"] not in before]


def descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory, api: str) -> Team:
    """A team deployed to a work pool, with the results of one run. Each test makes a revision of its own, so that none needs another."""
    top = tmp_path_factory.mktemp("pooled")
    pooled_team = Team(top, api, {"pool": "machines"}, [str(top / "remote")])
    result = run(pooled_team.project, "changepair", "deploy", PREFECT_API_URL=api)
    assert result.returncode == 0, result.stderr
    assert pooled_team.scheduled(PREFECT_API_URL=api).returncode == 0
    return pooled_team


def begun(team: Team, stage: str) -> bool:
    return any(item["name"] == stage for item in stages_of_the_clone(team))


def test_a_worker_that_dies_alone_leaves_its_run_to_finish(pooled: Team) -> None:
    revision = pooled.change()
    before = ids_of_runs(pooled)
    with pooled.worker() as worker:
        asked = run(pooled.project, "prefect", "deployment", "run", "scheduled/small", PREFECT_API_URL=pooled.api)
        assert asked.returncode == 0
        retrains = lambda: [item for item in new_runs(pooled, before) if item["name"] == "retrain small"]  # noqa: E731
        wait_until(lambda: len(retrains()) == 1, seconds=120, process=worker, what="the run's start")
        worker.kill()
        worker.wait()
        wait_until(lambda: retrains()[0]["state"]["type"] == "COMPLETED", seconds=180, what="the run's end")
        ended = lambda: all(item["state"]["type"] == "COMPLETED" for item in new_runs(pooled, before))  # noqa: E731
        wait_until(ended, seconds=60, what="the end of the scheduled run")
    assert git(pooled.origin, "rev-parse", "changepair/small^2") == revision


def test_a_machine_that_dies_with_its_worker_costs_the_stage_it_was_in(pooled: Team) -> None:
    """Worker, run and stages with SIGKILL. Another worker takes up what is asked for next, in the same clone."""
    revision = pooled.change("      - 1\n      - 2\n      seeds", "      - 1\n      seeds")  # sample has to run, and what follows
    number, before = len(runs_of_the_clone(pooled)), ids_of_runs(pooled)
    with pooled.worker() as worker:
        asked = run(pooled.project, "prefect", "deployment", "run", "scheduled/small", PREFECT_API_URL=pooled.api)
        assert asked.returncode == 0, asked.stderr
        reached = lambda: len(runs_of_the_clone(pooled)) > number and begun(pooled, "score_small_patch-residual")  # noqa: E731
        wait_until(reached, seconds=180, process=worker, what="score")
        for pid in [*descendants(worker.pid), worker.pid]:
            subprocess.run(["kill", "-KILL", str(pid)], check=False)
        worker.wait()
    (died,) = (item for item in new_runs(pooled, before) if item["name"] == "small at main")
    assert died["state"]["type"] == "RUNNING"  # nobody is left to say otherwise
    result = pooled.scheduled(PREFECT_API_URL=pooled.api)  # as the next worker would
    assert result.returncode == 0, result.stderr
    retrains = [item["state"]["name"] for item in new_runs(pooled, before) if item["name"] == "retrain small"]
    assert sorted(retrains) == ["Crashed", "Kept"] or sorted(retrains) == ["Crashed", "In use already"]  # the next run has said so
    assert [item["state"] for item in stages_of_the_clone(pooled)] == ["Up to date"] * 5 + ["Ran"] * 3
    assert git(pooled.origin, "rev-parse", "changepair/small^2") == revision
    assert pooled.reproduce("changepair/small").splitlines()[-1] == "Data and pipelines are up to date."


@pytest.mark.parametrize(("seed", "how"), [(7, "SIGTERM to the worker"), (8, "retrain small"), (9, "small at main")])
def test_a_run_of_a_worker_that_is_stopped_saves_and_promotes_nothing(pooled: Team, seed: int, how: str) -> None:
    """By a signal to the worker, or in the UI: the run that the worker started, or the one below it."""
    pooled.change("    detectors:", f"      - {seed}\n    detectors:")  # one more seed: sample has to run, and what follows
    number, before, results = len(runs_of_the_clone(pooled)), ids_of_runs(pooled), git(pooled.origin, "rev-parse", "changepair/small")
    variables = {"PREFECT_API_URL": pooled.api, "CHANGEPAIR_REPOSITORIES": str(pooled.origin)}
    with started(pooled.project, "changepair", "work", "--pool", "machines", **variables) as worker:
        asked = run(pooled.project, "prefect", "deployment", "run", "scheduled/small", PREFECT_API_URL=pooled.api)
        assert asked.returncode == 0, asked.stderr
        reached = lambda: len(runs_of_the_clone(pooled)) > number and begun(pooled, "score_small_patch-residual")  # noqa: E731
        wait_until(reached, seconds=180, process=worker, what="score")
        below = descendants(worker.pid)
        if how.startswith("SIGTERM"):
            worker.terminate()
            assert worker.wait(timeout=90) == 0
            assert not [pid for pid in below if os.path.exists(f"/proc/{pid}")]
        else:
            [chosen] = [item["id"] for item in new_runs(pooled, before) if item["name"] == how]
            request("POST", f"{pooled.api}/flow_runs/{chosen}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        final = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
        wait_until(lambda: all(item["state"]["type"] in final for item in new_runs(pooled, before)), what="the end of every run")
    states = {item["name"]: item["state"]["type"] for item in new_runs(pooled, before)}
    assert states["small at main"] == states["retrain small"] == "CANCELLED", states
    assert git(pooled.origin, "rev-parse", "changepair/small") == results
    assert json.loads(runs_of_the_clone(pooled)[-1].read_text())["state"] == "Stopped"


def test_a_run_of_a_machine_that_serves_saves_too_when_it_is_stopped(tmp_path: Path) -> None:
    with prefect_server(tmp_path / "prefect") as api:
        team = Team(tmp_path, api, {}, [str(tmp_path / "remote")])
        with started(team.project, "changepair", "serve", log="served.log", PREFECT_API_URL=api) as machine:
            wait_until(lambda: ask(api, "deployments"), what="the deployment")
            asked = run(team.project, "prefect", "deployment", "run", "scheduled/small", PREFECT_API_URL=api)
            assert asked.returncode == 0, asked.stderr
            wait_until(lambda: begun(team, "score_small_patch-residual"), seconds=240, process=machine, what="score")
            below = descendants(machine.pid)
            machine.terminate()
            assert machine.wait(timeout=90) == 0
            assert len(below) >= 2 and not [pid for pid in below if os.path.exists(f"/proc/{pid}")]
        states = {item["name"]: item["state"]["type"] for item in ask(api, "flow_runs")}
    assert states["small at main"] == states["retrain small"] == "CANCELLED", states
    assert "waiting for 1 run to save" in (team.project / "served.log").read_text()
    assert json.loads(runs_of_the_clone(team)[-1].read_text())["state"] == "Stopped"


@contextmanager
def silent(port: int) -> Iterator[None]:
    """Takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", port)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield
        for connection in held:
            connection.close()


def test_a_remote_that_refuses_or_never_answers_keeps_the_results_for_the_next_run(tmp_path: Path, api: str) -> None:
    port = free_port()
    modify = f"dvc remote modify store endpointurl http://127.0.0.1:{port}"
    team = Team(tmp_path, api, {}, ["s3://changepair/store", modify])
    refused = team.scheduled(PREFECT_API_URL=api, **S3)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr[-2000:]
    message = refused.stderr.splitlines()[-1]
    assert message.startswith("changepair: small: cannot push: ") and message.endswith("and the next run pushes them")
    assert "changepair/small" not in git(team.origin, "branch", "--list", "changepair/*")
    artifacts = outs(team)

    parameters = json.dumps({"remote_timeout": 8})
    with silent(port):
        unanswered = team.scheduled(PREFECT_API_URL=api, parameters=parameters, **S3)
    assert unanswered.returncode == 2 and "timed out after 8 s" in unanswered.stderr.splitlines()[-1]
    assert outs(team) == artifacts and {item["state"] for item in stages_of_the_clone(team)} == {"Up to date"}

    with store(tmp_path / "s3", port):
        sent = team.scheduled(PREFECT_API_URL=api, **S3)
        assert sent.returncode == 0, sent.stderr[-2000:]
        assert outs(team) == artifacts and {item["state"] for item in stages_of_the_clone(team)} == {"Up to date"}
        assert git(team.origin, "branch", "--list", "changepair/*").strip() == "changepair/small"


def test_a_damaged_object_in_the_shared_cache_is_fetched_again(pooled: Team) -> None:
    before = outs(pooled)
    md5 = before["data/episodes/small.targets.parquet"]
    cached = pooled.workspaces / "cache/files/md5" / md5[:2] / md5[2:]
    damaged = cached.read_bytes()[:-50] + bytes(50)
    cached.chmod(0o644)
    times = os.stat(cached)
    cached.write_bytes(damaged)
    os.utime(cached, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk would leave it
    result = pooled.scheduled(PREFECT_API_URL=pooled.api, PREFECT_LOGGING_LEVEL="INFO")
    assert result.returncode == 0, result.stderr
    assert "data/episodes/small.targets.parquet is damaged in the cache" in result.stdout + result.stderr
    assert outs(pooled) == before and {item["state"] for item in stages_of_the_clone(pooled)} == {"Up to date"}
    assert cached.read_bytes() != damaged and (pooled.workspaces / "small/data/episodes/small.targets.parquet").read_bytes() != damaged
