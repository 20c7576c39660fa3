"""Use detectors that were trained elsewhere: packaged models, model folders, and the authors' checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.places import place_of
from changepair.tasks.detectors.registry import DETECTORS, kind_of
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.detectors.store import (
    MODEL_NAME,
    as_line,
    create_detector,
    load_model,
    misfits,
    read_config,
    save_detector,
    settings_as_json,
    trained_otherwise,
)
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.encoders.weights import read_weights
from changepair.tasks.packaged.detectors import fill

Rules = tuple[tuple[str, str], ...]  # prefixes of tensor names, the authors' and ours


def start_from(given: str | None, detector: TrainedSettings, model: nn.Module) -> dict[str, str]:
    """Fill a model with the weights that training.init names, if any. Return their hash, for checkpoints.

    `given` is a model folder, its URL, or `packaged`. `detector` holds the model's settings. Raises BadInput if the weights are missing or
    do not fit.
    """
    if given is None:
        return {}
    if given == PACKAGED:
        return {"init": fill(detector, model)}
    load_model(place_of(given), model)
    return {"init": sha256(place_of(given) / MODEL_NAME)}


def use_model(name: str, detector: TrainedSettings, folder: Path) -> None:
    """Write the model that detector.model names to `folder`. Raises BadInput if it is missing or does not match the settings."""
    assert detector.model is not None
    kind = kind_of(detector)
    if detector.model == PACKAGED:
        model = create_detector(detector)
        fill(detector, model, name)
    else:
        given = place_of(detector.model)
        if not given.is_dir():
            raise BadInput(
                f"{given}: no such model folder; create it with `changepair import {kind} <checkpoint> --out {given}`, or train one"
            )
        holds, trained = read_config(given)
        said = "" if holds != kind else trained_otherwise(kind, detector, settings_as_json(trained), with_encoder=False)
        if holds != kind or said:
            what = f"it holds a detector of kind {holds}" if holds != kind else f"it was trained with other settings; set {said}"
            raise BadInput(f"detectors.{name}.model: {given}: {what}, or name another model")
        model = create_detector(detector, filled=False)
        load_model(given, model)
    save_detector(folder, model, detector)


@dataclass(frozen=True)
class Imported:
    """Result of an import: the number of tensors taken, and the checkpoint's names of the tensors left out."""

    tensors: int
    left_out: tuple[str, ...]


def import_checkpoint(detector: str, checkpoint: Path, folder: Path) -> Imported:
    """Convert the authors' checkpoint of a detector to a model folder.

    Surplus tensors are left out if the authors' loader ignores them too. Raises BadInput with every mismatch.
    """
    published = DETECTORS[detector].published
    assert published is not None
    theirs = read_weights(checkpoint)
    tensors = {_ours(name, published.names): tensor for name, tensor in theirs.items()}
    model = create_detector(published.settings, filled=False)
    own = model.state_dict().keys()
    left_out = [] if published.strict else [name for name in theirs if _ours(name, published.names) not in own]
    tensors = {name: tensor for name, tensor in tensors.items() if published.strict or name in own}
    wrong = misfits(tensors, model)
    if wrong:
        back = tuple((ours, theirs) for theirs, ours in published.names)  # users know the checkpoint's names
        lines = [re.sub(r"\S+\.\S+", lambda match: _replaced(match.group(), back), line, count=1) for line in wrong]
        raise BadInput(f"{checkpoint}: is not a checkpoint of the published {detector}: {as_line(lines, at_most=None)}")
    model.load_state_dict(tensors)
    save_detector(folder, model, published.settings, imported_from=checkpoint.name)
    return Imported(len(tensors), tuple(left_out))


def _ours(name: str, rules: Rules) -> str:
    """Translate a tensor's name. DistributedDataParallel adds a prefix to the authors' names."""
    return _replaced(name.removeprefix("module."), rules)


def _replaced(name: str, rules: Rules) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in rules if name.startswith(theirs)), name)
