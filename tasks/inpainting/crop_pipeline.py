"""Adds an inpainting pipeline of our own to diffusers: a small model that paints a crop around the hole.

The only module of the work that needs diffusers to be imported: it is one of its classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from torch import Tensor, nn

from changepair.tasks.inpainting.crops import Crop, sized
from changepair.tasks.inpainting.residual import CHANNELS_IN, CHANNELS_OUT, PACKED, Hole, pyramid_fill, unpack

STEPS = 4
TEMPERATURE = 0.4  # of the noise that denoising starts from; 1 paints more grain than there is, 0 none
TRAINED_STEPS = 1000
LONGEST_PERIOD = 10000  # of the sines of time


_Pipeline: Any = DiffusionPipeline  # diffusers tells type checkers nothing of its classes


class CropInpaintPipeline(_Pipeline):
    """Saved and loaded as any pipeline of diffusers: `CropInpaintPipeline.from_pretrained(folder)`."""

    unet: Any  # UNet2DModel
    scheduler: Any  # DDIMScheduler

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def in_double(self) -> CropInpaintPipeline:
        """Computes in double precision from now on, its sines of time too."""
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
        """Paints. image: Bx3xHxW in [0, 1]; mask_image: Bx1xHxW, 1 where to paint; generator: one an image, of the CPU.

        Gives .images, Bx3xHxW in [0, 1]. Outside the mask they are `image` itself.
        """
        size = int(self.unet.config.sample_size) * PACKED
        holes = mask_image > 0.5
        crops = [Crop.around(hole[0], size) for hole in holes]
        pictures = [crop.cut(one, "replicate") for crop, one in zip(crops, image, strict=True)]
        masks = [crop.cut(hole.float(), "constant") for crop, hole in zip(crops, holes, strict=True)]
        # A small pixel that a pixel of the hole fell into shows some of what is to go, so it is part of the hole; the kernels are one.
        small = torch.stack([sized(picture, size, "bilinear") for picture in pictures]) * 2 - 1
        hole = Hole.of(small.to(self.device), torch.stack([(sized(mask, size, "bilinear") > 0).float() for mask in masks]).to(self.device))
        noise = torch.stack([torch.randn((3, size, size), generator=one, dtype=torch.float64) for one in generator]).to(self.device)
        painted = (hole.filled(self.denoised(hole, temperature * noise, num_inference_steps)).cpu() + 1) / 2
        painted_images = image.clone()
        for one, crop, picture, mask, answer in zip(painted_images, crops, pictures, masks, painted, strict=True):
            crop.put_back(one, carried_up(answer, picture, mask))
        return ImagePipelineOutput(images=painted_images)

    def denoised(self, hole: Hole, noise: Tensor, steps: int) -> Tensor:
        """Gives the residual that noise Bx3xSxS becomes (DDIM, Song et al., ICLR 2021, eq. 12 with no noise added)."""
        self.scheduler.set_timesteps(steps)
        residual = noise
        for step in self.scheduler.timesteps:
            predicted = unpack(self.unet(hole.seen(residual), step).sample)
            residual = self.scheduler.step(predicted, step, residual).prev_sample
        return residual


class Times(nn.Module):
    """The sines and cosines of time that diffusers' Timesteps gives, in double precision: in single, kernels differ in the last bit."""

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
    """Brings a small painted picture 3xsxs to the size of its crop 3xSxS, with the hole's rim met; outside the mask 1xSxS the crop itself.

    Made smaller and larger again the rim is not quite what it was. By how much is known all around the hole, and carried into it.
    """
    large = sized(small, picture.shape[-1], "bicubic")
    missed = pyramid_fill((picture - large)[None], mask[None])[0]
    return torch.where(mask > 0.5, (large + missed).clamp(0, 1), picture)


def new_pipeline(resolution: int, channels: Sequence[int]) -> Any:
    """Makes an untrained CropInpaintPipeline for crops of `resolution` pixels; its network says 0, so that it paints the smooth fill."""
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
