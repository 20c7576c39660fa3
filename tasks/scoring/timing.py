"""Time the prediction of one picture: it is read, cut, encoded and compared with encoded prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from changepair.tasks.common.tensors import joined_maps, read_tiles
from changepair.tasks.common.tiles import grid_of
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.pool import encoded
from changepair.tasks.scoring.score import Contender

TIMES = 5
"""Measured runs, after a warm-up run. The median is reported."""
BATCH = 8
"""Tiles that are encoded at once, as in tasks/prediction/predictor.py."""


@torch.inference_mode()
def seconds_a_picture(contender: Contender, episode: Episode, sizes: Mapping[str, tuple[int, int]], device: torch.device) -> float:
    """Time one query of an episode with all its tiles. sizes: height and width of the prompts. The detector is already on the device."""
    detector, prompts = contender.detector, episode.prompts[: max(episode.shots, 1)]
    grid = grid_of(contender.tiles, [sizes[image] for image in prompts])

    def read(images: Sequence[str]) -> tuple[torch.Tensor, tuple[int, int]]:
        tiles, found = read_tiles(images, [grid], contender.resolution, device, contender.resize)
        return tiles[grid], found[0]

    memory = [detector.memorise(tile) for tile in read(prompts)[0]] if prompts else []
    taken = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        tiles, size = read(episode.queries[:1])
        maps = []
        for place, features in enumerate(encoded(detector.encoder, tiles, BATCH)):
            scores, found = detector.conclude(features, detector.relate(features, memory[place]) if memory else [], episode.category)
            scores.cpu()  # a GPU is waited for
            maps.append(found[0].float().cpu().numpy())
        joined_maps(maps, grid, *size)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
