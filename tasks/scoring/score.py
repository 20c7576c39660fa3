"""Score the queries of a pipeline with its detectors.

Pictures are cut into tiles as in `Predictor`. The detector's setting and the episode's prompts determine the grid. Each tile is compared
with the same tile of the prompts. The image score is the highest score of the tiles. A query is encoded once for all seeds and shots with
the same grid. Detectors that are scored together have the same encoder network, and share this work, also at different scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Resize
from changepair.tasks.common.tensors import joined_maps, read_tiles, resized_maps, uncropped
from changepair.tasks.common.tiles import AUTO, OVERLAP, WHOLE, Grid, Tiles, boxes, grid_of
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.sampling.episodes import Episode, TargetFiles, read_episodes, read_pictures, shown_episodes
from changepair.tasks.sampling.settings import BY_PIXEL
from changepair.tasks.scoring.compare import Cut, Relations, compare, encoded, pictures_at_once, pools_of
from changepair.tasks.scoring.perturbations import perturbed
from changepair.tasks.scoring.perturbed import with_perturbed
from changepair.tasks.scoring.scores import Group, Maps, ScoresFolder, same_queries
from changepair.tasks.scoring.sharing import Shared, share

CELLS = 64  # cells a side of a tile on a stored map; more if the whole map would otherwise be coarser than a single tile's map
MOST_CELLS = 1024  # largest number of cells a side of a stored map
MOST_NAMES = 4  # detectors that a progress bar names
STEP = round(1 / OVERLAP)
"""Divisor of the cells a side of a tile, so that the tiles of a stored map overlap by whole cells."""


@dataclass(frozen=True)
class Contender:
    """A detector to score."""

    name: str
    detector: Detector
    resolution: int
    """Pixels a side that the detector sees."""
    queries: int | None
    """Number of queries of each category that it scores, the first ones; None for all."""
    work: ScoresFolder
    """Scores in progress."""
    resize: Resize = "squash"
    tiles: Tiles = AUTO
    """How pictures are cut. Together with the sizes of an episode's prompts, it determines the grid."""


def score(
    contenders: Sequence[Contender],
    files: TargetFiles,
    folders: Mapping[str, Path],
    *,
    batch_size: int,
    device: torch.device,
    only: int | None = None,
    report: Callable[[float], None] = lambda share: None,
    perturbations: Sequence[str] = (),
    most_perturbed: int = 0,
) -> dict[str, int]:
    """Score detectors with one encoder network and one resolution on every episode. Return the number of scores of each that has a folder.

    `folders` says where to write scores, by detector. Other detectors keep their work for a later call. `only` is the number of the part
    to score (`count_parts`), or None for all parts. `report` receives the share of the work that is done. With `perturbations`,
    `most_perturbed` normal queries of each category are also scored under each of them. Raises BadInput if a score is not a number, and
    Stopped after SIGTERM.
    """
    episodes = dict(enumerate(read_episodes(files.episodes)))
    pictures = {row.image: row for row in read_pictures(files.targets)}
    masked = {image for image, row in pictures.items() if row.mask is not None}
    groups = {one.name: with_perturbed(groups_of(one, episodes, masked), perturbations, most_perturbed) for one in contenders}
    parts = list(zip(*groups.values(), strict=True))
    shared = share({one.name: one.detector for one in contenders})
    for number, part in enumerate(parts):
        if only not in (None, number):
            continue
        _score_part(
            [(one, group) for one, own in zip(contenders, part, strict=True) for group in own if group.episodes],
            shared,
            pictures,
            batch_size,
            device,
            lambda share, before=number: report((before + share) / len(parts)),  # type: ignore[misc]
        )
    report(1.0)
    scored = {name: [group for part in own for group in part if group.episodes] for name, own in groups.items()}
    return {one.name: one.work.finish(scored[one.name], one.name, folders[one.name]) for one in contenders if one.name in folders}


def groups_of(contender: Contender, episodes: Mapping[int, Episode], masked: set[str]) -> list[Group]:
    """Group the episodes that a detector can score; some detectors need prompts. All detectors have the same groups, some empty."""
    able = {number for number, episode in episodes.items() if episode.prompts or not contender.detector.needs_prompts}
    shown = shown_episodes({number: episode for number, episode in episodes.items() if number in able})
    groups = []
    for place, alike in enumerate(same_queries(episodes)):
        chosen = {number: episode for number, episode in alike.items() if number in able}
        queries = next(iter(alike.values())).queries
        by_pixel = not masked.isdisjoint(queries)
        kept = [number for number, episode in chosen.items() if number in shown or (by_pixel and episode.protocol in BY_PIXEL)]
        groups.append(Group(place, chosen, min(contender.queries or len(queries), len(queries)), tuple(kept)))
    return groups


def count_parts(files: TargetFiles) -> int:
    """Return the number of parts of the work. All episodes of a category, with the same queries, are one part."""
    return len(same_queries(dict(enumerate(read_episodes(files.episodes)))))


@torch.inference_mode()
def _score_part(
    contenders: Sequence[tuple[Contender, Group]],
    shared: Shared,
    pictures: Mapping[str, PictureRow],
    batch_size: int,
    device: torch.device,
    report: Callable[[float], None],
) -> None:
    """Score the remaining queries of one category: the unchanged ones, then the perturbed ones. Their prompts are encoded once.

    pictures: rows of the manifests, by picture.
    """
    waiting = [(contender, group) for contender, group in contenders if contender.work.done(group) < group.queries]
    if not waiting:
        return
    sizes = {image: (row.height, row.width) for image, row in pictures.items()}
    cuts = _cuts(contenders, shared, {contender.name for contender, _group in waiting}, sizes, batch_size, device)
    kinds = list(dict.fromkeys(group.perturbations for _contender, group in waiting))
    for number, perturbations in enumerate(kinds):
        _score_queries(
            [(contender, group) for contender, group in waiting if group.perturbations == perturbations],
            shared,
            cuts,
            pictures,
            batch_size,
            device,
            lambda share, before=number: report((before + share) / len(kinds)),  # type: ignore[misc]
        )


def _score_queries(
    waiting: Sequence[tuple[Contender, Group]],
    shared: Shared,
    cuts: Sequence[Cut],
    pictures: Mapping[str, PictureRow],
    batch_size: int,
    device: torch.device,
    report: Callable[[float], None],
) -> None:
    """Score the remaining queries of groups batch by batch. Each query is read once, and cut by the grid of each episode."""
    resolution, resize = waiting[0][0].resolution, waiting[0][0].resize
    some, names = next(iter(waiting[0][1].episodes.values())), waiting[0][1].perturbations
    first = min(contender.work.done(group) for contender, group in waiting)
    last = max(group.queries for _contender, group in waiting)
    step = min(pictures_at_once(cut.grid, batch_size) for cut in cuts)
    where = f"score {some.target}/{some.category}{', perturbed' if names else ''}"
    who = [contender.name for contender, _group in waiting]
    title = f"{where} {'+'.join(who) if len(who) <= MOST_NAMES else f'{len(who)} detectors'}"
    for start in tqdm(range(first, last, step), desc=title, unit="batch", mininterval=5):
        stop = min(start + step, last)
        # A detector may have fewer queries. A killed run with another batch size may have scored a part of the batch.
        todo = [(one, group) for one, group in waiting if one.work.done(group) < min(stop, group.queries)]
        needed = [cut for cut in cuts if any(cut.episodes(contender.name, group) for contender, group in todo)]
        images = some.queries[start:stop]
        changes = (
            [partial(perturbed, name=names[query % len(names)], key=pictures[image].sha256) for query, image in enumerate(images, start)]
            if names
            else None
        )
        tiles, seen = read_tiles(images, [cut.grid for cut in needed], resolution, device, resize, changes)
        _score_batch(todo, shared, needed, start, images, tiles, seen, batch_size)
        report(stop / last)
        stopping.check(f"{where}, {stop} of {last} queries scored")


def _cuts(
    contenders: Sequence[tuple[Contender, Group]],
    shared: Shared,
    waiting: set[str],
    sizes: Mapping[str, tuple[int, int]],
    batch_size: int,
    device: torch.device,
) -> list[Cut]:
    """Encode the prompts of all groups, grid by grid. waiting: detectors that need them. sizes: height and width of the prompts in pixels.

    The prompts are those of all groups even if some are scored already, so that a resumed run encodes the same batches.
    """
    grids: dict[Grid, dict[str, dict[int, Episode]]] = {}
    for contender, group in contenders:
        for number, episode in group.episodes.items():
            grid = grid_of(contender.tiles, [sizes[image] for image in episode.prompts])
            grids.setdefault(grid, {}).setdefault(contender.name, {}).setdefault(number, episode)
    resolution, resize = contenders[0][0].resolution, contenders[0][0].resize
    cuts = []
    for grid, by_name in grids.items():
        names = [name for name in by_name if name in waiting]
        if names:
            prompted = {number: episode for episodes in by_name.values() for number, episode in episodes.items()}
            pools = pools_of(shared, names, list(prompted.values()), grid, resolution, resize, batch_size, device)
            cuts.append(Cut(grid, {name: set(episodes) for name, episodes in by_name.items()}, pools))
    return cuts


def _score_batch(
    waiting: Sequence[tuple[Contender, Group]],
    shared: Shared,
    cuts: Sequence[Cut],
    start: int,
    images: Sequence[str],
    tiles: Mapping[Grid, Tensor],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
) -> None:
    """Score a batch of B queries from `start`, tile by tile. Add the results to each detector's work.

    tiles: TxBx3xHxW in [0, 1], by grid. sizes: height and width of each picture, in pixels.
    """
    todo = []
    for contender, group in waiting:
        part = slice(contender.work.done(group) - start, min(len(images), group.queries - start))
        todo.append((contender, group, part, TileResults()))
    for cut in cuts:
        for place, features in enumerate(encoded(shared.encoder, tiles[cut.grid], batch_size)):
            relations = Relations(shared, features)
            for contender, group, part, results in todo:
                name, episodes = contender.name, cut.episodes(contender.name, group)
                if not episodes:
                    continue
                pool, own = cut.pools[place][name], [stage[part] for stage in shared.features(name, features)]
                related = relations.of(name, part, pool.memory)
                for number, scores, maps in compare(contender.detector, related, own, episodes, pool, start + part.start):
                    _refuse_nan(contender.name, images[part], scores, maps)
                    if contender.resize == "crop" and number in group.kept:
                        maps = uncropped(maps, [boxes(size, cut.grid)[place].size for size in sizes[part]])
                    results.add(number, cut.grid, scores, maps if number in group.kept else None)
    for contender, group, part, results in todo:
        contender.work.add(group, start + part.start, results.scores, results.maps())


def _refuse_nan(name: str, images: Sequence[str], scores: Tensor, maps: Tensor) -> None:
    wrong = torch.nonzero(~torch.isfinite(scores + maps.sum((1, 2)))).flatten().tolist()
    if wrong:
        raise BadInput(
            f"{name}: the score of {images[wrong[0]]} is not a number; retrain {name}, with a lower learning_rate if its loss rose"
        )


class TileResults:
    """Collect the scores and maps of a batch of pictures, tile by tile, for each episode."""

    def __init__(self) -> None:
        self.scores: dict[int, NDArray[np.float32]] = {}  # highest score of the tiles so far, B, by episode
        self._tiles: dict[int, tuple[Grid, list[Maps]]] = {}

    def add(self, number: int, grid: Grid, scores: Tensor, maps: Tensor | None) -> None:
        """Add an episode's next tile: scores B, and maps Bxhxw if they are kept."""
        found = scores.float().cpu().numpy()
        self.scores[number] = np.maximum(self.scores[number], found) if number in self.scores else found
        if maps is not None:
            self._tiles.setdefault(number, (grid, []))[1].append(maps.float().cpu().numpy())

    def maps(self) -> dict[int, Maps]:
        """Return the joined maps BxHxW by episode. All have the same size."""
        whole = {number: stored_map(tiles, grid) for number, (grid, tiles) in self._tiles.items()}
        size = [max((maps.shape[axis] for maps in whole.values()), default=0) for axis in (1, 2)]
        return {number: resized_maps(maps, size) for number, maps in whole.items()}


def stored_map(tiles: Sequence[Maps], grid: Grid) -> Maps:
    """Join the maps Bxhxw of a grid's tiles to maps BxHxW. The map of a whole picture stays unchanged."""
    if grid == WHOLE:
        return tiles[0]
    sides = []
    for side, count in zip(tiles[0].shape[1:], grid, strict=True):
        wanted = math.ceil(max(CELLS, side / count) / STEP)
        sides.append(count * STEP * min(wanted, MOST_CELLS // count // STEP))
    return joined_maps(tiles, grid, *sides, antialias=True)
