"""Takes a model that was trained elsewhere as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from tasks.common.errors import BadInput
from tasks.detectors.encoders import build_encoder
from tasks.detectors.load import build_detector
from tasks.detectors.settings import TrainedSettings
from tasks.detectors.weights import load_model, save_model


def use_model(name: str, detector: TrainedSettings, folder: Path) -> None:
    """Writes the model that detector.model names to `folder`. Raises BadInput if it is not there or is not what the settings say."""
    assert detector.model is not None
    given = Path(detector.model)
    if not given.is_dir():
        raise BadInput(f"{given}: no such model folder; make it with `changepair import {name} <checkpoint> --out {given}`, or train one")
    model = build_detector(detector, build_encoder(detector.encoder, detector.resolution, filled=False))
    load_model(given, model)
    save_model(folder, model, {"detector": name, "settings": asdict(cast(Any, detector))})
