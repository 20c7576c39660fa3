"""What the flows of all stages share: where data lies, and how a stage is run from the command line as dvc.yaml does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Flow

from tasks.errors import BadInput

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


def run_stage(flow: Flow[..., Any]) -> None:
    """`python -m flows.<stage> <pipeline>`: runs the flow on the one argument given; exits as `exit_on_bad_input` says."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m flows.{flow.name} <{'dataset' if flow.name in ('ingest', 'objects') else 'pipeline'}>")
    exit_on_bad_input(lambda: flow(sys.argv[1]))


def exit_on_bad_input(work: Callable[[], object]) -> None:
    """Runs `work`; what is the user's to mend ends it with one line on stderr and exit code 2."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_one_line)
    try:
        work()
    except BadInput as error:
        print(f"changepair: {error}", file=sys.stderr)
        sys.exit(2)


def _one_line(record: logging.LogRecord) -> bool:
    """Prefect logs a traceback of everything raised; of the user's mistake the message is enough."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, BadInput):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True
