"""InCTRL: its settings, how it is built from them, and how its authors' checkpoints name the same tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, cast

from changepair.tasks.common.bounds import STRICT, Place
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.detectors.settings import NATURAL, OF_THE_MODEL, EncoderSettings, Resolution, Stages

if TYPE_CHECKING:
    from changepair.tasks.detectors.models.clip import ClipEncoder
    from changepair.tasks.detectors.models.detector import Detector
    from changepair.tasks.detectors.models.encoder import FrozenEncoder


@dataclass(frozen=True)
class InCTRLSettings:
    """The defaults are the paper's."""

    __pydantic_config__ = STRICT

    model: Annotated[str, Place()] | None = None
    """A model to use as it is: a folder, such as `changepair import inctrl` writes, or `packaged`; null to train one."""
    encoder: EncoderSettings = EncoderSettings("open_clip", "ViT-B-16-plus-240", "laion400m_e32", (7, 9, 11))
    """What turns pictures, and for the prior texts, into features."""
    resolution: Resolution = 240
    """Pixels a side that pictures are trained on and scored at; with holistic `patches` its head has an input a patch of them."""
    tiles: Tiles = "auto"
    """How pictures are cut, in evaluation and prediction. `auto`: into tiles of at most 1,024 pixels a side if a prompt's longer side has
    more than 2,048. [rows, columns]: into that grid. [1, 1] scores whole pictures."""
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    holistic: Literal["patches", "quantiles"] = "patches"
    """What the holistic head sees of a picture's residuals: each patch's in its place, as in the paper; or their quantiles and mean, which
    depend on no place and no resolution."""
    texts: bool = True
    """Whether the text prior counts; only encoders of open_clip read texts."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects: for them normal means that one is there, in one sentence."""

    def __post_init__(self) -> None:
        if self.texts and self.encoder.library != "open_clip":
            raise ValueError(f"texts: false, as {self.encoder.name} of {self.encoder.library} reads no texts, not true")


def build(settings: InCTRLSettings, encoder: FrozenEncoder) -> Detector:
    from changepair.tasks.detectors.models.inctrl import build_inctrl
    from changepair.tasks.detectors.models.texts import TextPrior

    prior = TextPrior(cast("ClipEncoder", encoder).embed_texts, settings.natural) if settings.texts else None
    return build_inctrl(encoder, resolution=settings.resolution, stages=settings.stages, prior=prior, holistic=settings.holistic)


PUBLISHED = InCTRLSettings(encoder=EncoderSettings("open_clip", "ViT-B-16-plus-240", OF_THE_MODEL, (7, 9, 11)), tiles=(1, 1))
"""As github.com/mala-lab/InCTRL publishes it: there is one for 2, 4 and 8 shots."""
HEAD_LAYERS = (
    ("projection1", "first"),
    ("projection2", "second"),
    ("projection3", "last"),
    ("bn1", "input_norm"),
    ("bn2", "first_norm"),
    ("bn3", "second_norm"),
)
# What a tensor's name starts with, theirs and ours.
PUBLISHED_NAMES = (
    ("adapter.fc.", "adapter."),
    *(
        (f"{theirs}.{layer}.", f"{ours}.{name}.")
        for theirs, ours in (("diff_head_ref", "image_head"), ("diff_head", "holistic_head"))
        for layer, name in HEAD_LAYERS
    ),
    ("", "encoder.network."),  # all the rest is open_clip's
)
