"""Define an inpainting pipeline of diffusers: a small model that paints a crop around the hole. Only this module imports diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from torch import Tensor, nn

from changepair.tasks.inpainting.residual import CHANNELS_IN, CHANNELS_OUT, PACKED, Hole, pyramid_fill, unpack

STEPS = 4
TEMPERATURE = 0.4  # scale of the noise that denoising starts from; 1 paints too much grain, 0 none
TRAINED_STEPS = 1000
LONGEST_PERIOD = 10000  # of the sines of time
CONTEXT = 1.4  # side of the crop around a region, relative to the region's longer side


@dataclass(frozen=True)
class Crop:
    """A square of an image: first row, first column and side in pixels. It may extend beyond the image."""

    top: int
    left: int
    side: int

    @classmethod
    def around(cls, mask: Tensor, smallest: int) -> Crop:
        """Place the crop around the marked pixels of a mask (H, W), with context. It has at least `smallest` pixels a side, else fits the
        image."""
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        if not len(rows):
            return cls(0, 0, smallest)
        longest = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
        side = max(smallest, min(round(CONTEXT * longest), max(mask.shape)))
        top = _placed(int(rows[0]), int(rows[-1]) + 1, side, mask.shape[0])
        left = _placed(int(columns[0]), int(columns[-1]) + 1, side, mask.shape[1])
        return cls(top, left, side)

    def cut(self, image: Tensor, mode: str) -> Tensor:
        """Cut the square out of an image (C, H, W). `mode` sets the padding beyond the edge, as in torch.nn.functional.pad."""
        height, width = image.shape[-2:]
        over = (max(-self.left, 0), max(self.left + self.side - width, 0), max(-self.top, 0), max(self.top + self.side - height, 0))
        padded = F.pad(image[None], over, mode=mode)[0]
        top, left = self.top + over[2], self.left + over[0]
        return padded[:, top : top + self.side, left : left + self.side]

    def put_back(self, image: Tensor, crop: Tensor) -> None:
        """Write a crop (C, S, S) back to its place in an image, without the part beyond the edge."""
        height, width = image.shape[-2:]
        top, left, bottom, right = max(self.top, 0), max(self.left, 0), min(self.top + self.side, height), min(self.left + self.side, width)
        image[:, top:bottom, left:right] = crop[:, top - self.top : bottom - self.top, left - self.left : right - self.left]


def sized(image: Tensor, side: int, mode: str) -> Tensor:
    """Resize an image (C, H, W) to `side` pixels a side."""
    return image if image.shape[-2:] == (side, side) else F.interpolate(image[None], (side, side), mode=mode, antialias=True)[0]


def _placed(first: int, last: int, side: int, length: int) -> int:
    """Return the start of a square that is centred on first..last, and shifted into 0..length if it fits."""
    return (length - side) // 2 if side >= length else min(max((first + last - side) // 2, 0), length - side)


_Pipeline: Any = DiffusionPipeline  # diffusers has no types for its classes


class CropInpaintPipeline(_Pipeline):
    """A pipeline that is saved and loaded like any of diffusers: `CropInpaintPipeline.from_pretrained(folder)`."""

    unet: Any  # UNet2DModel
    scheduler: Any  # DDIMScheduler

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def in_double(self) -> CropInpaintPipeline:
        """Compute in double precision from now on, including the sines of time."""
        self.unet.double()
        self.unet.time_proj = Times(self.unet.time_proj)
        return self

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        mask_image: Tensor,
        *,
        generator: Sequence[torch.Generator],
        num_inference_steps: int = STEPS,
        temperature: float = TEMPERATURE,
    ) -> ImagePipelineOutput:
        """Paint the masked regions. Return `.images`, (B, 3, H, W) in [0, 1], equal to `image` outside the mask.

        `image` is (B, 3, H, W) in [0, 1]. `mask_image` is (B, 1, H, W), 1 where to paint. `generator` holds one generator an image, on the
        CPU.
        """
        size = int(self.unet.config.sample_size) * PACKED
        holes = mask_image > 0.5
        crops = [Crop.around(hole[0], size) for hole in holes]
        pictures = [crop.cut(one, "replicate") for crop, one in zip(crops, image, strict=True)]
        masks = [crop.cut(hole.float(), "constant") for crop, hole in zip(crops, holes, strict=True)]
        # A reduced pixel that overlaps the hole shows part of what must go, so it belongs to the hole. Both are reduced with the same
        # kernel.
        small = torch.stack([sized(picture, size, "bilinear") for picture in pictures]) * 2 - 1
        hole = Hole.of(small.to(self.device), torch.stack([(sized(mask, size, "bilinear") > 0).float() for mask in masks]).to(self.device))
        noise = torch.stack([torch.randn((3, size, size), generator=one, dtype=torch.float64) for one in generator]).to(self.device)
        painted = (hole.filled(self.denoised(hole, temperature * noise, num_inference_steps)).cpu() + 1) / 2
        painted_images = image.clone()
        for one, crop, picture, mask, answer in zip(painted_images, crops, pictures, masks, painted, strict=True):
            crop.put_back(one, carried_up(answer, picture, mask))
        return ImagePipelineOutput(images=painted_images)

    def denoised(self, hole: Hole, noise: Tensor, steps: int) -> Tensor:
        """Denoise (B, 3, S, S) to a residual (DDIM, Song et al., ICLR 2021, eq. 12 without added noise)."""
        self.scheduler.set_timesteps(steps)
        for step in self.scheduler.timesteps:
            noise = self.scheduler.step(unpack(self.unet(hole.seen(noise), step).sample), step, noise).prev_sample
        return noise


class Times(nn.Module):
    """Sines and cosines of time as in diffusers' Timesteps, but in double precision. In single, the kernels differ in the last bit."""

    def __init__(self, single: Any) -> None:
        super().__init__()
        self.sines = int(single.num_channels) // 2
        self.shift, self.scale = float(single.downscale_freq_shift), float(single.scale)
        self.cosine_first = bool(single.flip_sin_to_cos)

    def forward(self, moments: Tensor) -> Tensor:
        places = torch.arange(self.sines, dtype=torch.float64, device=moments.device)
        angles = self.scale * moments[:, None].double() * (-math.log(LONGEST_PERIOD) * places / (self.sines - self.shift)).exp()
        parts = [angles.sin(), angles.cos()]
        return torch.cat(parts[::-1] if self.cosine_first else parts, dim=1)


def carried_up(small: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    """Enlarge a small painted picture (3, s, s) to its crop (3, S, S). Outside the mask (1, S, S), return the crop.

    The error of reducing and enlarging is known around the hole. It is extended into the hole, so that the rim fits.
    """
    large = sized(small, picture.shape[-1], "bicubic")
    missed = pyramid_fill((picture - large)[None], mask[None])[0]
    return torch.where(mask > 0.5, (large + missed).clamp(0, 1), picture)


def new_pipeline(resolution: int, channels: Sequence[int]) -> Any:
    """Create an untrained CropInpaintPipeline for crops of `resolution` pixels. Its network returns 0, so it paints the smooth fill."""
    coarser = len(channels) - 1
    unet: Any = UNet2DModel(
        sample_size=resolution // PACKED,
        in_channels=CHANNELS_IN,
        out_channels=CHANNELS_OUT,
        layers_per_block=1,
        block_out_channels=tuple(channels),
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=("DownBlock2D",) * coarser + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * coarser,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    scheduler = DDIMScheduler(
        num_train_timesteps=TRAINED_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return CropInpaintPipeline(unet, scheduler)
