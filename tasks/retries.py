"""When a task is worth trying again."""

from __future__ import annotations

from typing import Any

from tasks.errors import BadInput
from tasks.stopping import Stopped


def worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    """A disk or a network may recover; the user's mistake will not, and who was asked to stop stops. (Prefect's retry_condition_fn.)"""
    return not isinstance(state.data, (BadInput, Stopped))
