"""Define the settings that several detectors share. The module imports no torch, so pipelines.yaml is read quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName, NonEmpty
from changepair.tasks.common.pictures import Resize

PACKAGED, HUB, OF_THE_MODEL = "packaged", "hub", "model"
Resolution = Annotated[int, Between(64, 2048)]
Stages = Annotated[tuple[int, ...], Between(1, 64)]
LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"
FILES_OF_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
FOLDER_OF_OPEN_CLIP = "local-dir:"
NATURAL = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "animal")


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of the frozen network that turns pictures into feature maps. The name of a preset may replace them."""

    __pydantic_config__ = STRICT

    library: Literal["timm", "open_clip", "smp"] = "timm"
    """Library that provides the network. `smp` is segmentation_models_pytorch, whose encoder the published MetaUAS uses."""
    name: Annotated[str, NonEmpty()] = LITE0
    """Name of the network in its library, such as vit_small_patch14_dinov2.lvd142m (timm), ViT-B-16-plus-240 (open_clip) or efficientnet-b4
    (smp)."""
    weights: Annotated[str, FileName()] = PACKAGED
    """Source of the weights. `packaged` reads those of tf_efficientnet_lite0 or tf_efficientnet_lite2 from an installed Python package.
    `hub` downloads timm's pretrained weights. A tag of open_clip, such as laion400m_e32, downloads the weights of that tag. A path reads a
    safetensors or PyTorch file. `model` takes them from the detector's model folder."""
    layers: Annotated[tuple[int, ...], Between(1, 64)] = ()
    """Layers of the network whose outputs become feature maps, counted from 1. `[]` selects all stages of a CNN, or the last three blocks
    of a transformer."""
    scales: Annotated[tuple[float, ...], Between(0.1, 1), NonEmpty()] = (1.0,)
    """Sizes at which a CNN encodes each picture, as shares of `resolution`. `[1, 0.5]` encodes it at full and at half size, and detectors
    compare the maps of both."""
    resize: Resize = "squash"
    """Method that makes a picture a square of `resolution` pixels. `squash` resizes it to the square, bicubic. `aligned` does so bilinearly
    with aligned corners, as the code of MetaUAS. `crop` resizes the shorter side, bicubic, and crops the middle square, as CLIP and
    InCTRL."""
    layer_norm: bool = False
    """Whether the last LayerNorm of a transformer is applied to every chosen layer, as in AnomalyDINO and RAD."""

    @property
    def files(self) -> list[str]:
        """Local files and folders that the settings name."""
        named = [self.weights] if self.weights.endswith(FILES_OF_WEIGHTS) else []
        if self.name.startswith(FOLDER_OF_OPEN_CLIP):
            named.append(self.name.removeprefix(FOLDER_OF_OPEN_CLIP))
        return named
