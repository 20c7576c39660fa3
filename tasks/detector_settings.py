"""The detectors' settings, by the names pipelines.yaml gives them. No torch: reading settings stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import TypedDict

from tasks.settings import STRICT, Between

PACKAGED, HUB, OF_THE_MODEL = "packaged", "hub", "model"
Resolution = Annotated[int, Between(64, 2048)]
Stages = Annotated[tuple[int, ...], Between(1, 64)]
LITE0 = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class EncoderSettings:
    """Which frozen network turns pictures into feature maps."""

    __pydantic_config__ = STRICT

    library: Literal["timm", "open_clip", "smp"] = "timm"
    """smp, segmentation_models_pytorch, is what the published MetaUAS was trained on."""
    name: str = LITE0
    """As its library calls it, such as vit_small_patch14_dinov2.lvd142m, ViT-B-16-plus-240 or efficientnet-b4."""
    weights: str = PACKAGED
    """`packaged` (tf_efficientnet_lite0's come in a Python package), `hub` (timm's own), a tag of open_clip such as laion400m_e32, a path
    to a safetensors or PyTorch file, or `model`: those in the detector's own model folder."""
    layers: Annotated[tuple[int, ...], Between(1, 64)] = ()
    """Which of the network's layers give maps, counted from 1; [] for all stages of a CNN, the last three blocks of a transformer."""


CLIP = EncoderSettings(library="open_clip", name="ViT-B-16-plus-240", weights="laion400m_e32")


@dataclass(frozen=True)
class PatchResidualSettings:
    __pydantic_config__ = STRICT

    encoder: EncoderSettings = EncoderSettings()
    resolution: Resolution = 256
    """Pixels a side that pictures are scored at."""
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    top_share: Annotated[float, Between(0, 1)] = 0.0
    """The share of patches, those of the highest residual, whose mean is the image score; 0 for the maximum."""
    background: Annotated[float, Between(0, 1)] = 0.0
    """How much of the median patch's residual is taken off the image score: helps where defects are local, hurts where they are not."""
    rotations: Annotated[int, Between(1, 36)] = 1
    """As how many turned views each prompt is remembered: for parts that lie any way round."""


@dataclass(frozen=True)
class MetaUASSettings:
    """The defaults are the paper's, but for the encoder."""

    __pydantic_config__ = STRICT

    model: str | None = None
    """A model folder to use as it is, such as `changepair import metauas` writes; null to train one."""
    encoder: EncoderSettings = EncoderSettings()
    resolution: Resolution = 256
    """Pixels a side that pictures are trained on and scored at; a multiple of 32."""
    alignment: Literal["soft", "hard", "none"] = "soft"
    aligned_stages: Annotated[int, Between(1, 3)] = 3
    """How many of the encoder's last stages are aligned."""
    fusion: Literal["concatenate", "add", "difference"] = "concatenate"
    """Of a query's features and the aligned prompt's; difference is the absolute one."""
    decoder: Literal["unet", "fpn"] = "unet"
    decoder_channels: Annotated[tuple[int, int, int, int, int], Between(16, 1024)] = (256, 128, 64, 64, 48)
    """Width of the U-Net decoder, coarsest first; at least 16, which scSE attention squeezes to one."""

    def __post_init__(self) -> None:
        if self.resolution % 32:
            raise ValueError(f"resolution: a multiple of 32, not {self.resolution}")


@dataclass(frozen=True)
class MetaUASPlusSettings:
    """MetaUAS*+: the pipeline's metauas with the patch residual of its own encoder. Takes encoder, model and resolution from it."""

    __pydantic_config__ = STRICT

    stages: Stages = ()
    """Of the encoder's maps, for the patch residual; [] for the last three."""


NATURAL = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "animal")


@dataclass(frozen=True)
class InCTRLSettings:
    """The defaults are the paper's."""

    __pydantic_config__ = STRICT

    model: str | None = None
    """A model folder to use as it is, such as `changepair import inctrl` writes; null to train one."""
    encoder: EncoderSettings = EncoderSettings(library="open_clip", name=CLIP.name, weights=CLIP.weights, layers=(7, 9, 11))
    resolution: Resolution = 240
    """Pixels a side that pictures are trained on and scored at; the holistic head has an input a patch of them."""
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    texts: bool = True
    """Whether the text prior counts; only encoders of open_clip read texts."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects: for them normal means that one is there, in one sentence."""

    def __post_init__(self) -> None:
        if self.texts and self.encoder.library != "open_clip":
            raise ValueError(f"texts: false, as {self.encoder.name} of {self.encoder.library} reads no texts, not true")


@dataclass(frozen=True)
class WinCLIPSettings:
    """The defaults are those of InCTRL's comparison with it; the method has no others."""

    __pydantic_config__ = STRICT

    encoder: EncoderSettings = CLIP
    resolution: Resolution = 240
    """Pixels a side that pictures are scored at."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects: for them normal means that one is there, in one sentence."""

    def __post_init__(self) -> None:
        if self.encoder.library != "open_clip":
            raise ValueError(f"encoder: one of open_clip, which reads texts, not {self.encoder.library}")


class DetectorSettings(
    TypedDict(
        "Named",
        {
            "patch-residual": PatchResidualSettings,
            "metauas": MetaUASSettings,
            "metauas+": MetaUASPlusSettings,
            "inctrl": InCTRLSettings,
            "winclip": WinCLIPSettings,
        },
        total=False,
    )
):
    """What pipelines.yaml has under detectors: those to evaluate, each with its settings."""

    __pydantic_config__ = STRICT  # type: ignore[misc]


DetectorName = Literal["patch-residual", "metauas", "metauas+", "inctrl", "winclip"]
TrainedName = Literal["metauas", "inctrl"]
TrainedSettings = MetaUASSettings | InCTRLSettings
TRAINED: tuple[TrainedName, ...] = ("metauas", "inctrl")
"""Those that have a model folder, which the train stage writes; the others need no training."""
