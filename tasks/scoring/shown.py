"""Choose the episode of each category that the galleries show."""

from __future__ import annotations

from collections.abc import Mapping

from changepair.tasks.sampling.episodes import Episode


def shown_episodes(episodes: Mapping[int, Episode]) -> dict[int, Episode]:
    """Chooses one of each target's category, by number: class-specific, the most shots, the first seed."""
    best: dict[tuple[str, str], int] = {}
    for number, episode in episodes.items():
        place = (episode.target, episode.category)
        if place not in best or _rank(episode) < _rank(episodes[best[place]]):
            best[place] = number
    return {number: episodes[number] for number in best.values()}


def _rank(episode: Episode) -> tuple[bool, int, int]:
    return episode.protocol != "class-specific", -episode.shots, episode.seed
