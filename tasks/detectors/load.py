"""Builds detectors from their settings, and fills them with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.encoders import build_encoder
from changepair.tasks.detectors.models.detector import Detector
from changepair.tasks.detectors.models.encoder import FrozenEncoder
from changepair.tasks.detectors.registry import DETECTORS, Kind, base_of, kind_of
from changepair.tasks.detectors.settings import DetectorSettings, EncoderSettings
from changepair.tasks.detectors.weights import load_model


def build_detector(settings: DetectorSettings, encoder: FrozenEncoder) -> Detector:
    """Builds a detector as its settings say, around an encoder of `build_encoder`; what is trained of it starts at random.

    Raises BadInput if the encoder is of no use to it.
    """
    return _built(DETECTORS[kind_of(settings)], settings, encoder, settings.encoder)


def load_detector(name: str, detectors: Mapping[str, Any], models: Path) -> Detector:
    """Loads a pipeline's detector; one that is trained with its weights from models/<name>. detectors: the settings of all of the
    pipeline."""
    settings, base = detectors[name], base_of(name, detectors)
    kind = DETECTORS[kind_of(settings)]
    if base != name:
        return _built(kind, settings, load_detector(base, detectors, models), getattr(settings, "prior", None))
    detector = build_detector(settings, build_encoder(settings.encoder, settings.resolution))
    if kind.training is not None:
        load_model(models / name, detector)
    return detector


def build_empty(name: str, detectors: Mapping[str, Any]) -> Detector:
    """Builds a detector whose weights are all to be overwritten, the encoder's too. detectors: its settings, and of the one it is upon."""
    settings, base = detectors[name], base_of(name, detectors)
    if base != name:
        return _built(DETECTORS[kind_of(settings)], settings, build_empty(base, detectors), getattr(settings, "prior", None))
    return build_detector(settings, build_encoder(settings.encoder, settings.resolution, filled=False))


def _built(kind: Kind, settings: Any, upon: Any, encoder: EncoderSettings | None) -> Detector:
    """Builds a detector around an encoder, or upon another detector. encoder: whose fault it is if that cannot be done."""
    try:
        detector: Detector = kind.build(settings, upon)
    except ValueError as error:
        raise BadInput(f"encoder {encoder.name if encoder else 'of ' + kind_of(settings)}: {error}") from error
    return detector
