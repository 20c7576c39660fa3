"""Define the target of the small diffusion model: the difference of the picture to a smooth fill of the hole.

The fill extends the colours of the hole's rim inwards without a seam, so the model only paints structure and grain. The difference is in
units of the surroundings' grain. Next to a clear sky the initial noise of denoising is faint, and so is the result.
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

LEAST_GRAIN = 0.02  # on the range [-1, 1]; a surface with less grain is smooth
UNIT = 3.0  # root mean squares of grain in one unit of the residual, so that its spread is about 1
MOST = 2.7  # units; larger residuals cannot be predicted from the surroundings
SMOOTHINGS = 8  # of the fill, to remove artefacts of its pyramid
SMALLEST, LARGEST = 0.01, 0.5  # smallest and largest hole to train on, as shares of the picture
SECOND = 0.3  # share of the draws with two holes
PACKED = 2  # side in pixels that one position of the network holds: four times faster, without loss


@dataclass(frozen=True)
class Hole:
    """A picture with a hole, and what is computed from its surroundings. The picture is never read inside the hole.

    `picture` and `fill` are (B, 3, H, W) in [-1, 1]. `mask` is (B, 1, H, W), 1 in the hole. `grain` is (B, 1, H, W), above 0.
    """

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
        """Return the network's target (B, 3, H, W), between -MOST and MOST."""
        return ((self.picture - self.fill) / self.unit).clamp(-MOST, MOST)

    def filled(self, residual: Tensor) -> Tensor:
        """Fill the hole from a residual. Return (B, 3, H, W) in [-1, 1]."""
        inside = (self.fill + residual * self.unit).clamp(-1, 1)
        return torch.where(self.mask > 0, inside, self.picture)

    def seen(self, noisy: Tensor) -> Tensor:
        """Return the network's input for a noisy residual, (B, 32, H/2, W/2)."""
        return pack(torch.cat([noisy * self.mask, self.fill, self.mask, self.grain.log()], dim=1))


CHANNELS_IN, CHANNELS_OUT = (3 + 3 + 1 + 1) * PACKED**2, 3 * PACKED**2


def pack(images: Tensor) -> Tensor:
    return F.pixel_unshuffle(images, PACKED)


def unpack(places: Tensor) -> Tensor:
    return F.pixel_shuffle(places, PACKED)


def biharmonic_fill(pictures: Tensor, mask: Tensor) -> Tensor:
    """Fill the hole of (B, 3, H, W) with the surface that bends least, by scikit-image's solution of the biharmonic equation.

    See Damelin and Hoang, "On surface completion and image inpainting by biharmonic functions", 2018. It changed the encoder's features
    less than a pyramid of averages and the fills of Telea and Navier-Stokes.
    """
    filled = []
    for picture, hole in zip(pictures.cpu().permute(0, 2, 3, 1), mask.cpu()[:, 0] > 0, strict=True):
        filled.append(inpaint_biharmonic(picture.numpy(), hole.numpy(), channel_axis=2) if hole.any() else picture.numpy())
    surface = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(pictures)
    return torch.where(mask > 0, surface.clamp(-1, 1), pictures)


def pyramid_fill(images: Tensor, mask: Tensor) -> Tensor:
    """Fill the hole of images (B, C, H, W) from its rim by a pyramid of averages. H and W must be powers of two times an odd number.

    See Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4.
    """
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
    """Measure how far the surroundings differ from their blur, as root mean square over the channels, extended into the hole."""
    known = 1 - mask
    strays = (picture - _blur(picture * known, 5) / _blur(known, 5).clamp(min=1e-3)) * known
    energy = pyramid_fill((strays**2).mean(dim=1, keepdim=True), mask)
    return energy.clamp(min=0).sqrt() + LEAST_GRAIN / 2


def _blur(images: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(F.pad(images, (size // 2,) * 4, mode="replicate"), size, 1)


def hole(size: int, rng: np.random.Generator) -> Mask:
    """Draw a hole (size, size)."""
    while True:
        mask = blob(size, rng)
        if rng.random() < SECOND:
            mask |= blob(size, rng)
        if SMALLEST < mask.mean() < LARGEST:
            return mask


def blob(size: int, rng: np.random.Generator) -> Mask:
    """Draw a roundish region (size, size): an ellipse with a wavy rim."""
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
