"""How change pairs are made, as pipelines.yaml asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tasks.settings import STRICT, Between

Kind = Literal["local-region", "exchange", "none"]
Share = Annotated[float, Between(0, 1)]


@dataclass(frozen=True)
class AugmentationSettings:
    """How far prompt and query stand apart in geometry and light; each is drawn evenly from minus to plus the value."""

    __pydantic_config__ = STRICT

    rotation: Annotated[float, Between(0, 180)] = 5.0
    """Degrees."""
    shift: Annotated[float, Between(0, 0.5)] = 0.04
    """Share of the picture's side."""
    zoom: Annotated[float, Between(0, 0.5)] = 0.06
    """Relative."""
    shear: Annotated[float, Between(0, 45)] = 2.0
    """Degrees."""
    light: Annotated[float, Between(0, 1)] = 0.2
    """Relative change of brightness, contrast and saturation."""
    hue: Annotated[float, Between(0, 0.5)] = 0.02
    """Share of the colour circle."""


@dataclass(frozen=True)
class SynthesisSettings:
    __pydantic_config__ = STRICT

    seed: Annotated[int, Between(0, None)] = 0
    pairs: Annotated[int, Between(1, None)] = 3000
    pairs_per_shard: Annotated[int, Between(1, None)] = 250
    resolution: Annotated[int, Between(64, 2048)] = 256
    """Pixels a side of query, prompt and mask."""
    kinds: dict[Kind, Share] = field(default_factory=lambda: {"local-region": 0.45, "exchange": 0.45, "none": 0.1})
    """The share of each kind of change; together 1."""
    crop: Annotated[tuple[float, float], Between(0.05, 1)] = (0.4, 1.0)
    """Smallest and largest side of the square cut from a source picture, as a share of its shorter side."""
    changed_area: Annotated[tuple[float, float], Between(0, 1)] = (0.002, 0.5)
    """Smallest and largest share of the query that a change may cover; a draw outside is drawn again."""
    augmentation: AugmentationSettings = AugmentationSettings()

    def __post_init__(self) -> None:
        if abs(sum(self.kinds.values()) - 1.0) > 1e-6:
            raise ValueError(f"kinds: shares that sum to 1, not {sum(self.kinds.values()):g}")
        for name in ("crop", "changed_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the smallest first, not ({low:g}, {high:g})")
