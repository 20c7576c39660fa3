"""Tells others: posts JSON to a URL when a model is promoted or kept out, or a run fails. What goes wrong here fails no run."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Mapping
from typing import Any

import httpx
from prefect import task
from prefect.tasks import exponential_backoff

from changepair.flows.running.secrets import HIDDEN, hide
from changepair.flows.runs.states import RunState
from changepair.flows.settings.runs import Notices

EVENTS = {RunState.PROMOTED: "promoted", RunState.KEPT: "kept", RunState.FAILED: "failed"}
FIRST_PAUSE = 1.0  # seconds before the second attempt; each pause is twice the one before
REFUSALS = range(400, 500)  # answers that another attempt would get again, but for
BUSY = (408, 429)

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Unheard(Exception):
    """A notice that did not arrive. Its message has no more of the address than can be shown."""

    def __init__(self, why: str, *, busy: bool) -> None:
        super().__init__(why)
        self.busy = busy


def notify(notices: Notices | None, pipeline: str, state: RunState, reason: str, about: Mapping[str, Any], logger: Logger) -> bool:
    """Posts {text, event, pipeline, state, reason, …about} if the settings ask for such a notice; gives whether it arrived.

    `text` is one line, for chats that take webhooks. An answer of 2xx is an arrival; 4xx but 408 and 429 is not tried again.
    """
    event = EVENTS.get(state)
    if notices is None or event is None or event not in notices.of:
        return False
    content = {"text": hide(f"changepair: {pipeline} {state}: {reason}"), "event": event, "pipeline": pipeline, "state": str(state)}
    try:
        patient = post.with_options(retries=notices.retries, retry_delay_seconds=exponential_backoff(FIRST_PAUSE))
        sent = patient(notices, {**content, "reason": hide(reason), **about}, return_state=True)
        if not sent.is_completed():
            sent.result()
    except Exception as error:  # whatever it is: a run is not about its notices
        why = error if isinstance(error, (Unheard, LookupError)) else type(error).__name__
        logger.warning(f"{pipeline}: the notice of «{event}» was not sent: {why}")
        return False
    return True


@task(name="send notice", retry_condition_fn=lambda _task, _run, state: getattr(state.data, "busy", False), persist_result=False)
def post(notices: Notices, content: Mapping[str, Any]) -> None:
    """Posts one notice. Raises LookupError if the address is not to be had, Unheard if the notice does not arrive there."""
    url = address(notices.url)
    try:
        host = f"{httpx.URL(url).host}/{HIDDEN}"  # the path of a webhook is its password
    except httpx.InvalidURL:
        raise LookupError("notices.url: what it stands for is no address") from None
    answer = _answer(url, content, notices.timeout)
    if isinstance(answer, str):
        raise Unheard(f"it did not arrive at {host}: {answer}", busy=True)
    if not 200 <= answer < 300:
        busy = answer not in REFUSALS or answer in BUSY
        raise Unheard(f"it did not arrive at {host}: the answer was {answer}", busy=busy)


def _answer(url: str, content: Mapping[str, Any], timeout: float) -> int | str:
    """Posts, and gives the answer's code, or what went wrong; takes no longer than `timeout` seconds in all, and reads none of the answer
    but its head.

    httpx has a limit for each wait, and a receiver may send a byte now and then for ever: so a thread posts, and is left behind.
    """
    answers: queue.SimpleQueue[int | str] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with httpx.stream("POST", url, json=content, timeout=timeout, follow_redirects=False) as answer:
                answers.put(answer.status_code)
        except Exception as error:  # whatever it is: a run is not about its notices
            answers.put(type(error).__name__)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=timeout)
    except queue.Empty:
        return f"no answer in {timeout:g} s"


def address(setting: str) -> str:
    """Gives the URL that the setting stands for. Raises LookupError if the environment variable or the block is not there."""
    kind, _, name = setting.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise LookupError(f"notices.url: no environment variable {name}")
        return os.environ[name]
    if kind == "block":
        from prefect.blocks.system import Secret

        try:
            return str(Secret.load(name).get())  # type: ignore[union-attr]
        except ValueError as error:
            raise LookupError(f"notices.url: no Secret block {name!r} on the Prefect server") from error
    return setting
