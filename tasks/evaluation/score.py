"""Scores a target's queries, episode by episode.

Work is shared where it is the same: each picture goes through an encoder once for all detectors, seeds and shots that use it; a
query is related to a prompt once for all shots and protocols of a seed; and of a query and one single prompt (1 shot, or the most
similar of a pool) a detector concludes once, however many episodes ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tasks import stopping
from tasks.detector_settings import DetectorName
from tasks.errors import BadInput
from tasks.evaluation.pixels import COARSE, HELD_SCORES, PixelScores, Truth
from tasks.models.detector import Detector, upsample
from tasks.models.encoder import Features
from tasks.models.similarity import most_similar
from tasks.models.texts import ANY_CATEGORY
from tasks.pictures import read_picture
from tasks.sampling.episodes import Episode

Masks = Callable[[int, int], Truth]
"""What is anomalous in the queries from one place to another."""


@dataclass(frozen=True)
class Contender:
    """A detector to be evaluated: how it is named, at which resolution, and on how many queries of a category."""

    name: DetectorName
    detector: Detector
    resolution: int
    queries: int | None  # the first so many; None for all


@dataclass(frozen=True)
class Scored:
    """One detector on one episode: N queries, their image scores N, and their pixel scores where there are masks."""

    detector: DetectorName
    episode: Episode
    images: tuple[str, ...]
    scores: NDArray[np.float32]
    pixels: PixelScores | None


def score_category(
    contenders: Sequence[Contender],
    episodes: Sequence[Episode],
    *,
    masks: Masks | None,
    resolution: int,
    batch_size: int,
    device: str,
    report: Callable[[float], None] = lambda share: None,
) -> Iterator[list[Scored]]:
    """Each contender on each episode, as many episodes at once as HELD_SCORES allows. All are of one category, with the same queries.
    An episode without prompts is for those contenders that need none.

    contenders: of one encoder and one resolution. resolution: pixels a side at which masks and maps are compared. report: is told the
    share of the work that is done. Raises BadInput if a score is not a number.
    """
    queries = episodes[0].queries
    pixels = len(queries) * resolution**2
    exact = 4 * pixels <= HELD_SCORES
    held = 0 if masks is None else (4 * pixels if exact else 0) + 12 * COARSE * len(queries)
    passes = min(len(episodes), max(1, -(-held * len(contenders) * len(episodes) // HELD_SCORES)))
    for number, part in enumerate(np.array_split(np.arange(len(episodes)), passes)):
        chosen = [episodes[index] for index in part]
        scores: dict[tuple[DetectorName, int], list[Tensor]] = {}
        pixel_scores: dict[tuple[DetectorName, int], PixelScores] = {}
        firsts: dict[DetectorName, PixelScores] = {}
        for batch in _compared(contenders, chosen, batch_size, device):
            truth = masks(batch.start, batch.stop) if masks is not None else None
            for name, episode, image_scores, maps in batch.comparisons:
                _refuse_nan(name, queries[batch.start : batch.stop], image_scores, maps)
                scores.setdefault((name, episode), []).append(image_scores.cpu())
                if truth is not None:
                    if (name, episode) not in pixel_scores:
                        pixel_scores[name, episode] = PixelScores(pixels, exact=exact, like=firsts.get(name))
                    room = pixel_scores[name, episode]
                    firsts.setdefault(name, room)
                    room.add(upsample(maps, (resolution, resolution)).float().cpu().numpy(), truth.first(len(maps)))
            report((number + batch.share) / passes)
            stopping.check(f"evaluate {chosen[0].target}; its scores are taken anew")
        yield [
            Scored(name, chosen[episode], queries[: sum(map(len, parts))], torch.cat(parts).numpy(), pixel_scores.get((name, episode)))
            for (name, episode), parts in scores.items()
        ]


def anomaly_maps(
    contenders: Sequence[Contender], episode: Episode, images: Sequence[str], *, batch_size: int, device: str
) -> dict[DetectorName, dict[str, NDArray[np.float32]]]:
    """The anomaly maps hxw, each on its detector's own grid, of some of an episode's queries, whichever of them a contender scores."""
    places = [episode.queries.index(image) for image in images]
    own = tuple(episode.own[place] for place in places) if episode.own else ()
    few = replace(episode, queries=tuple(images), labels=tuple(episode.labels[place] for place in places), own=own)
    found: dict[DetectorName, dict[str, NDArray[np.float32]]] = {}
    everything = [replace(contender, queries=None) for contender in contenders]
    for batch in _compared(everything, [few], batch_size, device):
        for name, _episode, _scores, maps in batch.comparisons:
            of_batch = zip(images[batch.start : batch.stop], maps.float().cpu().numpy(), strict=True)
            found.setdefault(name, {}).update(of_batch)
    return found


@dataclass(frozen=True)
class Batch:
    """Some queries held against the prompts of every episode."""

    start: int
    stop: int
    share: float  # of all queries, up to the end of this batch
    comparisons: Iterator[tuple[DetectorName, int, Tensor, Tensor]]
    """Detector, number of the episode, image scores B and maps Bxhxw; fewer than B for a contender that scores the first so many."""


@torch.inference_mode()
def _compared(contenders: Sequence[Contender], episodes: Sequence[Episode], batch_size: int, device: str) -> Iterator[Batch]:
    encoder, resolution = contenders[0].detector.encoder, contenders[0].resolution
    queries = episodes[0].queries
    most = min(len(queries), max(contender.queries or len(queries) for contender in contenders))
    title = f"evaluate {episodes[0].target}/{episodes[0].category} {'+'.join(contender.name for contender in contenders)}"
    pool = Pool.encode(contenders, episodes, resolution, batch_size, device)
    for start in tqdm(range(0, most, batch_size), desc=title, unit="batch", mininterval=5):
        stop = min(start + batch_size, most)
        features = encoder(read_pictures(queries[start:stop], resolution, device))
        yield Batch(start, stop, stop / most, _comparisons(contenders, features, episodes, pool, start))


@torch.inference_mode()
def _comparisons(
    contenders: Sequence[Contender], features: Features, episodes: Sequence[Episode], pool: Pool, start: int
) -> Iterator[tuple[DetectorName, int, Tensor, Tensor]]:
    for contender in contenders:
        wanted = min((contender.queries or start + len(features[0])) - start, len(features[0]))
        if wanted > 0:
            mine = [stage[:wanted] for stage in features]
            for number, scores, maps in _compare(contender, mine, episodes, pool, start):
                yield contender.name, number, scores, maps


def _refuse_nan(name: DetectorName, images: Sequence[str], scores: Tensor, maps: Tensor) -> None:
    wrong = torch.nonzero(~torch.isfinite(scores + maps.sum((1, 2)))).flatten().tolist()
    if wrong:
        raise BadInput(
            f"{name}: its score of {images[wrong[0]]} is not a number; train it again, with a lower learning_rate if its loss rose"
        )


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
    column = {place: number for number, place in enumerate(sorted({place for chosen in together.values() for place in chosen}))}
    relation = detector.relate(queries, [stage[[*column]] for stage in memory]) if column else []
    for number, chosen in together.items():
        own = [stage[:, [column[place] for place in chosen]] for stage in relation]
        yield number, *detector.conclude(queries, own, _category(detector, episodes[number]))
    for number, episode in episodes.items():
        if not episode.prompts:
            yield number, *detector.conclude(queries, [], _category(detector, episode))
    for category in dict.fromkeys(_category(detector, episodes[number]) for number in single):
        mine = {number: choice for number, choice in single.items() if _category(detector, episodes[number]) == category}
        distinct = sorted({(query, place) for choice in mine.values() for query, place in enumerate(choice)})
        related = [(query, place) for query, place in distinct if place in column]
        once = _compare_pairs(
            detector,
            queries,
            related,
            lambda whose, places: [stage[whose, [column[place] for place in places]][:, None] for stage in relation],
            category,
        )
        once |= _compare_pairs(
            detector,
            queries,
            [pair for pair in distinct if pair[1] not in column],
            lambda whose, places: detector.relate([stage[whose] for stage in queries], [stage[places][:, None] for stage in memory]),
            category,
        )
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


def _compare_pairs(
    detector: Detector,
    queries: Features,
    pairs: Sequence[tuple[int, int]],
    relate: Callable[[list[int], list[int]], Features],
    category: str,
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """pairs: of a query and the place of its one prompt in the pool. relate: so many queries, each to one prompt, Bx1x... each."""
    results: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for start in range(0, len(pairs), len(queries[0])):
        part = pairs[start : start + len(queries[0])]
        whose, places = ([*column] for column in zip(*part, strict=True))
        scores, maps = detector.conclude([stage[whose] for stage in queries], relate(whose, places), category)
        results.update({pair: (score, map_) for pair, score, map_ in zip(part, scores, maps, strict=True)})
    return results


def read_pictures(images: Sequence[str], resolution: int, device: str) -> Tensor:
    """Pictures on disk as Bx3xHxW in [0, 1]."""
    pictures = np.stack([read_picture(Path(image), resolution) for image in images])
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(255)
