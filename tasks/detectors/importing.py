"""Turns the authors' own checkpoints into model folders: every tensor by its name and shape, none left over, none made up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.encoders import build_encoder
from changepair.tasks.detectors.load import build_detector
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.detectors.weights import as_line, misfits, read_weights, save_model

Rules = tuple[tuple[str, str], ...]  # what a name starts with, theirs and ours


@dataclass(frozen=True)
class Imported:
    """The tensors of a checkpoint that were taken, counted, and those left out, by the authors' names."""

    tensors: int
    left_out: tuple[str, ...]


def import_checkpoint(detector: str, checkpoint: Path, folder: Path) -> Imported:
    """Writes a detector as its authors published it to `folder`. Raises BadInput, listing every misfit; what is surplus is left out where
    the authors' own loader leaves it out too."""
    published = DETECTORS[detector].published
    assert published is not None
    theirs = read_weights(checkpoint)
    tensors = _renamed(theirs, published.names)
    model = build_detector(published.settings, build_encoder(published.settings.encoder, published.settings.resolution, filled=False))
    own = model.state_dict().keys()
    left_out = [] if published.strict else [name for name in theirs if _ours(name, published.names) not in own]
    tensors = {name: tensor for name, tensor in tensors.items() if published.strict or name in own}
    wrong = misfits(tensors, model)
    if wrong:
        lines = [_in_their_names(line, published.names) for line in wrong]
        raise BadInput(f"{checkpoint}: is not the published {detector}, {as_line(lines, at_most=None)}")
    model.load_state_dict(tensors)
    save_model(folder, model, {"detector": detector, "settings": asdict(published.settings), "imported_from": checkpoint.name})
    return Imported(len(tensors), tuple(left_out))


def _renamed(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    return {_ours(name, rules): tensor for name, tensor in tensors.items()}


def _ours(name: str, rules: Rules) -> str:
    return _replaced(name.removeprefix("module."), rules)  # of a DistributedDataParallel


def _replaced(name: str, rules: Rules) -> str:
    for theirs, ours in rules:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _in_their_names(line: str, rules: Rules) -> str:
    """Tells a misfit by the name that the checkpoint's user knows."""
    return re.sub(r"\S+\.\S+", lambda match: _replaced(match.group(), tuple((ours, theirs) for theirs, ours in rules)), line, count=1)
