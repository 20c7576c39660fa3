"""Connect a run and its processes to one Prefect API, and link each process to the task that started it."""

from __future__ import annotations

import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Flow, State
from prefect.artifacts import create_link_artifact
from prefect.client import orchestration
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateDetails
from prefect.context import FlowRunContext, TaskRunContext, refresh_global_settings_context
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled, Crashed, Pending
from prefect.utilities.urls import url_for

from changepair.flows.running.exit_handling import PARENT
from changepair.flows.running.login import login_for, new_login
from changepair.flows.running.orders import follow_orders, following_orders
from changepair.flows.running.secrets import hide
from changepair.flows.running.temporary import temporary_server
from changepair.flows.runs.states import RunState
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.stopping import Stopped

SEEN = "CHANGEPAIR_SERVER"  # environment variable: the API of a server that has answered the parent process
AWAY = 600.0  # seconds to wait for a server that does not answer
PAUSE = 2.0  # seconds between two tries
RETRIES = "8"  # for one call, with doubling pauses; together they also last ten minutes
BUSY_OR_SHUT = (401, 403, 429, 500, 502, 503, 504)  # status codes of a server that runs but refuses the request
STOPPED = str(RunState.STOPPED)
P = ParamSpec("P")
R = TypeVar("R")
_temporary: ContextVar[bool] = ContextVar("temporary", default=False)  # whether the server ends with this process


@contextmanager
def one_api() -> Iterator[None]:
    """Use one API in this process and its children. Raises BadInput if the API does not answer.

    The API is the one of PREFECT_API_URL. Without this variable, it is a temporary server on loopback that ends with this process.
    Prefect by default starts one server per process, which takes longer than most stages.
    """
    temporary = not PREFECT_API_URL.value()
    if temporary:
        login: str | None = new_login()
        url = temporary_server(str(login))
    else:
        url, login = named_server()
    os.environ |= {"PREFECT_API_URL": url, SEEN: url}  # for the stages' processes
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", RETRIES)
    with logged_in(url, login), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: int(os.environ["PREFECT_CLIENT_MAX_RETRIES"])}):
        refresh_global_settings_context()  # without an API, Prefect's threads and its exit would start another server
        _temporary.set(temporary)
        yield


@contextmanager
def logged_in(url: str, login: str | None) -> Iterator[None]:
    """Use a Prefect API with a login, in this process and its children.

    Prefect's clients of this process share a TLS context. Otherwise each reads the certificates of all authorities, even without TLS.
    """
    if vars(orchestration)["ssl"] is ssl:
        shared = SimpleNamespace(**{**vars(ssl), "create_default_context": cache(ssl.create_default_context)})
        setattr(orchestration, "ssl", shared)  # noqa: B010 - Prefect has no setting for it
    if login is not None:
        os.environ["PREFECT_API_AUTH_STRING"] = login
    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login}):
        yield


def page_of_run() -> str | None:
    """Return the URL of the current flow run's page; None if the server ends with this process."""
    context = FlowRunContext.get()
    return None if _temporary.get() or context is None or context.flow_run is None else url_for(context.flow_run)


def named_server() -> tuple[str, str | None]:
    """Return the URL of the API in PREFECT_API_URL, and the login for it. Raise BadInput if the API does not answer."""
    url = PREFECT_API_URL.value()
    if not url:
        raise BadInput("PREFECT_API_URL: not set; start a server with `changepair ui` and set the variable to the address that it prints")
    login = login_for(url)
    refuse_silent(url, login)
    return url, login


def refuse_silent(url: str, login: str | None) -> None:
    """Raise BadInput if no Prefect server answers at a URL, or the server refuses the login."""
    if not answers(url):
        hint = "start one with `changepair ui`, or unset the variable"
        if answers(f"{url.rstrip('/')}/api"):
            hint = f"set the variable to {url.rstrip('/')}/api"
        raise BadInput(f"PREFECT_API_URL: no Prefect server answers at {hide(url)}; {hide(hint)}")
    if login_is_refused(url, login):
        raise BadInput(
            f"PREFECT_API_AUTH_STRING: the Prefect server at {hide(url)} refuses {'this login' if login else 'requests without a login'}; "
            "set the variable to the <name>:<password> of the server"
        )


def login_is_refused(url: str, login: str | None) -> bool:
    """Return whether a server rejects the login. A server that is busy or does not answer has not rejected it. Prefect Cloud uses a key
    instead of a login."""
    if PREFECT_API_KEY.value():
        return False
    name, _, password = (login or "").partition(":")
    try:
        answer = httpx.get(f"{url}/admin/version", auth=(name, password) if login else None, timeout=30, verify=_has_tls(url))
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.UNAUTHORIZED


def answers(url: str) -> bool:
    """Return whether a Prefect server answers at a URL, even if it is busy or refuses the request."""
    try:
        answer = httpx.get(f"{url}/health", timeout=30, verify=_has_tls(url))
        return answer.status_code in BUSY_OR_SHUT or answer.json() is True
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False


def _has_tls(url: str) -> bool:
    """Return whether a client of this URL needs the certificates of authorities. Reading them takes 20 ms."""
    return not url.startswith("http://")


def wait_for_server() -> None:
    """Wait for a server that has answered this run before and is restarting.

    Call it before a new client's first request. Prefect's clients retry only after their first answer.
    """
    url = os.environ.get(SEEN)
    if url is None or answers(url):
        return
    print(f"changepair: the Prefect server does not answer; waiting up to {AWAY / 60:.0f} minutes", file=sys.stderr, flush=True)
    deadline = time.monotonic() + AWAY
    while not answers(url) and time.monotonic() < deadline and not stopping.asked():
        time.sleep(PAUSE)


@contextmanager
def parent() -> Iterator[None]:
    """Link the flows of the block's processes to the current task run, for the UI."""
    context = TaskRunContext.get()
    if context is None:
        yield
        return
    os.environ[PARENT] = str(context.task_run.id)
    try:
        yield
    finally:
        del os.environ[PARENT]


def child() -> FlowRun | None:
    """Return the newest child run of the current task; None without one."""
    context = TaskRunContext.get()
    if context is None:
        return None
    wait_for_server()
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_task_run_id={"any_": [context.task_run.id]}))  # type: ignore[arg-type]
    return max(runs, key=lambda run: str(run.created), default=None)


def link_child() -> StateDetails:
    """Link the flow run of a task's process on the task's page, and in the details of its state."""
    child_run = child()
    url = url_for(child_run) if child_run is not None else None
    if child_run is None or url is None:
        return StateDetails()
    text = f"run of {child_run.name}"
    create_link_artifact(link=url, link_text=text, description=f"[{text}]({url})")  # the task's page shows only the description
    return StateDetails(child_flow_run_id=child_run.id)


def close_dead(run: UUID, message: str) -> None:
    """Set a run whose process has died, and its unfinished child runs, to Crashed on the server."""
    with get_client(sync_client=True) as client:
        waiting = [run]
        while waiting:
            one = waiting.pop()
            try:
                flow_run = client.read_flow_run(one)
            except ObjectNotFound:  # on another server, or deleted
                continue
            below = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [one]}}))
            waiting += [item.id for item in below]
            if flow_run.state is not None and not flow_run.state.is_final():
                client.set_flow_run_state(one, Crashed(message=message), force=True)


def run(flow: Flow[..., Any], **parameters: Any) -> State[Any]:
    """Run a flow, linked to the task that started this process, if any. Return its final state.

    Raises the flow's own error, or Stopped if the flow was asked to stop.
    """
    wait_for_server()
    stopping.check(f"before {flow.name} began")
    task_run, flow_run = os.environ.pop(PARENT, None), None
    if task_run is not None:
        # If the server does not know the task, only the link is lost.
        with get_client(sync_client=True) as client, suppress(PrefectHTTPStatusError):
            flow_run = client.create_flow_run(flow, parameters=parameters, parent_task_run_id=UUID(task_run), state=Pending())
    with without_heartbeat() if task_run is not None or _temporary.get() else nullcontext():
        state = cast(State[Any], run_flow(flow, flow_run=flow_run, parameters=parameters, return_type="state"))
    if state.is_cancelling():  # cancelled after its last checkpoint; the server then accepts no other state
        run, state = state.state_details.flow_run_id, Cancelled(message="cancelled after its last checkpoint")
        if run is not None:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run, state, force=True)
    if state.is_cancelled():
        raise Stopped(state.message)
    if not state.is_completed():
        state.result()
    return state


@contextmanager
def without_heartbeat() -> Iterator[None]:
    """Send no heartbeats for the flows of the block, unless the user has set their frequency in Prefect.

    The run that started a flow sends heartbeats, and a temporary server needs none. Prefect's thread for heartbeats delays the end of a
    flow by up to a second.
    """
    if "heartbeat_frequency" in get_current_settings().flows.model_fields_set:
        yield
        return
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def stoppable(work: Callable[P, R]) -> Callable[P, R | State[None]]:
    """Wrap a flow's function so that it stops at its next checkpoint, in the state STOPPED, on SIGTERM or a cancellation on the server.

    Prefect sets its own signal handler when a flow starts, so this wraps the function inside the flow.
    """

    @wraps(work)
    def stopped_politely(*arguments: P.args, **named: P.kwargs) -> R | State[None]:
        with stopping.on_sigterm(), following_orders():
            try:
                done = work(*arguments, **named)
                follow_orders()
                return done
            except Exception as error:
                ended = stopped(error)
                if ended is None:
                    raise
                return ended

    return stopped_politely


def stopped(error: Exception) -> State[None] | None:
    """Return the final state of a flow that was asked to stop, or whose stage was; None for any other error."""
    if isinstance(error, Stopped):
        return Cancelled(name=STOPPED, message=str(error))
    if not stopping.asked():
        return None
    # A child process may have received the signal too, and failed.
    return Cancelled(name=STOPPED, message="in the middle of a step")


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent process ends. A killed parent cannot send one itself."""
    if PARENT in os.environ:
        stopping.die_with_parent()
