"""Cuts the crop around a region that a small model works on, and puts it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

CONTEXT = 1.4  # of a region's longer side, that the side of its crop is


@dataclass(frozen=True)
class Crop:
    """A square of an image: first row, first column and side, in pixels. It may reach over the image's edge."""

    top: int
    left: int
    side: int

    @classmethod
    def around(cls, mask: Tensor, smallest: int) -> Crop:
        """Places the crop around what a HxW mask marks, with context, at least `smallest` pixels a side, and no larger than the image if it
        can be."""
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        if not len(rows):
            return cls(0, 0, smallest)
        longest = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
        side = max(smallest, min(round(CONTEXT * longest), max(mask.shape)))
        top = _placed(int(rows[0]), int(rows[-1]) + 1, side, mask.shape[0])
        left = _placed(int(columns[0]), int(columns[-1]) + 1, side, mask.shape[1])
        return cls(top, left, side)

    def cut(self, image: Tensor, mode: str) -> Tensor:
        """Cuts the square of a CxHxW image; beyond the edge it is padded as `mode` says (of torch.nn.functional.pad)."""
        height, width = image.shape[-2:]
        over = (max(-self.left, 0), max(self.left + self.side - width, 0), max(-self.top, 0), max(self.top + self.side - height, 0))
        padded = F.pad(image[None], over, mode=mode)[0]
        top, left = self.top + over[2], self.left + over[0]
        return padded[:, top : top + self.side, left : left + self.side]

    def put_back(self, image: Tensor, crop: Tensor) -> None:
        """Writes a CxSxS crop where it came from, in place; what lies over the edge is left out."""
        height, width = image.shape[-2:]
        top, left, bottom, right = max(self.top, 0), max(self.left, 0), min(self.top + self.side, height), min(self.left + self.side, width)
        image[:, top:bottom, left:right] = crop[:, top - self.top : bottom - self.top, left - self.left : right - self.left]


def sized(image: Tensor, side: int, mode: str) -> Tensor:
    """Resizes a CxHxW image to `side` pixels a side."""
    if image.shape[-2:] == (side, side):
        return image
    return F.interpolate(image[None], (side, side), mode=mode, antialias=True)[0]


def _placed(first: int, last: int, side: int, length: int) -> int:
    """Finds where a square begins that has first..last in its middle, moved into 0..length as far as it fits."""
    begin = (first + last - side) // 2
    if side >= length:
        return (length - side) // 2
    return min(max(begin, 0), length - side)
