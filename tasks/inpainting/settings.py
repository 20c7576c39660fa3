"""Define the settings of the inpainting model and of repainting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName

OWN, PACKAGED, EXEMPLAR, NONE = "own", "packaged", "exemplar", "none"
NAMED = (OWN, PACKAGED, EXEMPLAR, NONE)  # names that are no folder and no hub id


@dataclass(frozen=True)
class InpainterSettings:
    """Settings of the model that repaints regions. They include how `own`, a small diffusion model, is trained on the pipeline's
    sources."""

    __pydantic_config__ = STRICT

    model: Annotated[str, FileName()] = OWN
    """Model that repaints regions. `own` is trained on the pipeline's sources. `packaged` is a trained one in this package. `exemplar`
    needs no weights: it copies patches from the surroundings. `none` is for pipelines whose kinds of change repaint nothing. Otherwise, the
    hub id or folder of an inpainting pipeline of diffusers."""
    revision: str | None = None
    """Commit of a hub id. Set it so that pairs can be reproduced."""
    seed: Annotated[int, Between(0, None)] = 0
    """Seed of the initial weights, and of the photographs and holes that training draws."""
    resolution: Annotated[int, Between(32, 256)] = 64
    """Side in pixels of the square crop around a region that the model paints. With three levels it must be a multiple of 16."""
    channels: Annotated[tuple[int, ...], Between(8, 1024)] = (32, 64, 96)
    """Channels of the network's levels, finest first. Each must be a multiple of 8, the last one of 32."""
    steps: Annotated[int, Between(1, None)] = 2000
    """Number of training steps."""
    batch_size: Annotated[int, Between(1, None)] = 16
    """Squares of photographs a training step."""
    learning_rate: Annotated[float, Between(0, 1)] = 1.5e-3
    """Peak learning rate of AdamW. It warms up first and then falls to 0 along a cosine."""
    crop: Annotated[tuple[float, float], Between(0.02, 1)] = (0.15, 0.8)
    """Smallest and largest side of the squares that training cuts from a photograph, as shares of its shorter side."""

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels: at least one")
        if self.resolution % 2 ** (len(self.channels) + 1):
            raise ValueError(f"resolution: a multiple of {2 ** (len(self.channels) + 1)}, not {self.resolution}")
        if any(channels % 8 for channels in self.channels) or self.channels[-1] % 32:
            raise ValueError(f"channels: multiples of 8, the last of 32, not {list(self.channels)}")


@dataclass(frozen=True)
class RepaintingSettings:
    """Settings of the calls to the inpainting model."""

    __pydantic_config__ = STRICT

    batch_size: Annotated[int, Between(1, None)] = 16
    """Regions that are repainted in one call. Another number changes the low bits of the result, so it is part of a shard's identity."""
    steps: Annotated[int, Between(1, 1000)] | None = None
    """Number of denoising steps. `null` uses the model's own."""
    guidance: Annotated[float, Between(0, 50)] = 7.5
    """Scale of classifier-free guidance, for text-prompted models."""
    resolution: Annotated[int, Between(16, 4096)] | None = None
    """Side in pixels at which a diffusers pipeline paints. `null` uses its own. `own` paints at the resolution that it was trained at."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type of a diffusers pipeline's weights."""
    removal_text: str = ""
    """Prompt for text-prompted models when an object is painted away."""
    exchange_texts: tuple[str, ...] = ()
    """Prompts for text-prompted models when an object is exchanged; each exchange draws one. `[]` uses the object's label."""
    least_difference: Annotated[float, Between(0, 1)] = 0.06
    """Smallest difference that counts as a change, as a share of a channel's range. The difference is first blurred with a sigma of a
    hundredth of the side, so that fine grain does not count."""
    least_changed: Annotated[float, Between(0, 1)] = 0.3
    """Smallest share of a repainted region that must change. Below it, the draw is dropped as unchanged."""
    verified: bool = False
    """Whether a repainted pixel counts as changed only where the features of the packaged encoder differ. Draws without such a pixel are
    dropped. It takes about a tenth of a second a pair at 128 pixels."""
