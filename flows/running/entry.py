"""Start a stage from the command line, as DVC does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from changepair.flows import plan
from changepair.flows.running.console import set_volume, set_volume_of_workers, volume
from changepair.flows.running.exit_handling import end_at_ctrl_c_when_saved, exit_on_bad_input, tell
from changepair.flows.running.locks import one_at_a_time
from changepair.flows.running.secrets import hidden
from changepair.flows.running.unchanged import unchanged
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import as_json
from changepair.tasks.common.stopping import on_sigterm

if TYPE_CHECKING:
    from changepair.flows.stage import StageFlow

LIMIT = "changepair-gpu"  # `changepair deploy` sets it on the server, to runs.gpus


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Wait for and hold one of the `runs.gpus` slots.

    A machine without a GPU needs no slot. Without the limit on the server, nothing waits. The server frees the slot of a dead process
    after some minutes.
    """
    import torch  # costs seconds, which the command line need not spend

    if not torch.cuda.is_available():
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(LIMIT, occupy=1):
        yield


def start_stage(kind: str) -> None:
    """Run a stage's flow. `python -m changepair.flows.<stage> <dataset or pipeline> …`, DVC's command for the stage, calls this.

    It checks the whole of pipelines.yaml first. It exits like `exit_on_bad_input`.
    """
    module, of = import_module(f"changepair.flows.{kind}"), tuple(sys.argv[1:])
    names = ("dataset",) if kind in plan.OF_A_DATASET else ("pipeline", "detector") if kind in plan.OF_A_DETECTOR else ("pipeline",)
    if len(of) != len(names):
        sys.exit(f"usage: python -m changepair.flows.{kind} {' '.join(f'<{name}>' for name in names)}")
    flow: StageFlow[Any] = getattr(module, kind)

    def work() -> object:
        from prefect.settings import PREFECT_API_URL  # Prefect takes seconds, which `changepair plan` does not spend

        from changepair.flows.running.api import end_with_parent, logged_in, one_api, run
        from changepair.flows.running.login import login_for

        set_volume(volume())
        set_volume_of_workers()
        end_at_ctrl_c_when_saved()
        end_with_parent()
        what = f"{kind} {' '.join(of)}"
        # What a run that was killed has started may not have ended yet.
        with (
            on_sigterm(),
            one_at_a_time("-".join((kind, *of)), what, wait=True, tell=tell),
            gpu_slot() if flow.on_gpu else nullcontext(),
            unchanged(kind, *of),
            logged_in(url, login_for(url)) if (url := PREFECT_API_URL.value()) else one_api(),
        ):
            stage, execution = plan.stage_of(kind, *of), read_pipelines().execution
            return run(flow.build(stage, execution), stage=hidden(as_json(stage)), execution=hidden(as_json(execution)))

    exit_on_bad_input(work)
