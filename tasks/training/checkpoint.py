"""Save and restore training checkpoints."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from changepair.tasks.common.files import written_beside
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.training.log import LogLine

NAME = "checkpoint.pt"


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0
    """Number of steps taken."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step since the last log line."""
    log: list[LogLine] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the epoch with the lowest held-out loss. Empty before the first epoch ends."""


def name_of(inputs: Mapping[str, Any], module: str) -> str:
    """Return a hash of a training's inputs and code. A training only resumes from a checkpoint with its hash."""
    text = json.dumps({"inputs": inputs, "code": code_of(module).digest}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def save(folder: Path, name: str, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, progress: Progress) -> None:
    """Write the checkpoint. name: the hash from `name_of`."""
    state = {
        "fingerprint": name,
        "trained": trained_state(model),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "step": progress.step,
        "losses": progress.losses,
        "log": [asdict(line) for line in progress.log],
        "best": progress.best,
    }
    with written_beside(folder / NAME) as partial:
        torch.save(state, partial)


def resume(folder: Path, name: str, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> Progress:
    """Restore the last checkpoint with this name. Return an empty progress if there is none."""
    file = folder / NAME
    if not file.is_file():
        return Progress()
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        theirs = state["fingerprint"]
    except Exception as error:  # a decoder may raise anything on a damaged file
        warnings.warn(f"{file}: damaged ({type(error).__name__}); the training starts from the beginning", stacklevel=2)
        return Progress()
    if theirs != name:
        return Progress()
    model.load_state_dict(state["trained"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return Progress(state["step"], state["losses"], [LogLine(**line) for line in state["log"]], state["best"])


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by name, without those of frozen encoders."""
    frozen = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, FrozenEncoder))
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}
