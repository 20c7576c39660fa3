"""List metrics that others published, to compare with ours under the same protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from changepair.tasks.scoring.figures import FIGURES

METAUAS = "authors' repository of MetaUAS (arXiv 2505.09265), 5 draws of one prompt"


@dataclass(frozen=True)
class Published:
    """One row of a published table. Its AUPRO follows `evaluation.convention: published`."""

    layout: str  # of the dataset, a name of `changepair datasets`
    protocol: str
    shots: int
    resolution: int  # pixels a side that maps and masks were compared at
    name: str
    figures: dict[str, str]  # percent, mean or mean ± std
    source: str


def _row(layout: str, resolution: int, name: str, figures: str, source: str = METAUAS) -> Published:
    """Return a row of the class-specific protocol at one shot. figures: the seven, in the order of FIGURES."""
    values = [value.replace("±", " ± ") for value in figures.split()]
    return Published(layout, "class-specific", 1, resolution, name, dict(zip(FIGURES, values, strict=True)), source)


# Their class-agnostic metrics (MetaUAS*, MetaUAS*+) are not comparable: they choose a prompt among all normal training pictures of a class,
# our class-agnostic protocol among one for each class.
PUBLISHED = (
    _row("mvtec-ad", 256, "MetaUAS, 256", "90.7±0.7 95.7±0.6 92.5±0.3 94.6±0.2 59.3±1.4 57.5±1.1 82.6±0.6"),
    _row("visa", 512, "MetaUAS, 512", "81.2±1.7 84.5±1.4 80.2±0.7 92.2±0.7 42.7±0.8 44.7±0.6 60.4±1.5"),
    _row("real-iad", 256, "MetaUAS, 256", "80.0±0.4 77.9±0.4 72.4±0.4 95.6±0.2 36.6±1.1 39.7±1.0 83.5±0.7"),
    _row(
        "mvtec-ad",
        256,
        "MetaUAS, retrained by others",
        "89.1±1.1 94.5±1.0 92.1±0.6 95.1±0.2 54.8±0.9 53.4±0.6 83.8±0.6",
        "a retraining by others: COCO, LaMa inpainting, 4 GPUs of 24 GB",
    ),
)


def beside(layout: str, resolution: int, protocols: Sequence[tuple[str, int]]) -> list[Published]:
    """List the rows of a dataset layout at a resolution. protocols: the protocols and shots that were measured."""
    return [row for row in PUBLISHED if (row.layout, row.resolution) == (layout, resolution) and (row.protocol, row.shots) in protocols]
