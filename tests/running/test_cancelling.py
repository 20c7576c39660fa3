"""A run that is cancelled in Prefect stops at a checkpoint, whoever started it, and promotes nothing; a run that is paused there waits."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL, STAGES, TINY, make_project, run
from prefect import flow
from prefect import flow_engine as engine
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending
from processes import started, wait_until, within
from servers import ask, request

from changepair.flows.running.api import run as run_flow
from changepair.flows.running.api import stoppable
from changepair.tasks.common import stopping
from changepair.tasks.common.stopping import Stopped

pytestmark = pytest.mark.attack
CANCELLING = {"type": "CANCELLING", "name": "Cancelling", "message": "from the UI"}
CANCELLED = {"type": "CANCELLED", "name": "Cancelled", "message": "from the UI"}
PAUSED = {"type": "PAUSED", "name": "Paused"}
SUSPENDED = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
RETRAIN = ("changepair", "retrain", "small")
HELD = """
import os, sys, time
from pathlib import Path

if " ".join(sys.orig_argv[1:]) == os.environ.get("HELD_STAGE"):
    from changepair.flows.running import api

    here, follow = Path(os.environ["HELD_IN"]), api.following_orders

    def held():
        (here / "held").touch()
        while not (here / "go").exists():
            time.sleep(0.05)
        return follow()

    api.following_orders = held
"""
"""A sitecustomize.py: the process of the stage HELD_STAGE waits, once its run has begun, for a file `go`."""


def order(api: str, run_id: str, state: dict[str, Any]) -> None:
    """Set the state of a flow run, as a button of the UI does."""
    request("POST", f"{api}/flow_runs/{run_id}/set_state", {"state": state})


def state_of(api: str, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = request("GET", f"{api}/flow_runs/{run_id}")["state"]
    return found


@pytest.fixture
def here(api: str, polite: None) -> Iterator[str]:
    """The server, for flows of this process."""
    with temporary_settings({PREFECT_API_URL: api}):
        yield api


class Steps:
    """A flow of many short steps, and the thread that gives orders to it once it runs."""

    def __init__(self, api: str, *orders: dict[str, Any]) -> None:
        self.done, self.run_id, self.begun = 0, "", threading.Event()
        self.seen: list[int] = []
        """Steps done a moment before and after an order was followed."""

        @flow(name="steps")
        @stoppable
        def steps() -> None:
            from prefect.runtime import flow_run

            self.run_id = str(flow_run.get_id())
            self.begun.set()
            for self.done in range(200):
                stopping.check(f"step {self.done}")
                time.sleep(0.1)

        self.flow = steps
        self.thread = threading.Thread(target=self._give, args=(api, orders))
        self.thread.start()

    def _give(self, api: str, orders: tuple[dict[str, Any], ...]) -> None:
        self.begun.wait(60)
        for number, one in enumerate(orders):
            if number:
                time.sleep(4)
                self.seen.append(self.done)
                time.sleep(1)
                self.seen.append(self.done)
            if one.get("resume"):
                request("POST", f"{api}/flow_runs/{self.run_id}/resume", {})
            else:
                order(api, self.run_id, one)


@pytest.mark.parametrize("state", [CANCELLING, CANCELLED], ids=lambda state: state["name"])
def test_a_flow_stops_at_its_next_checkpoint_when_it_is_cancelled(here: str, state: dict[str, Any]) -> None:
    steps = Steps(here, state)
    with pytest.raises(Stopped, match=r"step \d+"):
        run_flow(steps.flow)
    assert steps.done < 80
    ended = state_of(here, steps.run_id)
    assert ended["type"] == "CANCELLED" and ended["message"] == f"step {steps.done}"


def test_a_deployed_flow_that_is_suspended_ends_its_process(here: str) -> None:
    """When it is resumed Prefect starts a new process, which would find the first one still at work."""
    steps = Steps(here, SUSPENDED)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(steps.flow), f"suspended-{time.monotonic_ns()}")
        flow_run = client.create_flow_run_from_deployment(deployment, state=Pending())
    with pytest.raises(Pause):
        engine.run_flow(steps.flow, flow_run=flow_run, return_type="state")
    assert state_of(here, steps.run_id)["name"] == "Suspended" and steps.done < 80


def test_a_flow_that_is_paused_waits_until_it_is_resumed(here: str) -> None:
    steps = Steps(here, PAUSED, {"resume": True}, CANCELLING)
    with pytest.raises(Stopped):
        run_flow(steps.flow)
    steps.thread.join()
    before, after, resumed, later = steps.seen
    assert before == after < resumed < later


def test_a_flow_that_is_cancelled_while_it_is_paused_ends(here: str) -> None:
    steps = Steps(here, PAUSED, CANCELLING)
    with pytest.raises(Stopped):
        run_flow(steps.flow)
    assert state_of(here, steps.run_id)["type"] == "CANCELLED"


def test_what_is_done_when_the_order_comes_is_not_kept(here: str) -> None:
    """A stage ends with another code than 0 then, so that DVC records nothing, and the UI shows what was asked for."""

    @flow(name="done")
    @stoppable
    def done() -> None:
        from prefect.runtime import flow_run

        order(here, str(flow_run.get_id()), CANCELLING)

    with pytest.raises(Stopped):
        run_flow(done)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("cancelled") / "project", TINY)


def newest(api: str, name: str, after: set[str]) -> dict[str, Any] | None:
    """Return the flow run of a name that is at work and not among those before."""
    runs = [item for item in ask(api, "flow_runs") if item["name"] == name and item["id"] not in after]
    return max(runs, key=lambda item: str(item["created"]), default=None)


def in_use(folder: Path) -> str:
    """Return which model is in use, as DVC has it; "" for none."""
    file = folder / "data/models/small/in-use.dvc"
    return file.read_text() if file.exists() else ""


def ended(folder: Path) -> dict[str, Any]:
    files = sorted((folder / "data/runs/small").glob("*.json"), key=lambda file: int(file.stem))
    found: dict[str, Any] = json.loads(files[-1].read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("state", [CANCELLING, CANCELLED], ids=lambda state: state["name"])
@pytest.mark.parametrize("name", ["retrain small", "score small patch-residual"])
def test_a_retrain_started_by_hand_stops_when_it_or_its_stage_is_cancelled(
    project: Path, api: str, state: dict[str, Any], name: str
) -> None:
    (project / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(project / ".dvc/cache/runs", ignore_errors=True)
    before, model = {item["id"] for item in ask(api, "flow_runs")}, in_use(project)
    with started(project, *RETRAIN, PREFECT_API_URL=api) as process:
        stage = "score small patch-residual"
        within(180, lambda: (newest(api, stage, before) or {"state": None})["state"], stage)
        top, chosen = newest(api, "retrain small", before), newest(api, name, before)
        assert top is not None and chosen is not None
        order(api, chosen["id"], state)
        since = time.monotonic()
        assert process.wait(timeout=60) == 143, (project / "output.log").read_text()[-3000:]
        assert time.monotonic() - since < 30
    assert state_of(api, top["id"])["type"] == state_of(api, chosen["id"])["type"] == "CANCELLED"
    assert ended(project)["state"] == "Stopped" and in_use(project) == model
    log = (project / "output.log").read_text()
    assert "cancelled in Prefect; stopping at the next checkpoint" in log and "Traceback" not in log


@pytest.mark.slow
def test_after_a_cancelled_run_the_next_one_finds_every_lock_free(project: Path, api: str) -> None:
    result = run(project, *RETRAIN, PREFECT_API_URL=api)
    assert result.returncode == 0 and "waiting" not in result.stderr, result.stderr
    assert ended(project)["state"] in ("Promoted", "In use already")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything is made, the inpainter, pairs and detectors too."""
    return make_project(tmp_path_factory.mktemp("cancelled") / "project", SMALL)


def cancelled_at(project: Path, stage: str, api: str, folder: Path) -> None:
    """Retrain, cancel the run of a stage on the server while it runs, and expect that nothing follows it."""
    command = yaml.safe_load((project / "dvc.yaml").read_text())["stages"][stage]["cmd"]
    lock = project / "dvc.lock"
    if lock.is_file():  # the stage has to run
        made = yaml.safe_load(lock.read_text())
        made["stages"].pop(stage, None)
        lock.write_text(yaml.safe_dump(made))
    shutil.rmtree(project / ".dvc/cache/runs", ignore_errors=True)
    (folder / "sitecustomize.py").write_text(HELD)
    before, model = {item["id"] for item in ask(api, "flow_runs")}, in_use(project)
    held = {"HELD_STAGE": command.removeprefix("python "), "HELD_IN": str(folder), "PYTHONPATH": f"{folder}:{project}"}
    with started(project, *RETRAIN, PREFECT_API_URL=api, **held) as process:
        wait_until((folder / "held").exists, seconds=400, process=process, what=stage)
        new = {item["name"]: item for item in ask(api, "flow_runs") if item["id"] not in before}
        top = new.pop("retrain small")
        [at_work] = [item for item in new.values() if item["state"]["type"] == "RUNNING"]
        order(api, at_work["id"], CANCELLING)
        (folder / "go").touch()
        assert process.wait(timeout=60) == 143, (project / "output.log").read_text()[-3000:]
    assert state_of(api, top["id"])["type"] == state_of(api, at_work["id"])["type"] == "CANCELLED"
    later = {item["name"] for item in ask(api, "flow_runs") if item["id"] not in before} - set(new) - {"retrain small"}
    assert not later and stage not in yaml.safe_load(lock.read_text() if lock.is_file() else "stages: {}")["stages"]
    assert ended(project)["state"] == "Stopped" and in_use(project) == model


def test_a_retrain_stops_when_a_quick_stage_is_cancelled(project: Path, api: str, tmp_path: Path) -> None:
    cancelled_at(project, "sample_small", api, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "code"])  # which is no run of its own
def test_a_retrain_stops_when_any_of_its_stages_is_cancelled(whole: Path, stage: str, api: str, tmp_path: Path) -> None:
    cancelled_at(whole, stage, api, tmp_path)
