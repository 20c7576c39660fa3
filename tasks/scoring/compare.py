"""Encode the prompts of many episodes once, and compare queries with them.

Shared work is done once. A query is related to a prompt once for all shots and protocols of a seed, unless the detector decides from
all prompts together. A detector concludes once on each query and set of prompts, for all episodes. With one category, class-agnostic and
class-specific episodes have the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.common.pictures import Resize
from changepair.tasks.common.tensors import read_tiles
from changepair.tasks.common.tiles import Grid, seams
from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector
from changepair.tasks.encoders.encoder import Encoder, Features
from changepair.tasks.sampling.episodes import Episode


@dataclass(frozen=True)
class Pool:
    """The encoded prompts of some episodes, for one tile of the grid."""

    place: dict[str, int]
    """Index of each prompt, by path."""
    last_stage: Tensor | None
    """Features of the last stage, KxCxhxw. None without prompts."""
    memory: dict[str, Features]
    """Memory of the prompts, by detector."""

    def places(self, episode: Episode) -> list[int]:
        """Return the indices of an episode's prompts."""
        return [self.place[image] for image in episode.prompts]


def pools_of(
    detectors: Mapping[str, Detector],
    episodes: Sequence[Episode],
    grid: Grid,
    resolution: int,
    resize: Resize,
    batch_size: int,
    device: torch.device,
) -> list[Pool]:
    """Encode the prompts of episodes. Return a pool for each tile of the grid. detectors: detectors with one encoder, by name."""
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
                memory[place][name].append(detector.of_tile(detector.memorise(tiles[place], features), seams(place, grid, resize)))
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
    detector: Detector, memory: Features, queries: Features, episodes: Mapping[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Compare queries with the prompts of each episode. Yield the episode's number, scores B and maps Bxhxw.

    memory: the detector's memory of the pool. start: index of the batch's first query in the episodes.
    """
    for seed in sorted({episode.seed for episode in episodes.values()}):
        of_seed = {number: episode for number, episode in episodes.items() if episode.seed == seed}
        yield from _compare_seed(detector, memory, queries, of_seed, pool, start)


def _compare_seed(
    detector: Detector, memory: Features, queries: Features, episodes: Mapping[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    single = {
        number: choice for number, episode in episodes.items() if (choice := _single_prompt(episode, queries, pool, start)) is not None
    }
    several = {number: places for number, episode in episodes.items() if (places := _several_prompts(episode, queries, pool)) is not None}
    rest = {number: episode for number, episode in episodes.items() if episode.prompts and number not in single and number not in several}
    together = {number: pool.places(episode) for number, episode in rest.items()}
    shared = () if detector.joint else {place for chosen in together.values() for place in chosen}
    column = {place: number for number, place in enumerate(sorted(shared))}
    relation = detector.relate(queries, [stage[[*column]] for stage in memory]) if column else []
    alike: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for number, chosen in together.items():
        alike.setdefault((tuple(chosen), _category(detector, episodes[number])), []).append(number)
    for (prompts, category), numbers in alike.items():
        if detector.joint:
            own = detector.relate(queries, [stage[[*prompts]] for stage in memory])
        else:
            own = [stage[:, [column[place] for place in prompts]] for stage in relation]
        result = detector.conclude(queries, own, category)
        yield from ((number, *result) for number in numbers)
    for number, places in several.items():
        own = detector.relate(queries, [stage[places] for stage in memory])
        yield number, *detector.conclude(queries, own, _category(detector, episodes[number]))
    for number, episode in episodes.items():
        if not episode.prompts:
            yield number, *detector.conclude(queries, [], _category(detector, episode))
    for category in dict.fromkeys(_category(detector, episodes[number]) for number in single):
        choices = {number: choice for number, choice in single.items() if _category(detector, episodes[number]) == category}
        distinct = sorted({(query, place) for choice in choices.values() for query, place in enumerate(choice)})
        related, others = ([pair for pair in distinct if (pair[1] in column) == wanted] for wanted in (True, False))

        def look_up(whose: list[int], places: list[int]) -> Features:
            return [stage[whose, [column[place] for place in places]][:, None] for stage in relation]

        def relate(whose: list[int], places: list[int]) -> Features:
            return detector.relate([stage[whose] for stage in queries], [stage[places][:, None] for stage in memory])

        once = _compare_pairs(detector, queries, related, look_up, category) | _compare_pairs(detector, queries, others, relate, category)
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
