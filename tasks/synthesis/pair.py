"""One change pair, from its number alone."""

from __future__ import annotations

import numpy as np

from tasks.errors import BadInput
from tasks.randomness import generator
from tasks.synthesis.changes import CHANGERS, Change
from tasks.synthesis.geometry import small_affine, warp_mask, warp_picture
from tasks.synthesis.photometry import jitter
from tasks.synthesis.settings import Kind, SynthesisSettings
from tasks.synthesis.shards import Pair
from tasks.synthesis.sources import Sources

MOST_DRAWS = 50  # of a change that has to fall within changed_area


def make_pair(settings: SynthesisSettings, sources: Sources, index: int) -> Pair:
    """Pair number `index`: what changed, then geometry and light of prompt and query each on its own."""
    rng = generator(settings.seed, "pair", index)
    kind = _kind(settings, rng)
    photo, picture = sources.draw(rng)
    for _draw in range(MOST_DRAWS):
        change = CHANGERS[kind](picture, lambda: sources.draw_other(photo, rng), rng)
        pair = _set_apart(settings, index, kind, sources.images[photo], change, rng)
        if kind == "none" or settings.changed_area[0] <= pair.changed_area <= settings.changed_area[1]:
            return pair
    raise BadInput(
        f"synthesis: {MOST_DRAWS} draws of a {kind!r} change all covered less or more than changed_area "
        f"[{settings.changed_area[0]:g}, {settings.changed_area[1]:g}] of the query; widen it in pipelines.yaml"
    )


def _kind(settings: SynthesisSettings, rng: np.random.Generator) -> Kind:
    kinds = sorted(settings.kinds)  # the order in pipelines.yaml must not matter
    shares = np.array([settings.kinds[kind] for kind in kinds])
    return kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]


def _set_apart(settings: SynthesisSettings, index: int, kind: Kind, source: str, change: Change, rng: np.random.Generator) -> Pair:
    """The mask follows the query; the prompt gets a geometry and a light of its own."""
    size = settings.resolution
    to_query, to_prompt = (small_affine(size, settings.augmentation, rng) for _ in range(2))
    return Pair(
        index=index,
        kind=kind,
        source=source,
        query=jitter(warp_picture(change.query, to_query), settings.augmentation, rng),
        prompt=jitter(warp_picture(change.prompt, to_prompt), settings.augmentation, rng),
        mask=warp_mask(change.mask, to_query),
    )
