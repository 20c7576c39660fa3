"""Chooses the pictures that stand for most of their category: greedy coverage by the packaged encoder's features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings

RESOLUTION = 128  # pixels a side
ENCODED_AT_ONCE = 32
CANDIDATES = 0.5  # share of the pictures that a seed may choose from: so that seeds differ


def most_central(images: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Chooses `count` pictures, the first covering most: each adds most to the sum, over all pictures, of the cosine with the nearest
    chosen (facility location, which greedy choice solves to 1 − 1/e: Nemhauser et al., Mathematical Programming 1978)."""
    similarity = _similarity(images)
    candidates = sorted(rng.permutation(len(images))[: max(count, int(len(images) * CANDIDATES))].tolist())
    covered = np.full(len(images), -1.0)
    chosen: list[int] = []
    for _ in range(count):
        gains = {place: np.maximum(similarity[place] - covered, 0.0).sum() for place in candidates if place not in chosen}
        chosen.append(max(gains, key=lambda place: (gains[place], -place)))
        covered = np.maximum(covered, similarity[chosen[-1]])
    return [images[place] for place in chosen]


@torch.inference_mode()
def _similarity(images: Sequence[str]) -> NDArray[np.float64]:
    """Gives the cosines of the pictures' mean features, less their common part, NxN."""
    device = best_device()
    encoder = build_encoder(EncoderSettings(), RESOLUTION).to(device)
    parts = []
    for start in range(0, len(images), ENCODED_AT_ONCE):
        features = encoder(read_tensors(images[start : start + ENCODED_AT_ONCE], RESOLUTION, device))
        parts.append(features[-1].mean(dim=(-2, -1)))
    every = torch.cat(parts)
    unit = F.normalize(every - every.mean(dim=0), dim=1).double()
    return (unit @ unit.mT).cpu().numpy()
