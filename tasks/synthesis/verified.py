"""Keep only the part of a generated change that an encoder sees.

M = region · 1[1 − cos(φ(x), φ(x̃)) > τ], as in AnomalyVFM (CVPR 2026). An inpainting model may return what was there, in other grain.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.inpainting.inpainter import one_thread
from changepair.tasks.synthesis.objects import Dropped

STAGE, STRIDE = 3, 16  # of the packaged encoder's maps, counted from 0; and its stride in pixels
NOISE = 0.1
"""Least τ. Sensor noise with a standard deviation of 2 of 255 levels moves 99 % of patches by at most 0.08 to 0.13 on most photographs."""
QUANTILE = 0.99  # of the distances outside of the region


def verified(before: Picture, answer: Picture, region: Mask, mask: Mask) -> Mask:
    """Return the part of `mask` (H, W) whose features differ. `answer` is the model's picture, with its pixels outside of the region.

    τ is the quantile of the distances outside of the region, where nothing was asked to change, and at least NOISE. Raises Dropped if
    nothing is left.
    """
    distance = feature_distance(before, answer)
    near = cv2.dilate(region.astype(np.uint8), np.ones((2 * STRIDE + 1,) * 2, np.uint8)) > 0
    limit = max(NOISE, float(np.quantile(distance[~near], QUANTILE)) if not near.all() else 0.0)
    kept: Mask = mask & (distance > limit)
    if not kept.any():
        raise Dropped("features unchanged")
    return kept


def feature_distance(one: Picture, other: Picture) -> NDArray[np.float64]:
    """Return 1 − cosine of the features of two pictures (H, W, 3) at each pixel, (H, W), interpolated bilinearly.

    It is computed in double precision and on one thread, so that masks have the same bytes on every machine.
    """
    pictures = torch.from_numpy(np.stack([one, other])).permute(0, 3, 1, 2).double() / 255
    with one_thread(), torch.no_grad():
        maps = _network()(2.0 * pictures - 1.0)[STAGE]  # the packaged encoder's mean and deviation are ½
        distance = 1.0 - F.cosine_similarity(maps[:1], maps[1:], dim=1)[None]
        found: NDArray[np.float64] = F.interpolate(distance, size=one.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
    return found


@lru_cache(maxsize=1)
def _network() -> nn.Module:
    network = build_encoder(EncoderSettings(), 64).network
    assert isinstance(network, nn.Module)
    return network.double()
