"""Choose the normal queries that are scored under perturbations, and the episodes whose prompts they are compared with.

They are the episodes that a recommendation takes its prompts from: of one protocol, the first seed, and every number of shots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.sampling.settings import PREFERRED
from changepair.tasks.scoring.scores import Group


def with_perturbed(groups: Sequence[Group], perturbations: Sequence[str], most: int) -> list[tuple[Group, ...]]:
    """Return each group, followed by its group of perturbed queries if there are perturbations.

    most: largest number of pictures of a group. A group whose queries are all anomalous gets a group without episodes.
    """
    if not perturbations:
        return [(group,) for group in groups]
    return [(group, _perturbed(group, len(groups) + group.number, tuple(perturbations), most)) for group in groups]


def first_episodes(episodes: Mapping[int, Episode]) -> dict[int, Episode]:
    """Choose the episodes of the first seed by number, one for each number of shots: class-specific, if they include that protocol."""
    protocols = [episode.protocol for episode in episodes.values()]
    protocol = PREFERRED if PREFERRED in protocols else next(iter(protocols), "")
    chosen: dict[int, tuple[int, Episode]] = {}
    for number, episode in episodes.items():
        if episode.protocol == protocol:
            chosen.setdefault(episode.shots, (number, episode))
    return dict(chosen.values())


def _perturbed(group: Group, number: int, perturbations: tuple[str, ...], most: int) -> Group:
    """Return a group with the first normal queries of a group. Each query is repeated for every perturbation."""
    chosen = first_episodes(group.episodes)
    labels = next(iter(chosen.values())).labels if chosen else ()
    normal = [query for query, label in enumerate(labels) if label != ANOMALOUS][:most]
    scored = sum(query < group.queries for query in normal)
    if not scored:
        return Group(number, {}, 0, (), perturbations)
    repeated = [query for query in normal for _ in perturbations]
    episodes = {
        place: replace(
            episode,
            queries=tuple(episode.queries[query] for query in repeated),
            labels=tuple(episode.labels[query] for query in repeated),
            own=tuple(episode.own[query] for query in repeated) if episode.own else (),
        )
        for place, episode in chosen.items()
    }
    return Group(number, episodes, scored * len(perturbations), (), perturbations)
