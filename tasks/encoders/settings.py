"""Defines what the settings of several detectors are made of. It imports no torch, so reading settings stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName, NonEmpty
from changepair.tasks.common.pictures import Resize

PACKAGED, HUB, OF_THE_MODEL = "packaged", "hub", "model"
Resolution = Annotated[int, Between(64, 2048)]
Stages = Annotated[tuple[int, ...], Between(1, 64)]
LITE0 = "tf_efficientnet_lite0"
FILES_OF_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
FOLDER_OF_OPEN_CLIP = "local-dir:"
NATURAL = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "animal")


@dataclass(frozen=True)
class EncoderSettings:
    """The frozen network that turns pictures into feature maps."""

    __pydantic_config__ = STRICT

    library: Literal["timm", "open_clip", "smp"] = "timm"
    """smp, segmentation_models_pytorch, is what the published MetaUAS was trained on."""
    name: Annotated[str, NonEmpty()] = LITE0
    """As its library calls it, such as vit_small_patch14_dinov2.lvd142m, ViT-B-16-plus-240 or efficientnet-b4."""
    weights: Annotated[str, FileName()] = PACKAGED
    """`packaged` (tf_efficientnet_lite0's come in a Python package), `hub` (timm's own), a tag of open_clip such as laion400m_e32, a path
    to a safetensors or PyTorch file, or `model`: those in the detector's own model folder."""
    layers: Annotated[tuple[int, ...], Between(1, 64)] = ()
    """Which of the network's layers give maps, counted from 1; [] for all stages of a CNN, the last three blocks of a transformer."""
    scales: Annotated[tuple[float, ...], Between(0.1, 1), NonEmpty()] = (1.0,)
    """The sizes that a CNN sees every picture at, in shares of the resolution, such as [1, 0.5]: maps of all of them are compared."""
    resize: Resize = "squash"
    """How a picture is brought to the resolution: `squash`, to a square, bicubic; `aligned`, to a square, bilinear between the corners'
    pixels, as MetaUAS's authors have it; `crop`, its shorter side, bicubic, and the middle of the other, as CLIP and InCTRL's authors."""

    @property
    def files(self) -> list[str]:
        """Files and folders of this machine that it names."""
        named = [self.weights] if self.weights.endswith(FILES_OF_WEIGHTS) else []
        if self.name.startswith(FOLDER_OF_OPEN_CLIP):
            named.append(self.name.removeprefix(FOLDER_OF_OPEN_CLIP))
        return named
