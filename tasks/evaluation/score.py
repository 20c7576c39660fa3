"""Scores a target's queries, episode by episode.

Work is shared where it is the same: each picture goes through an encoder once for all detectors, seeds and shots that use it; a
query is related to a prompt once for all shots of a seed; and of a query and one single prompt (1 shot, or the most similar of a
pool) a detector concludes once, however many episodes ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tasks.detector_settings import DetectorName
from tasks.models.detector import Detector, upsample
from tasks.models.encoder import Features
from tasks.models.similarity import most_similar
from tasks.models.texts import ANY_CATEGORY
from tasks.pictures import read_picture
from tasks.sampling.episodes import Episode

HELD_MAPS = 2**29  # bytes of anomaly maps held at once; more episodes take another pass over the queries


@dataclass(frozen=True)
class Contender:
    """A detector to be evaluated: how it is named, at which resolution, and on how many queries of a category."""

    name: DetectorName
    detector: Detector
    resolution: int
    queries: int | None  # the first so many; None for all


@dataclass(frozen=True)
class Scored:
    """One detector on one episode: N queries, their image scores N, and their anomaly maps NxRxR if maps were asked for."""

    detector: DetectorName
    episode: Episode
    images: tuple[str, ...]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32] | None


def score_category(
    contenders: Sequence[Contender], episodes: Sequence[Episode], *, maps_at: int | None, batch_size: int, device: str
) -> Iterator[list[Scored]]:
    """Each contender on each episode, as many episodes at once as HELD_MAPS allows. All are of one category, with the same queries.
    An episode without prompts is for those contenders that need none.

    contenders: of one encoder and one resolution. maps_at: pixels a side of the anomaly maps, None for scores alone.
    """
    queries = episodes[0].queries
    size = 4 * len(contenders) * len(queries) * (maps_at or 0) ** 2
    passes = min(len(episodes), max(1, -(-size * len(episodes) // HELD_MAPS)))
    for part in np.array_split(np.arange(len(episodes)), passes):
        yield _pass(contenders, [episodes[index] for index in part], maps_at, batch_size, device)


@torch.inference_mode()
def _pass(contenders: Sequence[Contender], episodes: Sequence[Episode], maps_at: int | None, batch_size: int, device: str) -> list[Scored]:
    encoder, resolution = contenders[0].detector.encoder, contenders[0].resolution
    pool = Pool.encode(contenders, episodes, resolution, batch_size, device)
    parts: dict[tuple[str, int], list[tuple[Tensor, Tensor | None]]] = {}
    queries = episodes[0].queries
    most = max(contender.queries or len(queries) for contender in contenders)
    title = f"evaluate {episodes[0].target}/{episodes[0].category} {'+'.join(contender.name for contender in contenders)}"
    for start in tqdm(range(0, min(most, len(queries)), batch_size), desc=title, unit="batch", mininterval=5):
        features = encoder(read_pictures(queries[start : start + batch_size], resolution, device))
        for contender in contenders:
            wanted = min((contender.queries or len(queries)) - start, len(features[0]))
            if wanted <= 0:
                continue
            mine = [stage[:wanted] for stage in features]
            for number, scores, maps in _compare(contender, mine, episodes, pool, start):
                held = upsample(maps, (maps_at, maps_at)).cpu() if maps_at else None
                parts.setdefault((contender.name, number), []).append((scores.cpu(), held))
    return [
        _join(contender.name, episodes[number], parts[contender.name, number])
        for contender in contenders
        for number in range(len(episodes))
        if (contender.name, number) in parts
    ]


@dataclass(frozen=True)
class Pool:
    """Every prompt of some episodes, encoded once: its place in the pool, its last stage, and what each detector remembers of it."""

    place: dict[str, int]
    last_stage: Tensor | None  # None if there are no prompts
    memory: dict[DetectorName, Features]

    @classmethod
    def encode(cls, contenders: Sequence[Contender], episodes: Sequence[Episode], resolution: int, batch_size: int, device: str) -> Pool:
        images = list(dict.fromkeys(image for episode in episodes for image in episode.prompts))
        last: list[Tensor] = []
        memory: dict[DetectorName, list[Features]] = {contender.name: [] for contender in contenders}
        for start in range(0, len(images), batch_size):
            pictures = read_pictures(images[start : start + batch_size], resolution, device)
            features = contenders[0].detector.encoder(pictures)
            last.append(features[-1])
            for contender in contenders:
                memory[contender.name].append(contender.detector.memorise(pictures, features))
        joined = {name: [torch.cat(stages) for stages in zip(*batches, strict=True)] for name, batches in memory.items()}
        return cls({image: index for index, image in enumerate(images)}, torch.cat(last) if last else None, joined)

    def places(self, episode: Episode) -> list[int]:
        return [self.place[image] for image in episode.prompts]


def _compare(
    contender: Contender, queries: Features, episodes: Sequence[Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each episode its number, and the scores and maps of a batch of queries, of which `start` came before."""
    for seed in sorted({episode.seed for episode in episodes}):
        yield from _compare_seed(contender, queries, {n: e for n, e in enumerate(episodes) if e.seed == seed}, pool, start)


def _compare_seed(
    contender: Contender, queries: Features, episodes: dict[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    detector, memory = contender.detector, pool.memory[contender.name]
    episodes = {number: episode for number, episode in episodes.items() if episode.prompts or not detector.needs_prompts}
    single = {
        number: choice for number, episode in episodes.items() if (choice := _single_prompt(episode, queries, pool, start)) is not None
    }
    together = {number: pool.places(episode) for number, episode in episodes.items() if number not in single and episode.prompts}
    if together:
        places = sorted({place for chosen in together.values() for place in chosen})
        relation = detector.relate(queries, [stage[places] for stage in memory])
        for number, chosen in together.items():
            columns = [places.index(place) for place in chosen]
            yield number, *detector.conclude(queries, [stage[:, columns] for stage in relation], _category(detector, episodes[number]))
    for number, episode in episodes.items():
        if not episode.prompts:
            yield number, *detector.conclude(queries, [], _category(detector, episode))
    for category in dict.fromkeys(_category(detector, episodes[number]) for number in single):
        mine = {number: choice for number, choice in single.items() if _category(detector, episodes[number]) == category}
        once = _compare_singles(detector, queries, memory, list(mine.values()), category)
        for number, choice in mine.items():
            scores, maps = zip(*(once[query, place] for query, place in enumerate(choice)), strict=True)
            yield number, torch.stack(scores), torch.stack(maps)


def _category(detector: Detector, episode: Episode) -> str:
    """What the detector may be told of the pictures; one that does not read is told the same always, so that it concludes once."""
    told = detector.reads and episode.protocol != "class-agnostic"
    return episode.category if told else ANY_CATEGORY


def _single_prompt(episode: Episode, queries: Features, pool: Pool, start: int) -> list[int] | None:
    """The place in the pool of each query's one prompt; None if the episode holds queries against several at once."""
    places = pool.places(episode)
    if episode.own:
        return [pool.place[image] for image in episode.own[start : start + len(queries[0])]]
    if episode.protocol == "class-agnostic" and places:
        assert pool.last_stage is not None
        return [places[index] for index in most_similar(queries, [pool.last_stage[places]]).tolist()]
    return places * len(queries[0]) if len(places) == 1 else None


def _compare_singles(
    detector: Detector, queries: Features, memory: Features, choices: Sequence[Sequence[int]], category: str
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """choices: for each episode a place in the pool for each query. The comparison of every distinct (query, place) among them."""
    distinct = sorted({(query, place) for choice in choices for query, place in enumerate(choice)})
    results: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for start in range(0, len(distinct), len(queries[0])):
        part = distinct[start : start + len(queries[0])]
        whose, places = ([*column] for column in zip(*part, strict=True))
        asking = [stage[whose] for stage in queries]
        scores, maps = detector.conclude(asking, detector.relate(asking, [stage[places][:, None] for stage in memory]), category)
        results.update({key: (score, map_) for key, score, map_ in zip(part, scores, maps, strict=True)})
    return results


def read_pictures(images: Sequence[str], resolution: int, device: str) -> Tensor:
    """Pictures on disk as Bx3xHxW in [0, 1]."""
    pictures = np.stack([read_picture(Path(image), resolution) for image in images])
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(255)


def _join(name: DetectorName, episode: Episode, parts: list[tuple[Tensor, Tensor | None]]) -> Scored:
    scores = torch.cat([scores for scores, _maps in parts]).numpy()
    maps = [maps for _scores, maps in parts if maps is not None]
    return Scored(name, episode, episode.queries[: len(scores)], scores, torch.cat(maps).numpy() if maps else None)
