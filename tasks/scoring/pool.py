"""Encode the prompts of episodes once, for every tile of a grid and all detectors that share an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from changepair.tasks.common.pictures import Resize
from changepair.tasks.common.tensors import read_tiles
from changepair.tasks.common.tiles import Grid
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.encoders.encoder import Encoder, Features
from changepair.tasks.sampling.episodes import Episode


@dataclass(frozen=True)
class Pool:
    """One tile of every prompt of some episodes: index by path, features of the last stage, and the memory of each detector."""

    place: dict[str, int]
    last_stage: Tensor | None  # None if there are no prompts
    memory: dict[str, Features]

    def places(self, episode: Episode) -> list[int]:
        return [self.place[image] for image in episode.prompts]


def pools_of(
    detectors: Mapping[str, Detector],
    episodes: Sequence[Episode],
    grid: Grid,
    *,
    resolution: int,
    resize: Resize,
    batch_size: int,
    device: torch.device,
) -> list[Pool]:
    """Encode the prompts of episodes. Return a pool for each tile of the grid. detectors: by name, with the same encoder."""
    images = list(dict.fromkeys(image for episode in episodes for image in episode.prompts))
    encoder = next(iter(detectors.values())).encoder
    last: list[list[Tensor]] = [[] for _ in range(grid.tiles)]
    memory: list[dict[str, list[Features]]] = [{name: [] for name in detectors} for _ in range(grid.tiles)]
    step = pictures_at_once(grid, batch_size)
    for start in range(0, len(images), step):
        tiles = read_tiles(images[start : start + step], [grid], resolution, device, resize)[0][grid]
        for place, features in enumerate(encoded(encoder, tiles, batch_size)):
            last[place].append(features[-1])
            for name, detector in detectors.items():
                memory[place][name].append(detector.memorise(tiles[place], features))
    index = {image: number for number, image in enumerate(images)}
    return [
        Pool(
            index,
            torch.cat(stages) if stages else None,
            {name: [torch.cat(parts) for parts in zip(*batches, strict=True)] for name, batches in remembered.items()},
        )
        for stages, remembered in zip(last, memory, strict=True)
    ]


def pictures_at_once(grid: Grid, batch_size: int) -> int:
    """Return how many pictures have at most `batch_size` tiles; at least 1."""
    return max(1, batch_size // grid.tiles)


def encoded(encoder: Encoder, tiles: Tensor, batch_size: int) -> Iterator[Features]:
    """Encode tiles TxBx3xHxW, as many of the T at once as fit into a batch. Yield the features of the B pictures for each tile."""
    count = tiles.shape[1]
    for part in tiles.split(max(1, batch_size // count)):
        features = encoder(part.flatten(0, 1))
        for place in range(len(part)):
            yield [stage[place * count : (place + 1) * count] for stage in features]
