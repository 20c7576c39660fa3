"""What the flows of all stages share: where data lies, and how a stage is run from the command line as dvc.yaml does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import Flow

from flows.api import end_with_parent, run
from flows.gpu import gpu_slot
from flows.locks import one_at_a_time
from flows.secrets import hide, hide_in_log
from tasks.errors import BadInput
from tasks.stopping import EXIT_CODE, Stopped

DATA = Path("data")
PICTURES = DATA / "pictures"
MANIFESTS = DATA / "manifests"
EPISODES = DATA / "episodes"
INPAINTERS = DATA / "inpainters"
PAIRS = DATA / "pairs"
CHECKPOINTS = DATA / "checkpoints"
MODELS = DATA / "models"
CANDIDATE = "candidate"  # within a pipeline's models: what was trained last
EVALUATION = DATA / "evaluation"


def run_stage(flow: Flow[..., Any], *, on_gpu: bool = False) -> None:
    """`python -m flows.<stage> <pipeline>`: runs the flow on the one argument given; exits as `exit_on_bad_input` says. on_gpu: whether it
    computes on a GPU where there is one."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m flows.{flow.name} <{'dataset' if flow.name in ('ingest', 'objects') else 'pipeline'}>")
    name, of = flow.name, sys.argv[1]
    [parameter] = flow.parameters.properties

    def work() -> object:
        end_with_parent()
        # What a run that was killed has started may not have ended yet.
        with one_at_a_time(f"{name}-{of}", f"{name} {of}", wait=True, told=tell), gpu_slot() if on_gpu else nullcontext():
            return run(flow, **{parameter: of})

    exit_on_bad_input(work)


def exit_on_bad_input(work: Callable[[], object]) -> None:
    """Runs `work`. What is the user's to mend ends it with one line on stderr and exit code 2; SIGTERM with one line and 143, as a shell
    would say."""
    log_in_lines()
    try:
        work()
    except BadInput as error:
        tell(str(error))
        sys.exit(2)
    except Stopped as stopped:
        tell(f"stopped ({stopped}); what was made is kept, and the next run goes on from there")
        sys.exit(EXIT_CODE)


def log_in_lines() -> None:
    """Of the user's mistake the log has one line, and no secret in it."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_one_line)
        logging.getLogger(name).addFilter(hide_in_log)


def tell(line: str) -> None:
    """One line for the person who started this."""
    print(f"changepair: {hide(line)}", file=sys.stderr, flush=True)


def _one_line(record: logging.LogRecord) -> bool:
    """Prefect logs a traceback of everything raised; of the user's mistake, and of a stop, the message is enough."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, (BadInput, Stopped)):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True
