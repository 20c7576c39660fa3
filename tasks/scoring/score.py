"""Scores a pipeline's queries, episode by episode.

Work is shared where it is the same: each picture goes through an encoder once for all the detectors that are scored together and use it,
and for all seeds and shots; a query is related to a prompt once for all shots and protocols of a seed; and of a query and the same prompts
(where a dataset has one category, class-agnostic holds it against those of class-specific) a detector concludes once, however many
episodes ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tasks.common import stopping
from tasks.common.errors import BadInput
from tasks.common.pictures import Resize, picture_size
from tasks.common.places import place_of
from tasks.common.tensors import read_tensors, uncropped
from tasks.detectors.models.detector import ANY_CATEGORY, Detector
from tasks.detectors.models.encoder import Features
from tasks.detectors.models.similarity import most_similar
from tasks.sampling.episodes import Episode, EpisodeFiles, read_episodes, read_pictures
from tasks.sampling.settings import BY_PIXEL
from tasks.scoring.scores import Group, Work
from tasks.scoring.shown import shown_episodes


@dataclass(frozen=True)
class Contender:
    """A detector to be scored: how it is named, at which resolution, on how many queries of a category, and where its scores go."""

    name: str
    detector: Detector
    resolution: int
    queries: int | None
    """The first so many; None for all."""
    work: Work
    resize: Resize = "squash"


def score(
    contenders: Sequence[Contender],
    files: EpisodeFiles,
    folders: Mapping[str, Path],
    *,
    batch_size: int,
    device: torch.device,
    only: int | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> dict[str, int]:
    """Scores contenders of one encoder and one resolution on every episode; writes each one's artifact to its folder, if it has one there,
    and gives the number of its scores. The work of the others is left for a later call, which finds nothing to score.

    only: the part to score, of `count_parts`; None for all. report: is told the share of the work that is done. Raises BadInput if a score
    is not a number, Stopped if SIGTERM came.
    """
    episodes = dict(enumerate(read_episodes(files.episodes)))
    masked = {row.image for row in read_pictures(files.targets) if row.mask is not None}
    groups = {contender.name: groups_of(contender, episodes, masked) for contender in contenders}
    parts = list(zip(*groups.values(), strict=True))
    for number, part in enumerate(parts):
        if only not in (None, number):
            continue
        _score_group(
            [(contender, group) for contender, group in zip(contenders, part, strict=True) if group.episodes],
            batch_size,
            device,
            lambda share, before=number: report((before + share) / len(parts)),  # type: ignore[misc]
        )
    report(1.0)
    finished = [contender for contender in contenders if contender.name in folders]
    return {
        contender.name: contender.work.finish(
            [group for group in groups[contender.name] if group.episodes], contender.name, folders[contender.name]
        )
        for contender in finished
    }


def groups_of(contender: Contender, episodes: Mapping[int, Episode], masked: set[str]) -> list[Group]:
    """Groups episodes, the same by number for every detector, with those in them that it can score: some need prompts."""
    able = {number for number, episode in episodes.items() if episode.prompts or not contender.detector.needs_prompts}
    shown = shown_episodes({number: episode for number, episode in episodes.items() if number in able})
    groups = []
    for place, alike in enumerate(_same_queries(episodes)):
        chosen = {number: episode for number, episode in alike.items() if number in able}
        queries = next(iter(alike.values())).queries
        by_pixel = not masked.isdisjoint(queries)
        kept = [number for number, episode in chosen.items() if number in shown or (by_pixel and episode.protocol in BY_PIXEL)]
        groups.append(Group(place, chosen, min(contender.queries or len(queries), len(queries)), tuple(kept)))
    return groups


def count_parts(files: EpisodeFiles) -> int:
    """Counts the parts that the work divides into: episodes of the same queries, which are a category's, are one."""
    return len(_same_queries(dict(enumerate(read_episodes(files.episodes)))))


def _same_queries(episodes: Mapping[int, Episode]) -> list[dict[int, Episode]]:
    """Groups episodes, by number, that hold the same queries against different prompts."""
    kinds: dict[Any, dict[int, Episode]] = {}
    for number, episode in episodes.items():
        kinds.setdefault((episode.target, episode.category, episode.queries, episode.labels), {})[number] = episode
    return list(kinds.values())


@torch.inference_mode()
def _score_group(
    contenders: Sequence[tuple[Contender, Group]], batch_size: int, device: torch.device, report: Callable[[float], None]
) -> None:
    """Scores the queries that are not scored yet, batch by batch."""
    waiting = [(contender, group) for contender, group in contenders if contender.work.done(group) < group.queries]
    if not waiting:
        return
    encoder, resolution, resize = waiting[0][0].detector.encoder, waiting[0][0].resolution, waiting[0][0].resize
    episodes = {number: episode for _contender, group in waiting for number, episode in group.episodes.items()}
    some = next(iter(episodes.values()))
    first = min(contender.work.done(group) for contender, group in waiting)
    last = max(group.queries for _contender, group in waiting)
    pool = Pool.encode([contender for contender, _group in waiting], list(episodes.values()), resolution, batch_size, device, resize)
    title = f"score {some.target}/{some.category} {'+'.join(contender.name for contender, _group in waiting)}"
    for start in tqdm(range(first, last, batch_size), desc=title, unit="batch", mininterval=5):
        features = encoder(read_tensors(some.queries[start : min(start + batch_size, last)], resolution, device, resize))
        for contender, group in waiting:
            done, stop = contender.work.done(group), min(start + batch_size, group.queries)
            if done < stop:  # and by a killed run that had another batch size, some of the batch may be scored
                chosen = [stage[done - start : stop - start] for stage in features]
                scores, maps = {}, {}
                for number, image_scores, anomaly_maps in _compare(contender, chosen, group.episodes, pool, done):
                    _refuse_nan(contender.name, some.queries[done:stop], image_scores, anomaly_maps)
                    scores[number] = image_scores.float().cpu().numpy()
                    if number in group.kept:
                        whole = _uncropped(anomaly_maps, some.queries[done:stop]) if resize == "crop" else anomaly_maps
                        maps[number] = whole.float().cpu().numpy()
                contender.work.add(group, done, scores, maps)
        report(min(start + batch_size, last) / last)
        stopping.check(f"score {some.target}/{some.category}, {min(start + batch_size, last)} of {last} queries scored")


def _uncropped(maps: Tensor, images: Sequence[str]) -> Tensor:
    return uncropped(maps, [picture_size(place_of(image)) for image in images])


def _refuse_nan(name: str, images: Sequence[str], scores: Tensor, maps: Tensor) -> None:
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
    memory: dict[str, Features]

    @classmethod
    def encode(
        cls,
        contenders: Sequence[Contender],
        episodes: Sequence[Episode],
        resolution: int,
        batch_size: int,
        device: torch.device,
        resize: Resize,
    ) -> Pool:
        images = list(dict.fromkeys(image for episode in episodes for image in episode.prompts))
        last: list[Tensor] = []
        memory: dict[str, list[Features]] = {contender.name: [] for contender in contenders}
        for start in range(0, len(images), batch_size):
            pictures = read_tensors(images[start : start + batch_size], resolution, device, resize)
            features = contenders[0].detector.encoder(pictures)
            last.append(features[-1])
            for contender in contenders:
                memory[contender.name].append(contender.detector.memorise(pictures, features))
        joined = {name: [torch.cat(stages) for stages in zip(*batches, strict=True)] for name, batches in memory.items()}
        return cls({image: index for index, image in enumerate(images)}, torch.cat(last) if last else None, joined)

    def places(self, episode: Episode) -> list[int]:
        return [self.place[image] for image in episode.prompts]


def _compare(
    contender: Contender, queries: Features, episodes: Mapping[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields for each episode its number, and the scores and maps of a batch of queries, of which `start` came before."""
    for seed in sorted({episode.seed for episode in episodes.values()}):
        of_seed = {number: episode for number, episode in episodes.items() if episode.seed == seed}
        yield from _compare_seed(contender, queries, of_seed, pool, start)


def _compare_seed(
    contender: Contender, queries: Features, episodes: dict[int, Episode], pool: Pool, start: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    detector, memory = contender.detector, pool.memory[contender.name]
    single = {
        number: choice for number, episode in episodes.items() if (choice := _single_prompt(episode, queries, pool, start)) is not None
    }
    several = {number: places for number, episode in episodes.items() if (places := _several_prompts(episode, queries, pool)) is not None}
    together = {
        number: pool.places(episode)
        for number, episode in episodes.items()
        if number not in single and number not in several and episode.prompts
    }
    column = {place: number for number, place in enumerate(sorted({place for chosen in together.values() for place in chosen}))}
    relation = detector.relate(queries, [stage[[*column]] for stage in memory]) if column else []
    alike: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for number, chosen in together.items():
        alike.setdefault((tuple(chosen), _category(detector, episodes[number])), []).append(number)
    for (prompts, category), numbers in alike.items():
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
        for number, choice in choices.items():
            scores, maps = zip(*(once[query, place] for query, place in enumerate(choice)), strict=True)
            yield number, torch.stack(scores), torch.stack(maps)


def _category(detector: Detector, episode: Episode) -> str:
    """Gives the category that the detector may know; for one that does not read it is always the same, so that it concludes once."""
    named = detector.reads and episode.protocol != "class-agnostic"
    return episode.category if named else ANY_CATEGORY


def _single_prompt(episode: Episode, queries: Features, pool: Pool, start: int) -> list[int] | None:
    """Finds the place in the pool of each query's one prompt; None if the episode holds queries against several at once."""
    places = pool.places(episode)
    if episode.own:
        return [pool.place[image] for image in episode.own[start : start + len(queries[0])]]
    if len(places) == 1:
        return places * len(queries[0])
    if episode.protocol == "class-agnostic" and episode.shots == 1 and places:
        return _chosen(places, queries, pool, 1).flatten().tolist()
    return None


def _several_prompts(episode: Episode, queries: Features, pool: Pool) -> Tensor | None:
    """Finds the places in the pool of each query's own prompts, Bxk, where it has k that are chosen among more."""
    places = pool.places(episode)
    if episode.protocol != "class-agnostic" or episode.own or not 1 < episode.shots < len(places):
        return None
    return _chosen(places, queries, pool, episode.shots)


def _chosen(places: Sequence[int], queries: Features, pool: Pool, count: int) -> Tensor:
    """Gives the places of the pictures, among some of the pool, that each query is most similar to: Bxcount."""
    assert pool.last_stage is not None
    return torch.tensor(places, device=queries[-1].device)[most_similar(queries, [pool.last_stage[list(places)]], count)]


def _compare_pairs(
    detector: Detector,
    queries: Features,
    pairs: Sequence[tuple[int, int]],
    relate: Callable[[list[int], list[int]], Features],
    category: str,
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Concludes on pairs of a query and the place of its one prompt in the pool. relate: so many queries, each to one prompt, Bx1x...
    each."""
    results: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for start in range(0, len(pairs), len(queries[0])):
        part = pairs[start : start + len(queries[0])]
        whose, places = ([*column] for column in zip(*part, strict=True))
        scores, maps = detector.conclude([stage[whose] for stage in queries], relate(whose, places), category)
        results.update({pair: (score, map_) for pair, score, map_ in zip(part, scores, maps, strict=True)})
    return results
