"""Define the settings of MetaUAS and MetaUAS*+, and map the tensor names of the authors' checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName, NonEmpty
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import OF_THE_MODEL, EncoderSettings, Resolution, Stages


@dataclass(frozen=True)
class MetaUASSettings(TrainedSettings):
    """Settings of MetaUAS. The defaults follow the paper (arXiv 2505.09265), except for the encoder."""

    model: Annotated[str, FileName()] | None = None
    """Trained model to use: a model folder, such as `changepair import metauas` writes, its URL, or `packaged`. `null` trains one."""
    encoder: EncoderSettings = EncoderSettings()
    """Network that turns pictures into feature maps. MetaUAS needs five of them. It segments the picture at the first of the `scales`.
    If there are more, the `residual` is the mean over the others."""
    resolution: Resolution = 256
    """Side in pixels of the square that a picture is resized to. It must be a multiple of 32 at the first of the encoder's scales. Training
    may use another one, its setting `resolution`."""
    alignment: Literal["soft", "hard", "none"] = "soft"
    """Method that aligns the prompt's features to the query's grid. `soft` averages all positions by their similarity. `hard` takes the
    most similar position. `none` leaves them unaligned."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of a query position and a prompt position. `cosine` multiplies the cosine by a learnt scale. `dot` is the plain product
    that the authors' code and weights use. With large features its softmax selects one position and passes no gradient."""
    aligned_stages: Annotated[int, Between(1, 3)] = 3
    """Number of the encoder's last stages that are aligned."""
    fusion: Literal["concatenate", "add", "difference"] = "concatenate"
    """Fusion of the query's features and the aligned features of the prompt. `difference` is the absolute difference."""
    residual: Annotated[float, Between(0, 1000)] = 0.0
    """Weight of the patch residual that is added to the map's logits when scoring. The residual is ½(1 − cosine) to the nearest patch of
    all prompts, averaged over the aligned stages. 0 is the paper's detector."""
    top_share: Annotated[float, Between(0, 1)] = 0.0
    """Share of the map's pixels whose mean is the image score: 0.01 averages the highest 1 %. 0 takes the maximum, as in the paper."""
    decoder: Literal["unet", "fpn"] = "unet"
    """Decoder that turns fused features into a change map."""
    decoder_channels: Annotated[tuple[int, int, int, int, int], Between(16, 1024)] = (256, 128, 64, 64, 48)
    """Widths of the U-Net decoder, coarsest first. At least 16, because scSE attention divides channels by 16."""

    def __post_init__(self) -> None:
        first = round(self.resolution * (self.encoder.scales or (1.0,))[0])
        if first % 32:
            at = "" if first == self.resolution else " at the first of encoder.scales"
            raise ValueError(f"resolution: a multiple of 32{at}, not {first}")
        if len(self.encoder.scales) > 1 and not self.residual:
            raise ValueError(f"residual: above 0, because later encoder.scales are for the residual alone, not {self.residual}")


SCORING = ("resolution", "residual", "top_share", "encoder.scales")  # settings that no weight depends on
PUBLISHED = MetaUASSettings(encoder=EncoderSettings("smp", "efficientnet-b4", OF_THE_MODEL), similarity="dot", tiles=(1, 1))
"""Settings of the model at github.com/gaobb/MetaUAS. The authors publish weights for 256x256 and for 512x512. Any multiple of 32 works."""
# Prefixes of tensor names, the authors' and ours. The authors' model aligns the last stage first.
PUBLISHED_NAMES = (
    ("encoder.", "encoder.network."),
    *((f"alignment.{place}.alignment_layer.dimensionality_reduction.", f"alignments.{2 - place}.reduction.") for place in range(3)),
    ("decoder.", "decoder."),
    ("mask_head.", "head."),
)


@dataclass(frozen=True)
class MetaUASPlusSettings:
    """Settings of MetaUAS*+, MetaUAS with a visual prior. Encoder, model and resolution are those of a MetaUAS in the same pipeline."""

    __pydantic_config__ = STRICT

    model_of: Annotated[str, NonEmpty()] = "metauas"
    """Name of the detector of kind `metauas` in the same pipeline."""
    prior: EncoderSettings | None = None
    """CLIP transformer whose few-shot map (WinCLIP, section 4.3) is averaged with the map of MetaUAS. The authors use ViT-B-16-plus-240.
    `null` uses the patch residual of MetaUAS's own features."""
    prior_resolution: Resolution = 240
    """Side in pixels of the square that a picture is resized to for the prior's encoder."""
    stages: Stages = ()
    """Feature maps of MetaUAS's encoder for the patch residual, 1 for the finest. `[]` selects the last three."""

    def __post_init__(self) -> None:
        if self.prior is not None and self.prior.library != "open_clip":
            raise ValueError(f"prior: a transformer of open_clip, not of {self.prior.library}")
