"""Simulate how another camera would show a picture: compressed, out of focus, noisy, darker or brighter.

All functions take pictures Bx3xHxW in [0, 1] and return the same shape and range. They use torch alone, so that a detector that stores such
versions of its prompts can be exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLUR = 1 / 256  # sigma, as a share of the picture's width
NOISE = 15 / 255  # standard deviation
GAINS = (0.8, 1.2)
SHIFT = 4
"""Pixels, half of a JPEG block and of the finest stride. In another picture a part lies elsewhere on both grids."""
BLOCK = 8  # pixels a side of JPEG's blocks
ENLARGED = 5 / 8  # side of a small picture, as a share of the resolution to which it is enlarged, with its blocks and its noise
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of JPEG's luminance at quality 50 (ITU-T T.81, annex K.1)."""
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
"""Quantisation of JPEG's colour at quality 50 (ITU-T T.81, annex K.2)."""
LEVEL_TIE = 1 / 200
"""Added before a level is rounded. Reduced levels are multiples of 1/100, so a rounding error of another runtime must not decide."""
TIE = 1 / 512
"""Added before a coefficient is rounded. Coefficients of grey pictures often lie between two steps; the last bit must not decide."""
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
FROM_YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def versions_of(pictures: Tensor) -> Iterator[Tensor]:
    """Yield 11 appearance versions.

    They are JPEG of quality 50, the same at a smaller size, noise, and noise at a smaller size. Four more are these versions of the shifted
    pictures. The last three are blur, a lower gain and a higher gain.
    """
    for seen in (pictures, shifted(pictures, SHIFT)):
        for change in (compressed, noisy):
            yield change(seen)
            yield _in_small(seen, change)
    yield blurred(pictures, BLUR * pictures.shape[-1])
    for gain in GAINS:
        yield (pictures * gain).clamp(0.0, 1.0)


def _in_small(pictures: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change pictures at a smaller size, and add the enlarged difference to the unreduced pictures, so that they keep their detail."""
    sides = [round(ENLARGED * side) for side in pictures.shape[-2:]]
    small = reduced(pictures, sides)
    difference = F.interpolate(change(small) - small, size=tuple(pictures.shape[-2:]), mode="bicubic", align_corners=False)
    return (pictures + difference).clamp(0.0, 1.0)


def reduced(pictures: Tensor, sides: Sequence[int]) -> Tensor:
    """Resize pictures to `sides` (height, width), bilinear, as F.interpolate does, but with the same bits on any number of threads.

    JPEG rounds. Many reduced values lie exactly between two grey levels, so their last bit decides.
    """
    for axis, side in ((-2, sides[0]), (-1, sides[1])):
        length = pictures.shape[axis]
        places = ((torch.arange(side, dtype=torch.float64) + 0.5) * (length / side) - 0.5).clamp(0, length - 1)
        low = places.long()
        weight = (places - low).view(-1, *(1,) * (-1 - axis)).to(pictures)
        low = low.to(pictures.device)
        lower, upper = (pictures.index_select(axis, place) for place in (low, (low + 1).clamp_max(length - 1)))
        pictures = lower * (1.0 - weight) + upper * weight
    return pictures


def shifted(pictures: Tensor, pixels: int) -> Tensor:
    """Shift pictures down and to the right. Reflect them at the border."""
    height, width = pictures.shape[-2:]
    return F.pad(pictures, (pixels, 0, pixels, 0), mode="reflect")[..., :height, :width]


def noisy(pictures: Tensor) -> Tensor:
    """Add the same normal noise to every picture."""
    return (pictures + NOISE * _noise(pictures.shape[-2], pictures.shape[-1]).to(pictures)).clamp(0.0, 1.0)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, cut off at 3 sigma. Borders repeat the border pixel."""
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.mT, groups=3)


def compressed(pictures: Tensor) -> Tensor:
    """Quantise as JPEG of quality 50 does, with colour at half the resolution (ITU-T T.81, annex A and K)."""
    height, width = pictures.shape[-2:]
    unit = 2 * BLOCK
    padded = F.pad(pictures, (0, -width % unit, 0, -height % unit), mode="replicate")
    planes = torch.einsum("dc,bchw->bdhw", torch.tensor(TO_YCC).to(pictures), (255.0 * padded + (0.5 + LEVEL_TIE)).floor())
    light = _quantised(planes[:, :1] - 128.0, LUMINANCE) + 128.0
    colour = F.interpolate(_quantised(F.avg_pool2d(planes[:, 1:], 2), CHROMINANCE), scale_factor=2.0, mode="nearest")
    rgb = torch.einsum("dc,bchw->bdhw", torch.tensor(FROM_YCC).to(pictures), torch.cat([light, colour], dim=1))
    return (rgb / 255.0).clamp(0.0, 1.0)[..., :height, :width]


def _quantised(planes: Tensor, table: tuple[int, ...]) -> Tensor:
    """Quantise the cosine transform of each block of planes (B, C, H, W)."""
    basis, steps = _cosines().to(planes), torch.tensor(table).view(BLOCK, BLOCK).to(planes)
    blocks = planes.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-3, -2)  # (B, C, H/8, W/8, 8, 8)
    kept = ((basis @ blocks @ basis.mT) / steps + (0.5 + TIE)).floor() * steps
    return (basis.mT @ kept @ basis).transpose(-3, -2).flatten(-4, -3).flatten(-2)


def _cosines() -> Tensor:
    """Return the orthonormal cosine basis, one row a frequency."""
    frequency, place = torch.meshgrid(torch.arange(BLOCK), torch.arange(BLOCK), indexing="ij")
    basis = ((2 * place + 1) * frequency * (math.pi / (2 * BLOCK))).cos() * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis


@cache
def _noise(height: int, width: int) -> Tensor:
    """Return the same normal noise every time, (3, H, W)."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((3, height, width), dtype=np.float32))
