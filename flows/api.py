"""One Prefect API for a run and all the processes it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings


@contextmanager
def one_api() -> Iterator[None]:
    """The API that PREFECT_API_URL names; without one, a temporary server on loopback that lives as long as this process.

    Left to itself every process without PREFECT_API_URL starts a server of its own, which costs more than most stages.
    """
    url = PREFECT_API_URL.value()
    if not url:
        server = SubprocessASGIServer()
        server.start()  # and it stops itself at exit, after Prefect has sent its last events and logs
        url = server.api_url
    os.environ["PREFECT_API_URL"] = url  # for the stages' processes
    with temporary_settings({PREFECT_API_URL: url}):
        yield
