"""Where the tasks of a stage run: threads or processes of this machine, or a Dask cluster of many."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, cast

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from flows.settings import read_setting
from tasks.settings import Between

Runner = Literal["threads", "processes", "dask"]


def workers() -> int:
    """How many processes or threads share a stage's work."""
    return read_setting(("execution", "workers"), cast(Any, Annotated[int, Between(1, None)]), default=os.cpu_count() or 1)


def task_runner() -> TaskRunner[Any]:
    """As `execution` in pipelines.yaml asks for it."""
    kind: Runner = read_setting(("execution", "runner"), cast(Any, Runner), default="processes")
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers())
    if kind == "processes":
        return ProcessPoolTaskRunner(max_workers=workers())

    from prefect_dask.task_runners import DaskTaskRunner  # costs a second

    address: str | None = read_setting(("execution", "address"), cast(Any, str | None), default=None)
    if address is not None:
        return DaskTaskRunner(address=address)
    # On loopback, and without a dashboard.
    return DaskTaskRunner(cluster_kwargs={"n_workers": workers(), "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None})
