"""Choose where the tasks of a stage run: in threads or processes on this machine, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from changepair.flows.settings.pipelines import Execution
from changepair.tasks.common.stopping import check

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

ASKED_EVERY = 0.5  # seconds
Held = TypeVar("Held")


def task_runner(execution: Execution) -> TaskRunner[Any]:
    """Create the task runner of `execution` in pipelines.yaml."""
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    if execution.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=execution.workers)
    if execution.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=execution.workers)

    from prefect_dask.task_runners import DaskTaskRunner  # takes a second

    if execution.address is not None:
        return DaskTaskRunner(address=execution.address)
    import dask

    cast(Any, dask).config.set(
        {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
    )  # no pages with logs and call stacks
    local = {"n_workers": execution.workers, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    # Every user of the machine can reach loopback and could send tasks, which are code. So each cluster has its own certificates.
    return DaskTaskRunner(cluster_kwargs={**local, "protocol": "tls://", "security": True})


class Sealed(Generic[Held]):
    """Wrap a value for a task so that Prefect does not search its thousands of parts for futures."""

    def __init__(self, value: Held) -> None:
        self.value = value


def on_cluster(execution: Execution) -> bool:
    """Return whether to divide stages that already use every core of one machine."""
    return execution.runner == "dask"


def cluster_or_threads(execution: Execution) -> TaskRunner[Any]:
    """Create the task runner of a stage that is only divided on a cluster."""
    from prefect.task_runners import ThreadPoolTaskRunner

    return task_runner(execution) if on_cluster(execution) else ThreadPoolTaskRunner()


def for_gpu(execution: Execution) -> AbstractContextManager[None]:
    """Submit the block's tasks only to cluster workers with a GPU, one task per GPU, if `execution.gpu` is set."""
    if not on_cluster(execution) or execution.gpu is None:
        return nullcontext()
    import dask

    return cast(Any, dask).annotate(resources={execution.gpu: 1})


def count_done(parts: Sequence[Any]) -> int:
    """Count the submitted tasks that have ended."""
    return sum(part.wrapped_future.done() for part in parts)


def wait_for(parts: Sequence[Any], where: Callable[[], str]) -> None:
    """Wait for submitted tasks and raise the first error. On a stop, raise Stopped; Prefect's runner finishes the tasks that it has begun.

    `where` describes the progress, for the message of Stopped.
    """
    for part in parts:
        while not part.wrapped_future.done():
            part.wait(timeout=ASKED_EVERY)
            check(where())
        part.result()
