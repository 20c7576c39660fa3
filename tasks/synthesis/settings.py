"""Define the settings of change pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName
from changepair.tasks.inpainting.settings import RepaintingSettings

ChangeKind = Literal["appearance", "disappearance", "exchange", "local-region", "distractor", "none"]
Share = Annotated[float, Between(0, 1)]
PAINTED = "inpainted"  # the method of the pairs that an inpainting model paints
METHODS: tuple[tuple[ChangeKind, str], ...] = (
    ("appearance", PAINTED),
    ("disappearance", PAINTED),
    ("exchange", PAINTED),
    ("exchange", "pasted"),
    ("local-region", "perlin"),
    ("distractor", "perlin"),
    ("distractor", "pasted"),
    ("none", "unchanged"),
)
"""Every way to make a kind of change. A pair's number draws one by its place here."""


@dataclass(frozen=True)
class AugmentationSettings:
    """The distance of prompt and query in geometry and light; each is drawn evenly from minus to plus the value."""

    __pydantic_config__ = STRICT

    rotation: Annotated[float, Between(0, 180)] = 30.0
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
    blur: Annotated[float, Between(0, 16)] = 0.0
    """Sigma in pixels, drawn from 0 to this, of the Gaussian that some of the pictures are blurred with: another lens."""
    noise: Annotated[float, Between(0, 64)] = 0.0
    """Levels of 255, drawn from 0 to this, of the noise that some of the pictures get, fine or grained: another sensor, or another make."""
    grey: Annotated[float, Between(0, 1)] = 0.0
    """Share of the pairs without colour."""


@dataclass(frozen=True)
class ObjectSettings:
    """The objects of a photograph that may appear, disappear or be exchanged."""

    __pydantic_config__ = STRICT

    proposals: Literal["segmentation", "sam", "none"] = "segmentation"
    """What finds objects where datasets.objects has none for a photograph: an unsupervised segmentation (Felzenszwalb and
    Huttenlocher, IJCV 2004), Segment Anything, or nothing."""
    sam: Annotated[str, FileName()] = "facebook/sam-vit-base"
    """Hub id or folder of the Segment Anything model."""
    area: Annotated[tuple[float, float], Between(0, 1)] = (0.01, 0.3)
    """Smallest and largest share of the square that an object may cover."""
    cut_by_border: bool = False
    """Whether an object that the border cuts may be taken."""
    margin: Annotated[float, Between(0, 0.2)] = 0.02
    """How far around an object is painted away with it, as a share of the square's side: its blurred edge, its shadow."""


@dataclass(frozen=True)
class SynthesisSettings:
    __pydantic_config__ = STRICT

    seed: Annotated[int, Between(0, None)] = 0
    """Of all that is drawn; a pair follows from it and its number."""
    pairs: Annotated[int, Between(0, None)] = 3000
    """0 for a pipeline that trains on none."""
    pairs_per_shard: Annotated[int, Between(1, None)] = 250
    """A shard is what one worker makes, and what a run that was killed keeps."""
    resolution: Annotated[int, Between(64, 2048)] = 256
    """Pixels a side of query, prompt and mask."""
    kinds: dict[ChangeKind, Share] = field(
        default_factory=lambda: {
            "appearance": 0.11,
            "disappearance": 0.11,
            "exchange": 0.11,
            "local-region": 0.32,
            "distractor": 0.1,
            "none": 0.25,
        }
    )
    """The share of each kind of change; together 1. The MetaUAS paper mixes object-level and local-region about half and half. A distractor
    is in the prompt and in the query, so that nothing has changed."""
    swapped: Share = 0.5
    """How often prompt and query change roles, where they show one place. Were it never, the artefact would be in the query, and no prompt
    needed to find it."""
    apart: Share = 0.5
    """Share of the pairs of kinds none, local-region and distractor (its noises) whose prompt and query are two crops of one texture, where
    a photograph shows any: as a real prompt is never registered, anomalous or not."""
    held_out: Annotated[float, Between(0, 0.5)] = 0.05
    """Share of the pairs, the last ones, and of the photographs, which those and no others are made from: to measure a training on."""
    regenerated: Share = 0.5
    """Share of the exchanges that the inpainting model paints anew; the others get an object of another photograph pasted in."""
    crop: Annotated[tuple[float, float], Between(0.05, 1)] = (0.4, 1.0)
    """Smallest and largest side of the square cut from a source picture, as a share of its shorter side."""
    changed_area: Annotated[tuple[float, float], Between(0, 1)] = (0.002, 0.5)
    """Smallest and largest share of the query that a change may cover; a draw outside is dropped and drawn again."""
    objects: ObjectSettings = ObjectSettings()
    """Which objects change."""
    inpainting: RepaintingSettings = RepaintingSettings()
    """How the inpainting model is asked."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """How far prompt and query stand apart."""

    def __post_init__(self) -> None:
        if abs(sum(self.kinds.values()) - 1.0) > 1e-6:
            raise ValueError(f"kinds: shares that sum to 1, not {sum(self.kinds.values()):g}")
        for name, (low, high) in (("crop", self.crop), ("changed_area", self.changed_area), ("objects.area", self.objects.area)):
            if low > high:
                raise ValueError(f"{name}: the smallest first, not ({low:g}, {high:g})")

    @property
    def repaints(self) -> list[ChangeKind]:
        """The kinds that need an inpainting model."""
        return [kind for (kind, method), share in zip(METHODS, self.shares, strict=True) if method == PAINTED and share > 0]

    @property
    def shares(self) -> list[float]:
        """The share of each of METHODS; together 1."""
        within = {("exchange", PAINTED): self.regenerated, ("exchange", "pasted"): 1 - self.regenerated}
        within |= {("distractor", method): 0.5 for method in ("perlin", "pasted")}
        asked = [self.kinds.get(kind, 0.0) * within.get((kind, method), 1.0) for kind, method in METHODS]
        return [share / sum(asked) for share in asked]
