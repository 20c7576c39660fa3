"""Log trainings and metrics to TensorBoard or an MLflow server, in addition to the training log.

Results do not depend on trackers. If a tracker fails, the run continues without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker
from accelerate.utils import is_mlflow_available, is_tensorboard_available
from tqdm import tqdm

from changepair.tasks.common.errors import BadInput

TrackerName = Literal["tensorboard", "mlflow"]
IS_HERE = {"tensorboard": is_tensorboard_available, "mlflow": is_mlflow_available}


@dataclass(frozen=True)
class Tracking:
    """The trackers of a run."""

    trackers: tuple[TrackerName, ...] = ()
    folder: Path = Path()
    """Folder of TensorBoard's files. MLflow's client reads MLFLOW_TRACKING_URI."""
    name: str = ""
    """Name of the run: in MLflow in the experiment `changepair`, in TensorBoard a folder."""


class Log:
    """Write to the open trackers of a run."""

    def __init__(self, trackers: dict[str, GeneralTracker]) -> None:
        self._trackers = trackers

    def write(self, values: Mapping[str, float | None], step: int) -> None:
        """Log values at a step. None is left out."""
        known = {name: value for name, value in values.items() if value is not None}
        for name in list(self._trackers):
            self._try(name, partial(self._trackers[name].log, known, step=step))

    def close(self) -> None:
        for name in list(self._trackers):
            self._try(name, self._trackers[name].finish)

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # a server or a disk may raise anything
            tqdm.write(f"execution.trackers: {name} failed and is disabled for this run: {' '.join(str(error).split())}", file=sys.stderr)
            del self._trackers[name]


@contextmanager
def tracked(tracking: Tracking, about: Mapping[str, Any]) -> Iterator[Log]:
    """Open a run's trackers. about: its settings as plain values. Raises BadInput if one is not installed or not reachable."""
    PartialState()  # accelerate's trackers need it
    log = Log({name: _open(name, tracking, about) for name in tracking.trackers})
    try:
        yield log
    finally:
        log.close()


def _open(name: TrackerName, tracking: Tracking, about: Mapping[str, Any]) -> GeneralTracker:
    if not IS_HERE[name]():
        package = "'changepair[trackers]'" if name == "tensorboard" else name
        raise BadInput(f"execution.trackers: {name} is not installed; run `pip install {package}`")
    if name == "tensorboard":
        tracker: Any = TensorBoardTracker(tracking.name, tracking.folder)
    else:
        tracker = MLflowTracker(experiment_name="changepair", run_name=tracking.name)
    try:
        tracker.start()
        tracker.store_init_configuration(dict(about))
    except Exception as error:
        raise BadInput(f"execution.trackers: {name} cannot be logged to: {' '.join(str(error).split())}") from error
    return tracker
