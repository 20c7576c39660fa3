"""Holds figures that others published, to stand beside ours where the protocol is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.scoring.figures import FIGURES

METAUAS = "authors' repository of MetaUAS (arXiv 2505.09265), 5 draws of one prompt"


@dataclass(frozen=True)
class Published:
    """One row of a published table. Its AUPRO is as `evaluation.convention: published` has it."""

    layout: str
    """Of the dataset, as `changepair datasets` calls it."""
    protocol: str
    shots: int
    name: str
    figures: dict[str, str]
    """Percent, mean or mean ± std."""
    source: str


def _row(layout: str, protocol: str, name: str, figures: str, source: str = METAUAS) -> Published:
    """Makes a row. figures: the seven, in the order of FIGURES."""
    values = [value.replace("±", " ± ") for value in figures.split()]
    return Published(layout, protocol, 1, name, dict(zip(FIGURES, values, strict=True)), source)


PUBLISHED = (
    _row("mvtec-ad", "class-specific", "MetaUAS, 256", "90.7±0.7 95.7±0.6 92.5±0.3 94.6±0.2 59.3±1.4 57.5±1.1 82.6±0.6"),
    _row("mvtec-ad", "class-agnostic", "MetaUAS*, 256", "94.2 97.6 93.9 95.3 63.7 61.6 83.1"),
    _row("mvtec-ad", "class-agnostic", "MetaUAS*+, 256", "95.3 97.9 94.6 97.6 67.0 62.9 92.5"),
    _row("visa", "class-specific", "MetaUAS, 512", "79.9 83.2 79.3 92.7 41.9 44.0 59.9"),
    _row("real-iad", "class-specific", "MetaUAS", "80.0±0.4 77.9±0.4 72.4±0.4 95.6±0.2 36.6±1.1 39.7±1.0 83.5±0.7"),
    _row(
        "mvtec-ad",
        "class-specific",
        "MetaUAS, retrained by others",
        "89.1±1.1 94.5±1.0 92.1±0.6 95.1±0.2 54.8±0.9 53.4±0.6 83.8±0.6",
        "a retraining by others: COCO, LaMa inpainting, 4 GPUs of 24 GB",
    ),
)


def beside(layout: str, protocols: Sequence[tuple[str, int]]) -> list[Published]:
    """Lists the rows of a dataset of this layout, in the protocols and at the shots given."""
    return [row for row in PUBLISHED if row.layout == layout and (row.protocol, row.shots) in protocols]
