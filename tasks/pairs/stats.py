"""Measure finished pairs: counts, changed area, position of the change, its contrast, and how well a detector sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.pairs.reading import PairsFolder, StoredPair, spread
from changepair.tasks.synthesis.shards import PairRow

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RING = 0.03  # width of the ring around a change, as a share of the query's shorter side
NARROWEST = 2  # pixels: the least width of the ring
CELLS = 3  # rows and columns of the grid of positions
ALL = "all"
DETECTOR = "patch-residual"
ABOUT = {
    "changed_area": "quantiles of the share of the query that the mask covers, of all pairs with a mask",
    "position": f"share of the masks whose centre of mass lies in each cell of a {CELLS} x {CELLS} grid, from the top left; the centre of "
    "scattered regions is often in the middle",
    "coverage": "share of a mask's pixels in each cell of the same grid, mean over the masks",
    "contrast": f"difference between the mean colour of the query inside the mask and in a ring around it ({RING:.0%} of the side wide), "
    "absolute, mean over the three channels, in levels of 255; a change of texture that keeps the mean colour has a low contrast",
    "difficulty": f"mean residual of the detector {DETECTOR} inside the mask and outside of it, with the pair's prompt as the only prompt; "
    "seen is the share of pairs with a larger residual inside than outside",
}
"""Definitions of the measurements, for a reader."""


@dataclass(frozen=True)
class Measured:
    """Measurements of the pairs of one kind and method, or of all. A number that no pair defines is None."""

    kind: str
    method: str
    pairs: int
    held_out: int
    masked: int  # pairs with a mask
    changed_area: tuple[float, ...] | None  # at QUANTILES
    sampled: int  # pairs with a mask whose positions and contrasts are measured
    position: tuple[float, ...] | None  # shares of masks in 9 cells, row by row
    coverage: tuple[float, ...] | None  # shares of the masks' pixels in 9 cells
    contrast: tuple[float, ...] | None  # at QUANTILES, in levels of 255
    scored: int  # pairs with a mask that the detector has scored
    residual_inside: float | None  # median over pairs, 0 to 1
    residual_outside: float | None
    seen: float | None  # share of pairs with a larger residual inside than outside


@dataclass(frozen=True)
class Look:
    """Position and contrast of one pair's change. `contrast` is None if the mask leaves no ring."""

    cell: int  # that of the centre of mass
    coverage: NDArray[np.float64]  # share of the mask in each cell
    contrast: float | None


Residuals = Callable[[StoredPair], tuple[float, float] | None]


def measure(pairs: PairsFolder, sample: int = 1000, scored: int = 100, residuals: Residuals | None = None) -> list[Measured]:
    """Measure all pairs, and those of each kind and method.

    Counts and areas are those of all pairs. `sample` and `scored` bound the pairs with a mask whose pictures are read, and that a detector
    scores. Both are spread evenly over the index. `residuals` replaces `Seen()`.
    """
    masked = [row for row in pairs.rows if row.changed_area > 0]
    looks = {pair.row.key: look_at(*pair.arrays) for pair in pairs.read(spread(masked, sample))}
    chosen = spread(masked, scored)
    seeing = residuals or (Seen() if chosen else None)
    found = {pair.row.key: seeing(pair) for pair in pairs.read(chosen)} if seeing is not None else {}
    groups = sorted({(row.kind, row.method) for row in pairs.rows})
    of_group = [(kind, method, [row for row in pairs.rows if (row.kind, row.method) == (kind, method)]) for kind, method in groups]
    return [_measured(kind, method, rows, looks, found) for kind, method, rows in [*of_group, (ALL, ALL, pairs.rows)]]


def _measured(
    kind: str, method: str, rows: Sequence[PairRow], looks: dict[str, Look], residuals: dict[str, tuple[float, float] | None]
) -> Measured:
    areas = [row.changed_area for row in rows if row.changed_area > 0]
    own = [looks[row.key] for row in rows if row.key in looks]
    contrasts = [look.contrast for look in own if look.contrast is not None]
    scored = [found for row in rows if (found := residuals.get(row.key)) is not None]
    cells = np.bincount([look.cell for look in own], minlength=CELLS**2) / len(own) if own else None
    return Measured(
        kind,
        method,
        len(rows),
        sum(row.held_out for row in rows),
        len(areas),
        _quantiles(areas),
        len(own),
        None if cells is None else tuple(cells.tolist()),
        tuple(np.mean([look.coverage for look in own], axis=0).tolist()) if own else None,
        _quantiles(contrasts),
        len(scored),
        float(np.median([inside for inside, _ in scored])) if scored else None,
        float(np.median([outside for _, outside in scored])) if scored else None,
        float(np.mean([inside > outside for inside, outside in scored])) if scored else None,
    )


def _quantiles(values: Sequence[float]) -> tuple[float, ...] | None:
    return tuple(np.quantile(values, QUANTILES).tolist()) if len(values) else None


def look_at(query: Picture, prompt: Picture, mask: Mask) -> Look:
    """Find the cell of the mask's centre of mass, and the contrast of the query at the change. `mask` (H, W) must not be empty."""
    rows, columns = np.nonzero(mask)
    row, column = (
        min(int((places.mean() + 0.5) / side * CELLS), CELLS - 1) for places, side in zip((rows, columns), mask.shape, strict=True)
    )
    ring = ring_around(mask)
    contrast = None
    if ring.any():
        contrast = float(np.abs(query[mask].mean(axis=0, dtype=np.float64) - query[ring].mean(axis=0, dtype=np.float64)).mean())
    cells = rows * CELLS // mask.shape[0] * CELLS + columns * CELLS // mask.shape[1]
    return Look(row * CELLS + column, np.bincount(cells, minlength=CELLS**2) / len(cells), contrast)


def ring_around(mask: Mask) -> Mask:
    """Return the pixels outside a mask that are within RING of it (Euclidean)."""
    width = max(NARROWEST, round(RING * min(mask.shape)))
    distance = ndimage.distance_transform_edt(~mask)
    return (distance > 0) & (distance <= width)


class Seen:
    """Compares each query with its own prompt by the packaged detector DETECTOR, at the detector's resolution.

    Called with a pair, it returns the mean residual inside and outside the mask, each from 0 to 1; None if the mask covers nothing or all.
    """

    def __init__(self) -> None:
        from changepair.tasks.common.devices import best_device
        from changepair.tasks.prediction.models import named

        model = named(DETECTOR)
        self.device = best_device()
        self.detector = model.detector.to(self.device).eval()
        self.resolution: int = model.looks.resolution

    def __call__(self, pair: StoredPair) -> tuple[float, float] | None:
        import torch
        from PIL import Image

        query, prompt, mask = pair.arrays
        if mask.all() or not mask.any():
            return None
        seen, shown = (self._input(picture) for picture in (query, prompt))
        with torch.inference_mode():
            _score, maps = self.detector.score(seen, shown)
        height, width = mask.shape
        map_: NDArray[Any] = np.asarray(Image.fromarray(maps[0].float().cpu().numpy()).resize((width, height), Image.Resampling.BILINEAR))
        return float(map_[mask].mean(dtype=np.float64)), float(map_[~mask].mean(dtype=np.float64))

    def _input(self, picture: Picture) -> Tensor:
        """Return a picture as input (1, 3, H, W) of the detector."""
        import torch

        from changepair.tasks.common.pictures import squashed

        pixels = torch.from_numpy(np.array(squashed(picture, self.resolution)))
        return pixels.permute(2, 0, 1)[None].to(self.device).float() / 255
