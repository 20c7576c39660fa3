"""The detectors by name: how each is built from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never, cast

from tasks.detector_settings import (
    OF_THE_MODEL,
    TRAINED,
    DetectorName,
    DetectorSettings,
    EncoderSettings,
    InCTRLSettings,
    MetaUASPlusSettings,
    MetaUASSettings,
    PatchResidualSettings,
    TrainedSettings,
    WinCLIPSettings,
)
from tasks.encoders import build_encoder
from tasks.errors import BadInput
from tasks.models.clip import ClipEncoder, WindowEncoder
from tasks.models.detector import Detector
from tasks.models.encoder import FrozenEncoder
from tasks.models.inctrl import build_inctrl
from tasks.models.metauas import MetaUAS, MetaUASPlus, build_metauas
from tasks.models.patch_residual import PatchResidual
from tasks.models.texts import TextPrior
from tasks.models.winclip import WinCLIP
from tasks.weights import load_model

OwnSettings = PatchResidualSettings | WinCLIPSettings | TrainedSettings


def build_detector(settings: OwnSettings, encoder: FrozenEncoder) -> Detector:
    """A detector as its settings say, around an encoder of `build_encoder`; what is trained of it starts at random.

    Raises BadInput if the encoder is of no use to it.
    """
    try:
        match settings:
            case PatchResidualSettings():
                return PatchResidual(
                    encoder,
                    stages=settings.stages,
                    top_share=settings.top_share,
                    background=settings.background,
                    rotations=settings.rotations,
                )
            case MetaUASSettings():
                return build_metauas(
                    encoder,
                    alignment=settings.alignment,
                    aligned_stages=settings.aligned_stages,
                    fusion=settings.fusion,
                    decoder=settings.decoder,
                    decoder_channels=settings.decoder_channels,
                )
            case InCTRLSettings():
                prior = TextPrior(cast(ClipEncoder, encoder).embed_texts, settings.natural) if settings.texts else None
                return build_inctrl(encoder, resolution=settings.resolution, stages=settings.stages, prior=prior)
            case WinCLIPSettings():
                return WinCLIP(WindowEncoder(clip := cast(ClipEncoder, encoder)), TextPrior(clip.embed_texts, settings.natural))
            case _:
                assert_never(settings)
    except ValueError as error:
        raise BadInput(f"encoder {settings.encoder.name}: {error}") from error


def load_detectors(detectors: DetectorSettings, models: Path) -> dict[DetectorName, Detector]:
    """Every detector of a pipeline, those that are trained with their weights from models/<name>; equal encoders are shared."""
    chosen = cast(dict[DetectorName, OwnSettings | MetaUASPlusSettings], detectors)
    encoders: dict[tuple[EncoderSettings, int], FrozenEncoder] = {}
    loaded: dict[DetectorName, Detector] = {}
    for name, settings in chosen.items():
        if isinstance(settings, MetaUASPlusSettings):
            continue
        encoder = encoders.get((settings.encoder, settings.resolution)) or build_encoder(settings.encoder, settings.resolution)
        if settings.encoder.weights != OF_THE_MODEL:  # those are the detector's own
            encoders[settings.encoder, settings.resolution] = encoder
        loaded[name] = build_detector(settings, encoder)
        if name in TRAINED:
            load_model(models / name, loaded[name])
    plus = chosen.get("metauas+")
    if isinstance(plus, MetaUASPlusSettings):
        metauas = cast(MetaUAS, loaded["metauas"])
        loaded["metauas+"] = MetaUASPlus(metauas, PatchResidual(metauas.encoder, stages=plus.stages))
    return {name: loaded[name] for name in chosen}


def resolution_of(detectors: DetectorSettings, name: DetectorName) -> int:
    """Pixels a side that a detector scores pictures at."""
    if name == "metauas+":
        return detectors["metauas"].resolution
    return cast(dict[DetectorName, OwnSettings], detectors)[name].resolution
