"""Define the settings of change pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, cast, get_args

from changepair.tasks.common.bounds import STRICT, Between, FileName
from changepair.tasks.inpainting.settings import RepaintingSettings

ObjectKind = Literal["appearance", "disappearance", "exchange"]
LocalKind = Literal[
    "local.scratch",
    "local.crack",
    "local.fibre",
    "local.fold",
    "local.missing-thread",
    "local.doubled-thread",
    "local.stain",
    "local.spill",
    "local.pit",
    "local.dent",
    "local.dust",
    "local.corrosion",
    "local.discolouration",
    "local.defocus",
    "local.overexposure",
    "local.smear",
    "local.burr",
    "local.chip",
    "local.missing-print",
    "local.shifted-print",
]
"""Local defects, drawn by tasks/synthesis/defects."""
GlobalKind = Literal["global.colour", "global.contrast", "global.weave", "global.focus"]
"""Changes of the whole picture. They have no mask."""
ChangeKind = Literal[ObjectKind, "local-region", "distractor", "none", LocalKind, GlobalKind]
KindOrGroup = Literal[ChangeKind, "object", "local", "global"]
GROUPS: Mapping[str, tuple[ChangeKind, ...]] = {
    "object": get_args(ObjectKind),
    "local": get_args(LocalKind),
    "global": get_args(GlobalKind),
}
"""Kinds that share the share of a group evenly."""
Share = Annotated[float, Between(0, 1)]
Blend = Literal["soft", "poisson", "mixed"]
PAINTED = "inpainted"  # the method of the pairs that an inpainting model paints
DRAWN = "drawn"  # the method of the defects
METHODS: tuple[tuple[ChangeKind, str], ...] = (
    ("appearance", PAINTED),
    ("disappearance", PAINTED),
    ("exchange", PAINTED),
    ("exchange", "pasted"),
    ("local-region", "perlin"),
    ("distractor", "perlin"),
    ("distractor", "pasted"),
    ("none", "unchanged"),
    ("appearance", "pasted"),
    ("disappearance", "pasted"),
    *((kind, DRAWN) for kind in (*get_args(LocalKind), *get_args(GlobalKind))),
)
"""List the methods for each kind of change. A pair's number draws one of them by its position here."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Settings of the difference between prompt and query in geometry and light. Unless stated otherwise, each value is drawn evenly from
    minus to plus the setting."""

    __pydantic_config__ = STRICT

    rotation: Annotated[float, Between(0, 180)] = 30.0
    """Largest rotation, in degrees."""
    shift: Annotated[float, Between(0, 0.5)] = 0.04
    """Largest shift, as a share of the picture's side."""
    zoom: Annotated[float, Between(0, 0.5)] = 0.06
    """Largest change of scale: 0.06 is 6 %."""
    shear: Annotated[float, Between(0, 45)] = 2.0
    """Largest shear, in degrees."""
    light: Annotated[float, Between(0, 1)] = 0.2
    """Largest relative change of brightness, contrast and saturation: 0.2 is 20 %."""
    hue: Annotated[float, Between(0, 0.5)] = 0.02
    """Largest turn of hue, as a share of the colour circle."""
    blur: Annotated[float, Between(0, 16)] = 0.0
    """Largest sigma in pixels of a Gaussian blur, as from another lens. Two fifths of the pictures are blurred, with sigma drawn from 0 to
    this."""
    noise: Annotated[float, Between(0, 64)] = 0.0
    """Largest standard deviation of added noise, in levels of 255, as from another sensor or device. Two fifths of the pictures get fine or
    coarse noise, with a deviation drawn from 0 to this."""
    grey: Annotated[float, Between(0, 1)] = 0.0
    """Share of the pairs without colour."""


@dataclass(frozen=True)
class ObjectSettings:
    """Settings of the objects that may appear, disappear or be exchanged."""

    __pydantic_config__ = STRICT

    proposals: Literal["segmentation", "sam", "none"] = "segmentation"
    """Method that finds objects in photographs for which datasets.objects has none. `segmentation` is unsupervised and graph-based
    (Felzenszwalb and Huttenlocher, IJCV 2004). `sam` is Segment Anything (Kirillov et al., ICCV 2023). `none` finds none."""
    sam: Annotated[str, FileName()] = "facebook/sam-vit-base"
    """Hub id or folder of the Segment Anything model."""
    area: Annotated[tuple[float, float], Between(0, 1)] = (0.01, 0.3)
    """Smallest and largest share of the square that an object may cover."""
    cut_by_border: bool = False
    """Whether objects that the border cuts may be used."""
    margin: Annotated[float, Between(0, 0.2)] = 0.02
    """Margin around an object that is painted away with it, as a share of the square's side. It covers the blurred edge and the shadow."""
    blend: Blend = "soft"
    """How a pasted object is joined to the picture. `soft` keeps its colours and blurs its edge. `poisson` adapts its colours to those
    around it (Perez et al., SIGGRAPH 2003). `mixed` does so too, and lets the picture's detail show through."""


@dataclass(frozen=True)
class DefectSettings:
    """Settings of the defects of the groups `local` and `global`. Both ranges are drawn from on a logarithmic scale."""

    __pydantic_config__ = STRICT

    size: Annotated[tuple[float, float], Between(0.01, 1)] = (0.06, 0.5)
    """Smallest and largest extent of a local defect, as a share of the picture's side: the length of a scratch, the diameter of a stain."""
    contrast: Annotated[tuple[float, float], Between(0.02, 1)] = (0.12, 0.6)
    """Smallest and largest difference of a defect from the picture, as a share of the range of levels."""


@dataclass(frozen=True)
class SynthesisSettings:
    """Settings of the change pairs: how many, of which kinds, and how prompt and query differ."""

    __pydantic_config__ = STRICT

    seed: Annotated[int, Between(0, None)] = 0
    """Seed of everything that is drawn. The seed and a pair's number determine the pair."""
    pairs: Annotated[int, Between(0, None)] = 3000
    """Number of pairs. Use 0 for a pipeline that trains on none."""
    pairs_per_shard: Annotated[int, Between(1, None)] = 250
    """Pairs in a shard. One worker makes a shard, and a killed run keeps its complete shards."""
    resolution: Annotated[int, Between(64, 2048)] = 256
    """Side in pixels of query, prompt and mask."""
    kinds: dict[KindOrGroup, Share] = field(
        default_factory=lambda: {
            "appearance": 0.11,
            "disappearance": 0.11,
            "exchange": 0.11,
            "local-region": 0.32,
            "distractor": 0.1,
            "none": 0.25,
        }
    )
    """Shares of the kinds of change; they sum to 1. The MetaUAS paper mixes object-level and local-region changes about half and half. A
    `distractor` puts the same artefact into prompt and query, so that nothing has changed. The groups `object`, `local` and `global` give
    each of their kinds the same share. The kinds of `global` change the whole picture. They have no mask, so only detectors that learn from
    image labels use them."""
    swapped: Share = 0.5
    """Share of the pairs in which prompt and query change roles, among those that show one place. With 0, the artefact would always be in
    the query, and a detector could find it without the prompt."""
    apart: Share = 0.5
    """Share of unregistered pairs, whose prompt and query are two crops of one texture: real prompts are not registered either. It applies
    to the kinds `none`, `local-region` and `distractor` with noise, and to photographs that show a texture."""
    held_out: Annotated[float, Between(0, 0.5)] = 0.05
    """Share of the pairs and of the photographs to measure training on. These are the last pairs, and only they are made from these
    photographs."""
    regenerated: Share = 0.5
    """Share of the exchanges that the inpainting model paints. In the others an object of another photograph is pasted."""
    pasted: Share = 0.0
    """Share of the appearances and disappearances in which an object of another photograph is pasted into the query or the prompt. In the
    others the inpainting model paints an object away."""
    crop: Annotated[tuple[float, float], Between(0.05, 1)] = (0.4, 1.0)
    """Smallest and largest side of the square cut from a source picture, as shares of its shorter side."""
    changed_area: Annotated[tuple[float, float], Between(0, 1)] = (0.002, 0.5)
    """Smallest and largest share of the query that a change may cover. Draws outside it are dropped and drawn again."""
    defects: DefectSettings = DefectSettings()
    """Settings of the size and contrast of the defects of `local` and `global`."""
    objects: ObjectSettings = ObjectSettings()
    """Settings of the objects that change."""
    inpainting: RepaintingSettings = RepaintingSettings()
    """Settings of the calls to the inpainting model."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """Settings of the difference between prompt and query in geometry and light."""

    def __post_init__(self) -> None:
        if abs(sum(self.kinds.values()) - 1.0) > 1e-6:
            raise ValueError(f"kinds: shares that sum to 1, not {sum(self.kinds.values()):g}")
        ranges = {"crop": self.crop, "changed_area": self.changed_area, "objects.area": self.objects.area}
        ranges |= {"defects.size": self.defects.size, "defects.contrast": self.defects.contrast}
        for name, (low, high) in ranges.items():
            if low > high:
                raise ValueError(f"{name}: the smaller one first, not ({low:g}, {high:g})")

    @property
    def kind_shares(self) -> dict[ChangeKind, float]:
        """Share of each kind that has one, with the shares of groups divided among their kinds."""
        shares = dict[ChangeKind, float]()
        for name, share in self.kinds.items():
            members = GROUPS.get(name, (cast(ChangeKind, name),))
            for kind in members if share > 0 else ():
                shares[kind] = shares.get(kind, 0.0) + share / len(members)
        return shares

    @property
    def repaints(self) -> list[ChangeKind]:
        """Kinds of change that need an inpainting model."""
        return [kind for (kind, method), share in zip(METHODS, self.shares, strict=True) if method == PAINTED and share > 0]

    @property
    def shares(self) -> list[float]:
        """Share of each of METHODS. They sum to 1."""
        within = {("exchange", PAINTED): self.regenerated, ("exchange", "pasted"): 1 - self.regenerated}
        within |= {("distractor", method): 0.5 for method in ("perlin", "pasted")}
        for kind in ("appearance", "disappearance"):
            within |= {(kind, PAINTED): 1 - self.pasted, (kind, "pasted"): self.pasted}
        shares = self.kind_shares
        asked = [shares.get(kind, 0.0) * within.get((kind, method), 1.0) for kind, method in METHODS]
        return [share / sum(asked) for share in asked]
