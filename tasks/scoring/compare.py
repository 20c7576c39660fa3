"""Encode the prompts of many episodes once, and compare queries with them.

Shared work is done once. A query is related to a prompt once for all shots and protocols of a seed, unless the detector decides from
all prompts together. A detector concludes once on each query and set of prompts, for all episodes. With one category, class-agnostic and
class-specific episodes have the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.common.pictures import Resize
from changepair.tasks.common.tensors import read_tiles
from changepair.tasks.common.tiles import Grid, seams
from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector
from changepair.tasks.encoders.encoder import Encoder, Features
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.scores import Group
from changepair.tasks.scoring.sharing import Shared

Related = Callable[..., Features]
"""Function that relates queries to prompts of a pool. The first argument has the prompts' indices: for all queries, or Bxk for each one.
The second argument is optional. It has indices of queries, and each of these is related to the prompt at the same place."""


class Memory:
    """The memory of a pool's prompts, as one detector computes it."""

    def __init__(self, detector: Detector, stages: Features) -> None:
        self.detector, self.stages = detector, stages
        self._reduced: dict[tuple[int, ...], Features] = {}

    def of(self, places: Sequence[int] | Tensor) -> Features:
        """Return the memory of some prompts: Kx... for K indices, or BxKx... for indices BxK, one row for each query.

        Memory that the detector reduces is kept for the next queries, except that of several prompts for a single query.
        """
        if isinstance(places, Tensor):
            if not self.detector.joint:
                return [stage[places] for stage in self.stages]
            return [torch.stack(parts) for parts in zip(*map(self._reduce, map(tuple, places.tolist())), strict=True)]
        return self._reduce(tuple(places), keep=True)

    def _reduce(self, places: tuple[int, ...], keep: bool = False) -> Features:
        if places in self._reduced:
            return self._reduced[places]
        whole = [stage[list(places)] for stage in self.stages]
        reduced = self.detector.bounded(whole)
        if reduced is not whole and (keep or len(places) == 1):
            self._reduced[places] = reduced
        return reduced


@dataclass(frozen=True)
class Pool:
    """The encoded prompts of some episodes, for one tile of the grid, as one detector uses them."""

    place: dict[str, int]
    """Index of each prompt, by path."""
    last_stage: Tensor | None
    """Features of the detector's last stage, KxCxhxw. None without prompts."""
    memory: Memory
    """Memory of the prompts, as the detector's host computes it."""

    def places(self, episode: Episode) -> list[int]:
        """Return the indices of an episode's prompts."""
        return [self.place[image] for image in episode.prompts]


@dataclass(frozen=True)
class Cut:
    """Episodes whose pictures are cut by the same grid."""

    grid: Grid
    numbers: Mapping[str, set[int]]
    """Rows of the episodes in the episodes' table, by detector."""
    pools: Sequence[Mapping[str, Pool]]
    """Encoded prompts for each tile, by detector."""

    def episodes(self, detector: str, group: Group) -> dict[int, Episode]:
        """Return a detector's episodes of a group that are cut by this grid."""
        numbers = self.numbers.get(detector, set())
        return {number: episode for number, episode in group.episodes.items() if number in numbers}


class Relations:
    """Relate a batch of queries to prompts, once for all detectors with the same host."""

    def __init__(self, shared: Shared, features: Features) -> None:
        """Set the features that the shared encoder computes from the queries."""
        self.shared, self.features = shared, features
        self._kept: dict[Any, Features] = {}

    def of(self, name: str, part: slice, memory: Memory) -> Related:
        """Return a function that relates some of the queries to prompts for a detector. memory: that of the detector's host."""
        host = self.shared.hosts[name]
        queries = [stage[part] for stage in self.shared.features(host, self.features)]

        def related(places: Sequence[int] | Tensor, whose: Sequence[int] | None = None) -> Features:
            chosen = places.tolist() if isinstance(places, Tensor) else [*places]
            key = (host, part.start, part.stop, None if whose is None else (*whose,), str(chosen))
            found = self._kept.get(key)
            if found is None:
                asked = queries if whose is None else [stage[whose] for stage in queries]
                offered = memory.of(places if whose is None else torch.tensor(chosen)[:, None])
                found = self.shared.detectors[host].relate(asked, offered)
                if self.shared.guests(host) > 1:
                    self._kept[key] = found
            return self.shared.parts[name](found)

        return related


def pools_of(
    shared: Shared,
    names: Collection[str],
    episodes: Sequence[Episode],
    grid: Grid,
    resolution: int,
    resize: Resize,
    batch_size: int,
    device: torch.device,
) -> list[dict[str, Pool]]:
    """Encode the prompts of episodes. Return the pools for each tile of the grid, by detector. names: detectors that need them."""
    images = list(dict.fromkeys(image for episode in episodes for image in episode.prompts))
    hosts = {shared.hosts[name] for name in names}
    last: list[dict[int, list[Tensor]]] = [{shared.places[name][-1]: [] for name in names} for _ in range(grid.tiles)]
    memory: list[dict[str, list[Features]]] = [{host: [] for host in hosts} for _ in range(grid.tiles)]
    step = pictures_at_once(grid, batch_size)
    for start in range(0, len(images), step):
        tiles = read_tiles(images[start : start + step], [grid], resolution, device, resize)[0][grid]
        for place, features in enumerate(encoded(shared.encoder, tiles, batch_size)):
            for stage, parts in last[place].items():
                parts.append(features[stage])
            for host in hosts:
                detector, own = shared.detectors[host], shared.features(host, features)
                memory[place][host].append(detector.of_tile(detector.memorise(tiles[place], own), seams(place, grid, resize)))
    index = {image: number for number, image in enumerate(images)}
    pools = []
    for stages, remembered in zip(last, memory, strict=True):
        joined = {stage: torch.cat(parts) if parts else None for stage, parts in stages.items()}
        known = {
            host: Memory(shared.detectors[host], [torch.cat(parts) for parts in zip(*batches, strict=True)])
            for host, batches in remembered.items()
        }
        pools.append({name: Pool(index, joined[shared.places[name][-1]], known[shared.hosts[name]]) for name in names})
    return pools


def pictures_at_once(grid: Grid, batch_size: int) -> int:
    """Return the largest number of pictures with at most `batch_size` tiles together, at least 1."""
    return max(1, batch_size // grid.tiles)


def encoded(encoder: Encoder, tiles: Tensor, batch_size: int) -> Iterator[Features]:
    """Encode tiles TxBx3xHxW in batches. Yield the features of the B pictures for each of the T tiles."""
    count = tiles.shape[1]
    for part in tiles.split(max(1, batch_size // count)):
        features = encoder(part.flatten(0, 1))
        for place in range(len(part)):
            yield [stage[place * count : (place + 1) * count] for stage in features]


def compare(
    detector: Detector, related: Related, queries: Features, episodes: Mapping[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Compare queries with the prompts of each episode. Yield the episode's number, scores B and maps Bxhxw.

    related: relates the queries to prompts of the pool, as `Relations.of`. start: index of the batch's first query in the episodes.
    """
    for seed in sorted({episode.seed for episode in episodes.values()}):
        of_seed = {number: episode for number, episode in episodes.items() if episode.seed == seed}
        yield from _compare_seed(detector, related, queries, of_seed, pool, start)


def _compare_seed(
    detector: Detector, related: Related, queries: Features, episodes: Mapping[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    single = {
        number: choice for number, episode in episodes.items() if (choice := _single_prompt(episode, queries, pool, start)) is not None
    }
    several = {number: places for number, episode in episodes.items() if (places := _several_prompts(episode, queries, pool)) is not None}
    rest = {number: episode for number, episode in episodes.items() if episode.prompts and number not in single and number not in several}
    together = {number: pool.places(episode) for number, episode in rest.items()}
    shared = () if detector.joint else {place for chosen in together.values() for place in chosen}
    column = {place: number for number, place in enumerate(sorted(shared))}
    relation = related([*column]) if column else []
    alike: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for number, chosen in together.items():
        alike.setdefault((tuple(chosen), _category(detector, episodes[number])), []).append(number)
    for (prompts, category), numbers in alike.items():
        columns = [column[place] for place in prompts if not detector.joint]
        own = related([*prompts]) if detector.joint else [stage[:, columns] for stage in relation]
        result = detector.conclude(queries, own, category)
        yield from ((number, *result) for number in numbers)
    for number, places in several.items():
        yield number, *detector.conclude(queries, related(places), _category(detector, episodes[number]))
    for number, episode in episodes.items():
        if not episode.prompts:
            yield number, *detector.conclude(queries, [], _category(detector, episode))
    for category in dict.fromkeys(_category(detector, episodes[number]) for number in single):
        choices = {number: choice for number, choice in single.items() if _category(detector, episodes[number]) == category}
        distinct = sorted({(query, place) for choice in choices.values() for query, place in enumerate(choice)})
        known, others = ([pair for pair in distinct if (pair[1] in column) == wanted] for wanted in (True, False))

        def look_up(whose: list[int], places: list[int]) -> Features:
            return [stage[whose, [column[place] for place in places]][:, None] for stage in relation]

        def relate(whose: list[int], places: list[int]) -> Features:
            return related(places, whose)

        once = _compare_pairs(detector, queries, known, look_up, category) | _compare_pairs(detector, queries, others, relate, category)
        for number, choice in choices.items():
            scores, maps = zip(*(once[query, place] for query, place in enumerate(choice)), strict=True)
            yield number, torch.stack(scores), torch.stack(maps)


def _category(detector: Detector, episode: Episode) -> str:
    """Return the category for the detector. Without a text encoder it is ANY_CATEGORY, so that episodes share results."""
    named = detector.reads and episode.protocol != "class-agnostic"
    return episode.category if named else ANY_CATEGORY


def _single_prompt(episode: Episode, queries: Features, pool: Pool, start: int) -> list[int] | None:
    """Return the pool index of each query's only prompt. None if the episode compares queries with several prompts at once."""
    places = pool.places(episode)
    if episode.own:
        return [pool.place[image] for image in episode.own[start : start + len(queries[0])]]
    if len(places) == 1:
        return places * len(queries[0])
    if episode.protocol == "class-agnostic" and episode.shots == 1 and places:
        return _chosen(places, queries, pool, 1).flatten().tolist()
    return None


def _several_prompts(episode: Episode, queries: Features, pool: Pool) -> Tensor | None:
    """Return the pool indices Bxk of the k prompts chosen for each query. None if all queries have the same prompts."""
    places = pool.places(episode)
    several = episode.protocol == "class-agnostic" and not episode.own and 1 < episode.shots < len(places)
    return _chosen(places, queries, pool, episode.shots) if several else None


def _chosen(places: Sequence[int], queries: Features, pool: Pool, count: int) -> Tensor:
    """Choose the most similar prompts for each query. Return their pool indices Bxcount, taken from `places`."""
    assert pool.last_stage is not None
    return torch.tensor(places, device=queries[-1].device)[most_similar(queries, [pool.last_stage[list(places)]], count)]


def _compare_pairs(
    detector: Detector,
    queries: Features,
    pairs: Sequence[tuple[int, int]],
    relate: Callable[[list[int], list[int]], Features],
    category: str,
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Conclude on pairs of a query and the pool index of its only prompt. relate: relates B queries to one prompt each, Bx1x..."""
    results: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for start in range(0, len(pairs), len(queries[0])):
        part = pairs[start : start + len(queries[0])]
        whose, places = ([*column] for column in zip(*part, strict=True))
        scores, maps = detector.conclude([stage[whose] for stage in queries], relate(whose, places), category)
        results.update({pair: (score, map_) for pair, score, map_ in zip(part, scores, maps, strict=True)})
    return results


def most_similar(queries: Features, pool: Features, count: int = 1) -> Tensor:
    """Find the most similar pictures of the pool for each query. Return their indices Bxcount, the most similar first.

    The similarity is the cosine of last-stage features, averaged over positions. queries: BxCxhxw for each stage. pool: KxCxhxw for each
    stage.
    """
    of_query, of_pool = (F.normalize(features[-1].mean(dim=(-2, -1)), dim=1) for features in (queries, pool))
    return (of_query @ of_pool.mT).topk(count, dim=1).indices
