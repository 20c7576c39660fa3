"""Times what a detector takes for one picture in use: the picture is read, cut, encoded and compared with prompts that are remembered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tasks.common.tensors import joined_maps, read_tiles
from tasks.common.tiles import grid_of
from tasks.sampling.episodes import Episode
from tasks.scoring.pool import encoded
from tasks.scoring.score import Contender

TIMES = 5
"""Measured runs, after one that does not count; their median counts."""
BATCH = 8
"""Tiles that go through the encoder at once, as in tasks.prediction.predictor."""


@torch.inference_mode()
def seconds_a_picture(contender: Contender, episode: Episode, sizes: Mapping[str, tuple[int, int]], device: torch.device) -> float:
    """Time one query of an episode, all its tiles. sizes: height and width of the prompts. The detector is on the device already."""
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
