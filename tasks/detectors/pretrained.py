"""Use detectors that were trained elsewhere: the packaged ones, model folders, and the authors' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

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

Rules = tuple[tuple[str, str], ...]  # what a name starts with, theirs and ours


def start_from(given: str | None, detector: TrainedSettings, model: nn.Module) -> dict[str, str]:
    """Fills a model with the weights that training.init names, if it names any; gives their hash, by which a checkpoint knows them. given:
    a model folder, its URL, or `packaged`. detector: the model's settings. Raises BadInput if the weights are not there, or do not fit."""
    if given is None:
        return {}
    if given == PACKAGED:
        return {"init": fill(detector, model)}
    load_model(place_of(given), model)
    return {"init": sha256(place_of(given) / MODEL_NAME)}


def use_model(name: str, detector: TrainedSettings, folder: Path) -> None:
    """Writes the model that detector.model names to `folder`. Raises BadInput if it is not there or is not what the settings say."""
    assert detector.model is not None
    kind = kind_of(detector)
    if detector.model == PACKAGED:
        model = create_detector(detector)
        fill(detector, model, name)
    else:
        given = place_of(detector.model)
        if not given.is_dir():
            raise BadInput(
                f"{given}: no such model folder; make it with `changepair import {kind} <checkpoint> --out {given}`, or train one"
            )
        holds, trained = read_config(given)
        said = "" if holds != kind else trained_otherwise(kind, detector, settings_as_json(trained), with_encoder=False)
        if holds != kind or said:
            what = f"it is a {holds}" if holds != kind else f"it was trained with other settings; say {said} there"
            raise BadInput(f"detectors.{name}.model: {given}: {what}, or name another model")
        model = create_detector(detector, filled=False)
        load_model(given, model)
    save_detector(folder, model, detector)


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
    model = create_detector(published.settings, filled=False)
    own = model.state_dict().keys()
    left_out = [] if published.strict else [name for name in theirs if _ours(name, published.names) not in own]
    tensors = {name: tensor for name, tensor in tensors.items() if published.strict or name in own}
    wrong = misfits(tensors, model)
    if wrong:
        lines = [_in_their_names(line, published.names) for line in wrong]
        raise BadInput(f"{checkpoint}: is not the published {detector}, {as_line(lines, at_most=None)}")
    model.load_state_dict(tensors)
    save_detector(folder, model, published.settings, imported_from=checkpoint.name)
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
