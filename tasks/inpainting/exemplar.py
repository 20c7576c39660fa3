"""Fill holes with patches of the same picture. This needs no weights.

A fill starts at a coarse level and alternates two steps (Wexler et al., "Space-time completion of video", PAMI 2007). It finds the most
similar patch outside of the hole for each patch that overlaps it. Then the patches vote on the pixels. Small levels are searched
completely, larger ones by PatchMatch (Barnes et al., SIGGRAPH 2009). After each vote, the colours are adapted to the rim of the hole
(Perez et al., "Poisson image editing", SIGGRAPH 2003).

Every sum is one of integers that its type holds exactly, so all machines give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.common.randomness import generator

PATCH = 7  # side in pixels. A squared distance of 3 * 7 * 7 levels is below 2 ** 24, so float32 holds it exactly
COARSEST = 16  # pixels, shortest side of the coarsest level
PAIRS = 2_000_000  # pairs of patches up to which a level is searched completely
ROUNDS_COARSEST, ROUNDS, ROUNDS_FINEST = 6, 3, 2  # searches and votes in a level
STEPS = (4, 2, 1)  # pixels, between patches that propagate their matches
NEAR = 8  # pixels, radius of the random search after the first round of a level
CERTAIN, FADES = 1024, (10, 13)  # weight of a patch at the rim, and its ratio from one pixel to the next inwards (Wexler: 1.3 ** -distance)
ALIKE, UNLIKE = 2**20, 16  # a patch has the weight ALIKE / (distance + UNLIKE), where the distance is that of a mean pixel
FINE = 256  # steps of a level, in which the adaptation to the rim is computed
RELAXATIONS = 25  # of the adaptation
CROSS, SQUARE = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), dtype=bool)

Numbers = NDArray[Any]


class Exemplar:
    """Paint with patches from outside of each mask, independently of the batch. It ignores texts, so it only removes objects.

    A picture that its mask covers completely has no patch to copy. It is returned unchanged, so that synthesis drops and counts the draw.
    """

    def __call__(self, images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        pictures = (images.cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        holes = masks.cpu()[:, 0].numpy() > 0
        filled = [filled_hole(picture, hole, seed) for picture, hole, seed in zip(pictures, holes, seeds, strict=True)]
        painted = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float() / 255
        return torch.where(masks.cpu() > 0, painted, images.cpu())


def filled_hole(picture: Picture, hole: Mask, seed: int = 0) -> Picture:
    """Fill the hole (H, W) of a picture (H, W, 3) with patches from outside of it. Return the picture; outside of the hole it is unchanged.

    It never reads pixels in the hole. A picture without a hole or without surroundings is returned unchanged.
    """
    if not hole.any() or hole.all():
        return picture.copy()
    rng = generator(seed, "exemplar")
    levels = _pyramid(picture, hole)
    _peeled(levels[-1])
    coarser: _Patches | None = None
    for depth, level in reversed(list(enumerate(levels))):
        if coarser is not None:
            level.picture[level.hole] = _doubled(coarser.level.picture, level.hole.shape)[level.hole]
        patches = _Patches(level, rng)
        if coarser is not None:
            patches.start_from(coarser)
            patches.vote()
        rounds = ROUNDS_COARSEST if coarser is None else ROUNDS if depth else ROUNDS_FINEST
        for turn in range(rounds):
            patches.search(max(level.hole.shape) // 2 if turn == 0 else NEAR)
            patches.vote(one_each=depth == 0 and turn == rounds - 1)
        coarser = patches
    return levels[0].picture


@dataclass(frozen=True)
class _Level:
    picture: Picture  # (H, W, 3), filled in place
    hole: Mask  # (H, W)


def _pyramid(picture: Picture, hole: Mask) -> list[_Level]:
    """Halve the picture while its hole remains, and whole patches around it. The finest level is first."""
    levels = [_Level(picture.copy(), hole)]
    while min(levels[-1].hole.shape) >= 2 * COARSEST:
        level = _halved(levels[-1])
        if not level.hole.any() or not _whole(level.hole, PATCH).any():
            break
        levels.append(level)
    return levels


def _halved(level: _Level) -> _Level:
    """Average the known pixels of each square of 2x2. Squares of which less than a half is known are in the hole."""
    room = [(0, length % 2) for length in level.hole.shape]

    def summed(values: Numbers) -> Numbers:
        values = np.pad(values, room + [(0, 0)] * (values.ndim - 2))
        return values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]

    known = (~level.hole).astype(np.int32)
    count, real = summed(known), summed(np.ones_like(known))
    values = _ratio(summed(level.picture * known[..., None]), count[..., None])
    return _Level(values.astype(np.uint8), 2 * count < real)


def _doubled(values: Numbers, shape: tuple[int, ...]) -> Numbers:
    return values.repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]]


def _ratio(total: Numbers, count: Numbers) -> Numbers:
    """Divide integers and round to the nearest one; 0 where the count is 0."""
    count = np.maximum(count, 1)
    return (2 * total + count) // (2 * count)


def _whole(hole: Mask, size: int) -> Mask:
    """Return which patches, by their first pixel, lie outside of the hole: (H - size + 1, W - size + 1)."""
    sums = np.pad(hole.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) == 0


def _peeled(level: _Level) -> None:
    """Fill the hole from its rim inwards, with means of neighbours."""
    pixels = level.picture.reshape(-1, 3)
    pixels[:] = _inwards(pixels.astype(np.int32), _Inside(level.hole))


class _Inside:
    """The pixels of a hole (H, W) by their numbers, each with its four neighbours. At the border, a pixel is its own neighbour."""

    def __init__(self, hole: Mask) -> None:
        height, width = hole.shape
        self.known = ~hole.ravel()
        self.pixels = np.flatnonzero(hole)
        y, x = np.divmod(self.pixels, width)
        around = [
            (y, np.maximum(x - 1, 0)),
            (y, np.minimum(x + 1, width - 1)),
            (np.maximum(y - 1, 0), x),
            (np.minimum(y + 1, height - 1), x),
        ]
        self.neighbours = np.stack([row * width + column for row, column in around])


def _inwards(values: Numbers, inside: _Inside) -> Numbers:
    """Continue integers (pixels, channels) into a hole, layer by layer: each pixel is the mean of its known neighbours."""
    values, known = values.copy(), inside.known.copy()
    pixels, neighbours = inside.pixels, inside.neighbours
    while len(pixels):
        near = known[neighbours]
        count = near.sum(0)
        layer = count > 0
        if not layer.any():
            break
        totals = (values[neighbours[:, layer]] * near[:, layer, None]).sum(0)
        values[pixels[layer]] = _ratio(totals, count[layer, None])
        known[pixels[layer]] = True
        pixels, neighbours = pixels[~layer], neighbours[:, ~layer]
    return values


class _Patches:
    """The patches of a level that overlap its hole, and for each the number of its match outside of the hole.

    Patches are numbered by their first pixel, row by row. `matches` has one number for each of `overlapping`.
    """

    def __init__(self, level: _Level, rng: np.random.Generator) -> None:
        self.level, self.rng, self.inside = level, rng, _Inside(level.hole)
        self.size = next(size for size in range(PATCH, 0, -2) if min(level.hole.shape) >= size and _whole(level.hole, size).any())
        usable = _whole(level.hole, self.size)
        self.shape, self.usable = usable.shape, usable.ravel()
        self.overlapping, self.sources = np.flatnonzero(~self.usable), np.flatnonzero(self.usable)
        self.y, self.x = np.divmod(self.overlapping, self.shape[1])
        self.place = np.full(usable.size, -1)
        self.place[self.overlapping] = np.arange(len(self.overlapping))
        self.within = (np.arange(self.size)[:, None] * level.hole.shape[1] + np.arange(self.size)).ravel()
        self.pixels = (self.y * level.hole.shape[1] + self.x)[:, None] + self.within
        windows = np.lib.stride_tricks.sliding_window_view(level.picture, (self.size, self.size), (0, 1))
        self.bank = np.ascontiguousarray(windows.transpose(0, 1, 3, 4, 2)).reshape(usable.size, -1)
        self.matches = self.sources[rng.integers(len(self.sources), size=len(self.overlapping))]
        self.rim = ndimage.binary_dilation(level.hole, SQUARE).ravel()[self.pixels]  # what the patches vote on
        self.voted = np.bincount(self.pixels[self.rim], minlength=level.hole.size) > 0  # all of it, unless a patch is a pixel
        self.certainty = self._certainty()

    def _certainty(self) -> Numbers:
        """Weigh each patch by the distance of its middle from what is known."""
        depth = ndimage.distance_transform_cdt(self.level.hole, "chessboard").ravel()[self.pixels[:, self.size**2 // 2]]
        weights = [CERTAIN]
        for _pixel in range(int(depth.max())):
            weights.append(max(weights[-1] * FADES[0] // FADES[1], 1))
        return np.array(weights)[depth]

    def start_from(self, coarser: _Patches) -> None:
        """Take over the matches of the coarser level, where they lead to usable patches."""
        shift, before, width = self.size // 2, coarser.size // 2, coarser.shape[1]
        y = np.clip((self.y + shift) // 2 - before, 0, coarser.shape[0] - 1)
        x = np.clip((self.x + shift) // 2 - before, 0, width - 1)
        place = coarser.place[y * width + x]
        row, column = np.divmod(coarser.matches[place], width)
        row, column = self.y + 2 * (row - y), self.x + 2 * (column - x)
        found = (place >= 0) & (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        number = np.where(found, row * self.shape[1] + column, 0)
        found &= self.usable[number]
        self.matches[found] = number[found]

    def search(self, radius: int) -> None:
        """Find better matches for the present fill: all of a small level, otherwise PatchMatch with a random search of `radius` pixels."""
        wanted = self._wanted()
        if len(self.overlapping) * len(self.sources) <= PAIRS:
            bank = self.bank[self.sources].astype(np.float32) - 128  # partial sums are smaller around 0
            lengths = np.einsum("ij,ij->i", bank, bank)
            self.matches = self.sources[(lengths - 2 * ((wanted - 128) @ bank.T)).argmin(1)]
            return
        distances = self._distances(wanted, self.matches)
        for step in STEPS:
            for down, right in ((0, step), (0, -step), (step, 0), (-step, 0)):
                y, x = self.y + down, self.x + right
                inside = (y >= 0) & (y < self.shape[0]) & (x >= 0) & (x < self.shape[1])
                place = np.where(inside, self.place[np.where(inside, y * self.shape[1] + x, 0)], -1)
                row, column = np.divmod(self.matches[place], self.shape[1])
                self._try(wanted, distances, row - down, column - right, place >= 0)
        while radius >= 1:
            down, right = self.rng.integers(-radius, radius + 1, (2, len(self.overlapping)))
            row, column = np.divmod(self.matches, self.shape[1])
            self._try(wanted, distances, row + down, column + right, np.ones(len(row), dtype=bool))
            radius //= 2

    def _wanted(self) -> Numbers:
        return self.level.picture.reshape(-1, 3)[self.pixels].reshape(len(self.overlapping), -1).astype(np.float32)

    def _distances(self, wanted: Numbers, numbers: Numbers) -> Numbers:
        """Return the sum of squared differences between the patches `wanted` and those with these numbers."""
        difference = self.bank[numbers].astype(np.float32)
        difference -= wanted
        return np.einsum("ij,ij->i", difference, difference)

    def _try(self, wanted: Numbers, distances: Numbers, row: Numbers, column: Numbers, allowed: Mask) -> None:
        """Match the patches with others, where these are more similar."""
        allowed = allowed & (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        numbers = np.where(allowed, row * self.shape[1] + column, 0)
        tried = np.flatnonzero(allowed & self.usable[numbers] & (numbers != self.matches))
        found = self._distances(wanted[tried], numbers[tried])
        better = found < distances[tried]
        tried = tried[better]
        distances[tried], self.matches[tried] = found[better], numbers[tried]

    def vote(self, *, one_each: bool = False) -> None:
        """Fill the hole with weighted means of the matches. With `one_each`, each pixel takes the one of most weight, which is sharper."""
        distances = self._distances(self._wanted(), self.matches).astype(np.int64) // self.size**2
        weights = ALIKE // (distances + UNLIKE) * self.certainty
        colours = self.bank[self.matches].reshape(len(weights), -1, 3)[self.rim]
        pixels, count = self.pixels[self.rim], self.level.hole.size
        spread = np.broadcast_to(weights[:, None], self.rim.shape)[self.rim]
        if one_each:
            order = np.argsort(spread, kind="stable")  # the last one that is assigned remains
            votes = np.zeros((count, 3), dtype=np.int64)
            votes[pixels[order]] = colours[order]
        else:
            total = np.bincount(pixels, spread, count).astype(np.int64)
            sums = [np.bincount(pixels, spread * colours[:, channel], count).astype(np.int64) for channel in range(3)]
            votes = _ratio(np.stack(sums, 1), total[:, None])
        self._adapt(np.where(self.voted[:, None], votes, self.level.picture.reshape(-1, 3)))

    def _adapt(self, votes: Numbers) -> None:
        """Fill the hole with the votes (pixels, 3), shifted by a membrane that equals their error at the rim."""
        pixels = self.level.picture.reshape(-1, 3)
        error = (pixels.astype(np.int32) - votes.astype(np.int32)) * FINE
        shift = _inwards(error, self.inside)
        for _step in range(RELAXATIONS):
            shift[self.inside.pixels] = (shift[self.inside.neighbours].sum(0) + 2) // 4
        hole = self.inside.pixels
        pixels[hole] = np.clip(votes[hole] + (shift[hole] + FINE // 2) // FINE, 0, 255)
