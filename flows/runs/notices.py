"""Telling others: JSON posted to a URL when a model is promoted or kept out, or a run fails. What goes wrong here fails no run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import httpx

from flows.running.secrets import HIDDEN, hide
from flows.settings.runs import Notices

EVENTS = {"Promoted": "promoted", "Kept": "kept", "Failed": "failed", "Crashed": "failed"}
FIRST_PAUSE = 1.0  # seconds before the second attempt; each pause is twice the one before

Logger = logging.Logger | logging.LoggerAdapter[Any]


def notify(notices: Notices | None, pipeline: str, state: str, reason: str, about: Mapping[str, Any], logger: Logger) -> bool:
    """Posts {text, event, pipeline, state, reason, …about} if the settings ask for such a notice; gives whether it arrived.

    `text` is one line, for chats that take webhooks. An answer of 2xx is an arrival; 4xx but 408 and 429 is not tried again.
    """
    event = EVENTS.get(state)
    if notices is None or event is None or event not in notices.of:
        return False
    content = {"text": hide(f"changepair: {pipeline} {state}: {reason}"), "event": event, "pipeline": pipeline, "state": state}
    try:
        url = address(notices.url)
        return _post(url, {**content, "reason": hide(reason), **about}, notices, logger)
    except Exception as error:  # whatever it is: a run is not about its notices
        logger.warning(f"{pipeline}: no notice was sent: {_told(error)}")
        return False


def address(said: str) -> str:
    """The URL that the setting stands for. Raises LookupError if the environment variable or the block is not there."""
    kind, _, name = said.partition(":")
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
    return said


def _post(url: str, content: Mapping[str, Any], notices: Notices, logger: Logger) -> bool:
    pause, problem = FIRST_PAUSE, ""
    for attempt in range(notices.retries + 1):
        if attempt:
            time.sleep(pause)
            pause *= 2
        try:
            answer = httpx.post(url, json=content, timeout=notices.timeout, follow_redirects=False)
        except httpx.HTTPError as error:
            problem = _told(error)
            continue
        if answer.is_success:
            return True
        problem = f"the answer was {answer.status_code}"
        if answer.status_code < 500 and answer.status_code not in (408, 429):
            break
    logger.warning(f"{content['pipeline']}: the notice of «{content['event']}» did not arrive at {_host(url)}: {problem}")
    return False


def _host(url: str) -> str:
    """Of an address no more than can be shown: the path of a webhook is its password."""
    return f"{httpx.URL(url).host}/{HIDDEN}"


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, LookupError) else type(error).__name__
