"""Report the metrics that are undefined for a category because its test pictures are all normal or all anomalous."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from changepair.tasks.ingestion.manifest import ANOMALOUS, PictureRow
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.sampling.settings import BY_PIXEL


def undefined_metrics(episodes: Sequence[Episode], pictures: Iterable[PictureRow]) -> list[str]:
    """Return a sentence for each category whose test pictures have only one label. pictures: rows with the masks of the test pictures."""
    masked = {row.image for row in pictures if row.mask is not None}
    alike: dict[tuple[str, str], list[Episode]] = {}
    for episode in episodes:
        if len(set(episode.labels)) == 1:
            alike.setdefault((episode.target, episode.category), []).append(episode)
    return [_sentence(target, category, own, masked) for (target, category), own in alike.items()]


def _sentence(target: str, category: str, episodes: Sequence[Episode], masked: set[str]) -> str:
    count, label = len(episodes[0].queries), "anomalous" if episodes[0].labels[0] == ANOMALOUS else "normal"
    pictures = f"all {count} test pictures are {label}" if count > 1 else f"its one test picture is {label}"
    by_pixel = any(episode.protocol in BY_PIXEL and not masked.isdisjoint(episode.queries) for episode in episodes)
    effect = "image AUROC, AP and F1max are undefined; pixel metrics are computed" if by_pixel else "every metric is undefined"
    return f"category {category} of {target}: {pictures}, so {effect}"
