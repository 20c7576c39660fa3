"""Start a stage from the command line, as DVC does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from prefect import Flow
from prefect.settings import PREFECT_API_URL

from changepair.flows.running.api import end_with_parent, logged_in, one_api, run
from changepair.flows.running.console import set_volume, set_volume_of_workers, volume
from changepair.flows.running.exit_handling import end_at_ctrl_c_when_saved, exit_on_bad_input, tell
from changepair.flows.running.locks import one_at_a_time
from changepair.flows.running.login import login_for
from changepair.flows.running.unchanged import unchanged
from changepair.flows.settings.pipelines import Execution, read_pipelines
from changepair.tasks.common.stopping import on_sigterm

LIMIT = "changepair-gpu"  # `changepair deploy` sets it on the server, to runs.gpus


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Wait for and hold one of the `runs.gpus` slots. A machine without a GPU needs none, and without the limit on the server there is no
    waiting. The server takes a slot back minutes after its holder has died."""
    import torch  # costs seconds, which the command line need not spend

    if not torch.cuda.is_available():
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(LIMIT, occupy=1):
        yield


def start_stage(flow: Flow[..., Any], *, on_gpu: bool = False, runner: Callable[[Execution], Any] | None = None) -> None:
    """Run a stage's flow as `python -m changepair.flows.<stage> <dataset or pipeline> …`; exit as `exit_on_bad_input` does.

    All of pipelines.yaml is checked first. on_gpu: whether the flow computes on a GPU if there is one. runner: returns Prefect's task
    runner, if it is not the default one.
    """
    names, of = list(flow.parameters.properties), sys.argv[1:]
    if len(of) != len(names):
        sys.exit(f"usage: python -m changepair.flows.{flow.name} {' '.join(f'<{name}>' for name in names)}")

    set_volume(volume())
    set_volume_of_workers()

    def work() -> object:
        end_at_ctrl_c_when_saved()
        end_with_parent()
        what = f"{flow.name} {' '.join(of)}"
        # What a run that was killed has started may not have ended yet.
        with (
            on_sigterm(),
            one_at_a_time("-".join((flow.name, *of)), what, wait=True, tell=tell),
            gpu_slot() if on_gpu else nullcontext(),
            unchanged(flow.name, *of),
            logged_in(url, login_for(url)) if (url := PREFECT_API_URL.value()) else one_api(),
        ):
            execution = read_pipelines().execution
            return run(flow if runner is None else flow.with_options(task_runner=runner(execution)), **dict(zip(names, of, strict=True)))

    exit_on_bad_input(work)
