"""A model that was trained elsewhere, taken as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tasks.detector_settings import TrainedName, TrainedSettings
from tasks.detectors import build_detector
from tasks.encoders import build_encoder
from tasks.errors import BadInput
from tasks.weights import load_model, save_model


def use_model(name: TrainedName, detector: TrainedSettings, folder: Path) -> None:
    """Writes the model that detector.model names to `folder`. Raises BadInput if it is not there or is not what the settings say."""
    assert detector.model is not None
    given = Path(detector.model)
    if not given.is_dir():
        raise BadInput(f"{given}: no such model folder; make it with `changepair import {name} <checkpoint> --out {given}`, or train one")
    model = build_detector(detector, build_encoder(detector.encoder, detector.resolution, filled=False))
    load_model(given, model)
    save_model(folder, model, {"detector": name, "settings": asdict(detector)})
