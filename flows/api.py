"""One Prefect API for a run and all the processes it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings


@contextmanager
def one_api() -> Iterator[str]:
    """The API that PREFECT_API_URL names; without one, a temporary server on loopback that lives as long as the run.

    Left to itself every process without PREFECT_API_URL starts a server of its own, which costs more than most stages.
    """
    url = PREFECT_API_URL.value()
    if url:
        os.environ["PREFECT_API_URL"] = url  # it may come from a profile, which a stage's process need not read
        yield url
        return
    server = SubprocessASGIServer()
    server.start()
    os.environ["PREFECT_API_URL"] = server.api_url
    try:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield server.api_url
    finally:
        del os.environ["PREFECT_API_URL"]
        server.stop()
