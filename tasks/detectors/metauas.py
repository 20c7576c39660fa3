"""MetaUAS: its settings, how it is built from them, and how its authors' checkpoint names the same tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, Place
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.detectors.settings import OF_THE_MODEL, EncoderSettings, Resolution, options_of

if TYPE_CHECKING:
    from changepair.tasks.detectors.models.detector import Detector
    from changepair.tasks.detectors.models.encoder import FrozenEncoder


@dataclass(frozen=True)
class MetaUASSettings:
    """The defaults are the paper's, but for the encoder."""

    __pydantic_config__ = STRICT

    model: Annotated[str, Place()] | None = None
    """A model to use as it is: a folder, such as `changepair import metauas` writes, or `packaged`; null to train one."""
    encoder: EncoderSettings = EncoderSettings()
    """What turns pictures into features; five maps of it are needed."""
    resolution: Resolution = 256
    """Pixels a side that pictures are trained on and scored at; a multiple of 32."""
    tiles: Tiles = "auto"
    """How pictures are cut, in evaluation and prediction. `auto`: into tiles of at most 1,024 pixels a side if a prompt's longer side has
    more than 2,048. [rows, columns]: into that grid. [1, 1] scores whole pictures."""
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


def build(settings: MetaUASSettings, encoder: FrozenEncoder) -> Detector:
    from changepair.tasks.detectors.models.metauas import build_metauas

    return build_metauas(encoder, **options_of(settings))


PUBLISHED = MetaUASSettings(encoder=EncoderSettings("smp", "efficientnet-b4", OF_THE_MODEL), similarity="dot", tiles=(1, 1))
"""As github.com/gaobb/MetaUAS publishes it, for 256x256 and, with other weights, for 512x512; any multiple of 32 will do."""
# What a tensor's name starts with, theirs and ours. Theirs aligns the last stage first.
PUBLISHED_NAMES = (
    ("encoder.", "encoder.network."),
    *((f"alignment.{place}.alignment_layer.dimensionality_reduction.", f"alignments.{2 - place}.reduction.") for place in range(3)),
    ("decoder.", "decoder."),
    ("mask_head.", "head."),
)
