"""Times what a detector takes for one picture, as it is used: a picture is read, encoded and held against prompts that are remembered."""

from __future__ import annotations

import time

import numpy as np
import torch

from tasks.common.tensors import read_tensors
from tasks.sampling.episodes import Episode
from tasks.scoring.score import Contender

TIMES = 5
"""So often, after once that is not counted; the median counts."""


@torch.inference_mode()
def seconds_a_picture(contender: Contender, episode: Episode, device: torch.device) -> float:
    """Times a query of an episode, one at a time. The detector is on the device already."""
    detector = contender.detector

    def read(images: tuple[str, ...]) -> torch.Tensor:
        return read_tensors(images, contender.resolution, device, contender.resize)

    prompts = episode.prompts[: max(episode.shots, 1)]
    memory = detector.memorise(read(prompts)) if prompts else []
    taken = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        features = detector.encoder(read(episode.queries[:1]))
        scores, maps = detector.conclude(features, detector.relate(features, memory) if memory else [], episode.category)
        scores.cpu(), maps.cpu()  # a GPU is waited for
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
