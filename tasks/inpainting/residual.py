"""Define what the small diffusion model predicts: the difference of the picture to a smooth fill of the hole.

The fill carries the colours of the hole's rim inwards, so structure and grain are left to paint, without a seam. The difference is in units
of the surroundings' grain: next to a clear sky the noise that denoising starts from is faint, and so is the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from changepair.tasks.common.pictures import Mask

LEAST_GRAIN = 0.02  # of [-1, 1]: below it a surface is even
UNIT = 3.0  # root mean squares of grain that one unit of the residual stands for, so that its spread is about 1
MOST = 2.7  # units: farther departs only what nothing around could foretell
SMOOTHINGS = 8  # of the fill, to take the marks of its pyramid away
SMALLEST, LARGEST = 0.01, 0.5  # of a hole to train on, shares of the picture
SECOND = 0.3  # how often there are two holes
PACKED = 2  # pixels a side that one place of the network holds: four times faster, nothing lost


@dataclass(frozen=True)
class Hole:
    """A picture with a hole, and what follows from its surroundings; in the hole the picture is never read. picture, fill: Bx3xHxW in [-1,
    1]; mask: Bx1xHxW, 1 in the hole; grain: Bx1xHxW > 0."""

    picture: Tensor
    mask: Tensor
    fill: Tensor
    grain: Tensor

    @classmethod
    def of(cls, picture: Tensor, mask: Tensor) -> Hole:
        return cls(picture, mask, biharmonic_fill(picture, mask), _grain(picture, mask))

    @property
    def unit(self) -> Tensor:
        return UNIT * self.grain

    def residual(self) -> Tensor:
        """Return the target of the network, Bx3xHxW, at most MOST away from 0."""
        return ((self.picture - self.fill) / self.unit).clamp(-MOST, MOST)

    def filled(self, residual: Tensor) -> Tensor:
        """Fill the hole by a residual; Bx3xHxW in [-1, 1]."""
        inside = (self.fill + residual * self.unit).clamp(-1, 1)
        return torch.where(self.mask > 0, inside, self.picture)

    def seen(self, noisy: Tensor) -> Tensor:
        """Return the network's input for a noisy residual: Bx32xH/2xW/2."""
        return pack(torch.cat([noisy * self.mask, self.fill, self.mask, self.grain.log()], dim=1))


CHANNELS_IN, CHANNELS_OUT = (3 + 3 + 1 + 1) * PACKED**2, 3 * PACKED**2


def pack(images: Tensor) -> Tensor:
    return F.pixel_unshuffle(images, PACKED)


def unpack(places: Tensor) -> Tensor:
    return F.pixel_shuffle(places, PACKED)


def biharmonic_fill(pictures: Tensor, mask: Tensor) -> Tensor:
    """Fill the hole of Bx3xHxW by the surface that bends least, by scikit-image's solution of the biharmonic equation (Damelin and Hoang,
    "On surface completion and image inpainting by biharmonic functions", 2018). Compared with a pyramid of averages, Telea's and
    Navier-Stokes' fills, it left the encoder's features nearest."""
    filled = []
    for picture, hole in zip(pictures.cpu().permute(0, 2, 3, 1), mask.cpu()[:, 0] > 0, strict=True):
        filled.append(inpaint_biharmonic(picture.numpy(), hole.numpy(), channel_axis=2) if hole.any() else picture.numpy())
    surface = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(pictures)
    return torch.where(mask > 0, surface.clamp(-1, 1), pictures)


def pyramid_fill(images: Tensor, mask: Tensor) -> Tensor:
    """Fill the hole of Bx?xHxW from its rim by a pyramid of averages (Gortler et al., "The Lumigraph", SIGGRAPH 1996, 3.4). H and W must be
    powers of two times an odd number."""
    known = 1 - mask
    levels = []
    values, weights = images * known, known
    while min(values.shape[-2:]) > 1:
        levels.append((values, weights))
        share = F.avg_pool2d(weights, 2)
        values = F.avg_pool2d(values, 2) / share.clamp(min=1e-6)
        weights = (share > 0).to(values.dtype)
        values = values * weights
    surface = values
    for values, weights in reversed(levels):
        surface = values * weights + F.interpolate(surface, values.shape[-2:], mode="bilinear") * (1 - weights)
    for _ in range(SMOOTHINGS):
        surface = images * known + _blur(surface, 3) * mask
    return surface


def _grain(picture: Tensor, mask: Tensor) -> Tensor:
    """Measure how far the surroundings differ from their blur: root mean square over the channels, carried into the hole."""
    known = 1 - mask
    strays = (picture - _blur(picture * known, 5) / _blur(known, 5).clamp(min=1e-3)) * known
    energy = pyramid_fill((strays**2).mean(dim=1, keepdim=True), mask)
    return energy.clamp(min=0).sqrt() + LEAST_GRAIN / 2


def _blur(images: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(F.pad(images, (size // 2,) * 4, mode="replicate"), size, 1)


def hole(size: int, rng: np.random.Generator) -> Mask:
    """Draw a hole, size x size."""
    while True:
        mask = blob(size, rng)
        if rng.random() < SECOND:
            mask |= blob(size, rng)
        if SMALLEST < mask.mean() < LARGEST:
            return mask


def blob(size: int, rng: np.random.Generator) -> Mask:
    """Draw a roundish region, size x size: an ellipse with a wavy rim."""
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    radius = 1.0 + sum(rng.uniform(0, 0.35) / order * np.cos(order * angles + rng.uniform(0, 2 * np.pi)) for order in range(2, 7))
    axes = size * np.exp(rng.uniform(np.log(0.04), np.log(0.28), size=2))
    turn = rng.uniform(0, np.pi)
    centre = rng.uniform(0.1, 0.9, size=2) * size
    along, across = radius * np.cos(angles) * axes[0], radius * np.sin(angles) * axes[1]
    x = centre[0] + along * np.cos(turn) - across * np.sin(turn)
    y = centre[1] + along * np.sin(turn) + across * np.cos(turn)
    region = Image.new("L", (size, size))
    ImageDraw.Draw(region).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return np.asarray(region) > 0
