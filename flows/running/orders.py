"""Follow the Prefect server: stop or pause a run at its next checkpoint when it is cancelled or paused there.

A worker can only end the run that it started. So every run polls its own state on the server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from changepair.flows.running.exit_handling import tell
from changepair.tasks.common import stopping

EVERY = 2.0  # seconds between two requests of a run's state
PATIENCE = 5.0  # seconds that a request may take


@contextmanager
def following_orders() -> Iterator[None]:
    """During the block, stop or pause this process when its flow run is cancelled or paused on the server."""
    if _own_run() is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY) and not stopping.asked():
            _follow()

    thread = threading.Thread(target=copy_context().run, args=(watch,), name="orders", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        stopping.resume()
        thread.join(timeout=PATIENCE)


def follow_orders() -> None:
    """Check the run's state now, before a step that cannot be undone. Raises Stopped if the run was cancelled."""
    _follow()
    stopping.check("before its result was saved")


def _follow() -> None:
    run = _own_run()
    if run is None:
        return
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client,
        ):
            state = client.read_flow_run(run).state
    except (httpx.HTTPError, ObjectNotFound, RuntimeError):  # the server is down or restarting; RuntimeError: another version of Prefect
        return
    if state is None:
        return
    suspended = state.is_paused() and state.state_details.pause_reschedule
    if state.is_cancelling() or state.is_cancelled() or suspended:
        if not stopping.asked():
            tell(f"{'suspended' if suspended else 'cancelled'} in Prefect; stopping at the next checkpoint")
        stopping.ask()
    elif state.is_paused():
        if stopping.pause():
            tell("paused in Prefect; waiting at the next checkpoint until it is resumed or cancelled there")
    elif stopping.resume():
        tell("resumed in Prefect")


def _own_run() -> UUID | None:
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None
