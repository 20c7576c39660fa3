"""Settings of MetaUAS and of MetaUAS*+, and how the authors' checkpoint names the tensors of MetaUAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName, NonEmpty
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import OF_THE_MODEL, EncoderSettings, Resolution, Stages


@dataclass(frozen=True)
class MetaUASSettings(TrainedSettings):
    """The defaults are the paper's, but for the encoder."""

    model: Annotated[str, FileName()] | None = None
    """A model to use as it is: a folder, such as `changepair import metauas` writes, or `packaged`; null to train one."""
    encoder: EncoderSettings = EncoderSettings()
    """What turns pictures into features; five maps of it are needed."""
    resolution: Resolution = 256
    """Pixels a side that pictures are trained on and scored at; a multiple of 32."""
    alignment: Literal["soft", "hard", "none"] = "soft"
    """How the prompt is rebuilt on the grid of the query: by all its positions, each in its share; by the most similar; or not."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Of a query's position to a prompt's: the cosine times a scale that is learnt, or the plain product, as the authors' weights have
    it."""
    aligned_stages: Annotated[int, Between(1, 3)] = 3
    """How many of the encoder's last stages are aligned."""
    fusion: Literal["concatenate", "add", "difference"] = "concatenate"
    """Of a query's features and the aligned prompt's; difference is the absolute one."""
    decoder: Literal["unet", "fpn"] = "unet"
    """What turns fused features into a map."""
    decoder_channels: Annotated[tuple[int, int, int, int, int], Between(16, 1024)] = (256, 128, 64, 64, 48)
    """Width of the U-Net decoder, coarsest first; at least 16, which scSE attention squeezes to one."""

    def __post_init__(self) -> None:
        if self.resolution % 32:
            raise ValueError(f"resolution: a multiple of 32, not {self.resolution}")


SCORING = ("resolution",)  # settings that no weight depends on
PUBLISHED = MetaUASSettings(encoder=EncoderSettings("smp", "efficientnet-b4", OF_THE_MODEL), similarity="dot", tiles=(1, 1))
"""As github.com/gaobb/MetaUAS publishes it, for 256x256 and, with other weights, for 512x512; any multiple of 32 will do."""
# What a tensor's name starts with, theirs and ours. Theirs aligns the last stage first.
PUBLISHED_NAMES = (
    ("encoder.", "encoder.network."),
    *((f"alignment.{place}.alignment_layer.dimensionality_reduction.", f"alignments.{2 - place}.reduction.") for place in range(3)),
    ("decoder.", "decoder."),
    ("mask_head.", "head."),
)


@dataclass(frozen=True)
class MetaUASPlusSettings:
    """MetaUAS with a visual prior. Takes encoder, model and resolution from a MetaUAS of the same pipeline."""

    __pydantic_config__ = STRICT

    model_of: Annotated[str, NonEmpty()] = "metauas"
    """Name of the pipeline's detector of kind metauas."""
    prior: EncoderSettings | None = None
    """The CLIP transformer whose few-shot map, as WinCLIP has it, is averaged with the map of MetaUAS: the authors' is ViT-B-16-plus-240;
    null for the patch residual of the features of MetaUAS itself."""
    prior_resolution: Resolution = 240
    """Pixels a side that pictures are shown to the prior's encoder at."""
    stages: Stages = ()
    """Of the encoder's maps, for the patch residual; [] for the last three."""

    def __post_init__(self) -> None:
        if self.prior is not None and self.prior.library != "open_clip":
            raise ValueError(f"prior: a transformer of open_clip, not of {self.prior.library}")
