"""Takes a model that was trained elsewhere as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import nn

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.places import place_of
from changepair.tasks.detectors.encoders import build_encoder
from changepair.tasks.detectors.load import build_detector
from changepair.tasks.detectors.registry import kind_of
from changepair.tasks.detectors.settings import PACKAGED, TrainedSettings
from changepair.tasks.detectors.stored import read_config, settings_as_json, trained_otherwise
from changepair.tasks.detectors.weights import MODEL_NAME, load_model, save_model
from changepair.tasks.packaged.detectors import fill


def start_from(given: str | None, detector: TrainedSettings, model: nn.Module) -> dict[str, str]:
    """Fills a model with the weights that training.init names, if it names any; gives their hash, by which a checkpoint knows them.

    given: a model folder, its URL, or `packaged`. detector: the model's settings. Raises BadInput if the weights are not there, or do not
    fit.
    """
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
        model = build_detector(detector, build_encoder(detector.encoder, detector.resolution))
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
        model = build_detector(detector, build_encoder(detector.encoder, detector.resolution, filled=False))
        load_model(given, model)
    save_model(folder, model, {"detector": kind, "settings": asdict(cast(Any, detector))})
