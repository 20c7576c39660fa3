"""The detectors by name: how each is built from its settings."""

from __future__ import annotations

from tasks.detector_settings import EncoderName, MetaUASSettings, PatchResidualSettings
from tasks.models.encoder import TimmEncoder, efficientnet_lite0
from tasks.models.metauas import MetaUAS, build_metauas
from tasks.models.patch_residual import PatchResidual
from tasks.weights import packaged_lite0


def build_encoder(name: EncoderName) -> TimmEncoder:
    return {"tf_efficientnet_lite0": lambda: efficientnet_lite0(packaged_lite0())}[name]()


def build_detector(settings: PatchResidualSettings | MetaUASSettings, encoder: TimmEncoder) -> PatchResidual | MetaUAS:
    """A detector as its settings say; what is trained of it starts at random."""
    if isinstance(settings, PatchResidualSettings):
        return PatchResidual(encoder, stages=settings.stages, top_share=settings.top_share, background=settings.background)
    return build_metauas(
        encoder,
        alignment=settings.alignment,
        aligned_stages=settings.aligned_stages,
        decoder_channels=settings.decoder_channels,
    )
