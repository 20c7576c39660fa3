"""Define the settings of the inpainting model and of repainting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName

OWN, PACKAGED, NONE = "own", "packaged", "none"


@dataclass(frozen=True)
class InpainterSettings:
    """The model that repaints regions, and how `own`, the small diffusion model, is trained on the pipeline's sources."""

    __pydantic_config__ = STRICT

    model: Annotated[str, FileName()] = OWN
    """`own`, trained on the pipeline's sources; `packaged`, one like it that comes with this package; `none`, where no kind of change
    repaints; or a diffusers inpainting pipeline by hub id or folder."""
    revision: str | None = None
    """Of a hub id: the commit, so that the same pairs can be made again."""
    seed: Annotated[int, Between(0, None)] = 0
    """Of the weights, the photographs and the holes."""
    resolution: Annotated[int, Between(32, 256)] = 64
    """Pixels a side of the crop around a region that the model sees; a multiple of 16."""
    channels: Annotated[tuple[int, ...], Between(8, 1024)] = (32, 64, 96)
    """Of its levels, from fine to coarse; multiples of 8, the last of 32."""
    steps: Annotated[int, Between(1, None)] = 2000
    """Of training."""
    batch_size: Annotated[int, Between(1, None)] = 16
    """Squares a step."""
    learning_rate: Annotated[float, Between(0, 1)] = 1.5e-3
    """AdamW's, after a warm-up; it falls to 0 as a cosine."""
    crop: Annotated[tuple[float, float], Between(0.02, 1)] = (0.15, 0.8)
    """Smallest and largest side of the squares it learns from, as a share of a photograph's shorter side."""

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels: at least one")
        if self.resolution % 2 ** (len(self.channels) + 1):
            raise ValueError(f"resolution: a multiple of {2 ** (len(self.channels) + 1)}, not {self.resolution}")
        if any(channels % 8 for channels in self.channels) or self.channels[-1] % 32:
            raise ValueError(f"channels: multiples of 8, the last of 32, not {list(self.channels)}")


@dataclass(frozen=True)
class RepaintingSettings:
    """The way the inpainting model is asked."""

    __pydantic_config__ = STRICT

    batch_size: Annotated[int, Between(1, None)] = 16
    """Regions repainted at once. Part of what a shard is: another number gives other low bits."""
    steps: Annotated[int, Between(1, 1000)] | None = None
    """Of denoising; null for the model's own number."""
    guidance: Annotated[float, Between(0, 50)] = 7.5
    """Classifier-free guidance of a model that takes texts."""
    resolution: Annotated[int, Between(16, 4096)] | None = None
    """Pixels a side at which a diffusers pipeline works; null for its own. `own` works at the size it was trained at."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of a diffusers pipeline's weights."""
    removal_text: str = ""
    """What a model that takes texts is told when an object is painted away."""
    exchange_texts: tuple[str, ...] = ()
    """What it is told when an object is painted anew, one drawn for each; none for the object's own label."""
    least_difference: Annotated[float, Between(0, 1)] = 0.06
    """How far, of the range of a channel, a place must have moved to count as changed, after blurring by a hundredth of the side."""
    least_changed: Annotated[float, Between(0, 1)] = 0.3
    """Share of a repainted region that must have changed; of less the pair is dropped as unchanged."""
