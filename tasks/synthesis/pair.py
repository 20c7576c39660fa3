"""Make change pairs. Each depends on its number alone, except for the low bits of painted regions, which also depend on the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.inpainting.inpainter import Inpainter
from changepair.tasks.synthesis.augmentation import jitter, make_of, shown, small_affine, warp_mask, warp_picture, without_colour
from changepair.tasks.synthesis.changes import RECIPES, UNCHANGED, WITHOUT_MASK, Change, Materials, Recipe, Repaint, painted
from changepair.tasks.synthesis.objects import Dropped
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.shards import Drop, Pair

MOST_DRAWS = 50  # draws of one pair
MOST_HELD = 64  # pairs held at once, so that memory does not grow if few of them are painted


@dataclass
class Maker:
    """Makes pairs from materials. `inpainter` may be None if no kind needs it. `drops` counts the dropped draws."""

    materials: Materials
    inpainter: Inpainter | None
    drops: Counter[Drop] = field(default_factory=Counter)
    given_up: Counter[Recipe] = field(default_factory=Counter)  # pairs that another recipe made, by the recipe that failed
    held_out: bool = False  # whether the materials are those of the held-out pairs

    @property
    def settings(self) -> SynthesisSettings:
        return self.materials.settings

    def make(self, numbers: Sequence[int]) -> Iterator[Pair]:
        """Make the pairs of these numbers, in their order. Raises BadInput if one of them cannot be made."""
        # Use kernels that every machine has: newer ones fuse multiplication and addition, and round one value in 100,000 to another level.
        cv2.setUseOptimized(False)
        recipes = {number: recipe(self.settings, number) for number in numbers}
        for group in groups(recipes, self.settings.inpainting.batch_size):
            yield from self._group(group, recipes)

    def _group(self, group: Sequence[int], recipes: Mapping[int, Recipe], failed: frozenset[Recipe] = frozenset()) -> list[Pair]:
        """Make the pairs of a group. All are drawn, those to be painted are painted in one batch, and dropped ones are drawn again.

        A pair that still fails after MOST_DRAWS is made by another recipe than the `failed` ones.
        """
        pairs: dict[int, Pair] = {}
        first = len(failed) * MOST_DRAWS
        for draw in range(first, first + MOST_DRAWS):
            waiting = [number for number in group if number not in pairs]
            if not waiting:
                break
            rngs = {number: generator(self.settings.seed, "pair", number, draw) for number in waiting}
            drawn: dict[int, Change | Repaint] = {}
            for number in waiting:
                with self._counted(recipes[number]):
                    drawn[number] = recipes[number].way(self.materials, rngs[number])
            answers = self._answers({number: answer for number, answer in drawn.items() if isinstance(answer, Repaint)}, draw)
            for number, answer in drawn.items():
                with self._counted(recipes[number]):
                    change = painted(answer, answers[number], self.settings) if isinstance(answer, Repaint) else answer
                    pairs[number] = self._pair(number, draw, recipes[number], change, rngs[number])
        for used in dict.fromkeys(recipes[number] for number in group if number not in pairs):
            without = failed | {used}
            others = {one: self._other(one, without) for one in group if one not in pairs and recipes[one] is used}
            self.given_up[used] += len(others)
            for part in groups(others, self.settings.inpainting.batch_size):
                pairs |= {pair.index: pair for pair in self._group(part, others, without)}
        return [pairs[number] for number in group]

    def _other(self, number: int, failed: frozenset[Recipe]) -> Recipe:
        """Draw another recipe for a pair. Raises BadInput if all recipes that have a share have failed."""
        if all(used in failed for used, share in zip(RECIPES, self.settings.shares, strict=True) if share > 0):
            raise self.impossible(min(failed, key=RECIPES.index))
        return recipe(self.settings, number, failed)

    def impossible(self, used: Recipe) -> BadInput:
        """Return the error for a kind that cannot be made, with the reasons of its dropped draws."""
        reasons = Counter({drop.reason: count for drop, count in self.drops.items() if drop[:2] == (used.kind, used.method)})
        counted = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        return BadInput(
            f"synthesis: {MOST_DRAWS} draws of a pair of kind {used.kind!r} failed: {counted}; "
            "widen synthesis.changed_area or synthesis.objects, or set the kind's share in synthesis.kinds to 0"
        )

    @contextmanager
    def _counted(self, recipe_: Recipe) -> Iterator[None]:
        """Count a dropped draw."""
        try:
            yield
        except Dropped as dropped:
            self.drops[Drop(recipe_.kind, recipe_.method, str(dropped))] += 1

    def _answers(self, asked: dict[int, Repaint], draw: int) -> dict[int, Picture]:
        """Let the inpainting model paint. Return its pictures by the pairs' numbers."""
        if not asked:
            return {}
        assert self.inpainter is not None  # reading pipelines.yaml has checked this
        images = torch.from_numpy(np.stack([repaint.picture for repaint in asked.values()])).permute(0, 3, 1, 2).float() / 255
        masks = torch.from_numpy(np.stack([repaint.region for repaint in asked.values()]))[:, None].float()
        seeds = [int(generator(self.settings.seed, "paint", number, draw).integers(2**31)) for number in asked]
        answer = self.inpainter(images, masks, [repaint.text for repaint in asked.values()], seeds)
        pictures = (answer.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return dict(zip(asked, pictures, strict=True))

    def _pair(self, number: int, draw: int, recipe_: Recipe, change: Change, rng: np.random.Generator) -> Pair:
        """Make a pair from a change. Its roles may be swapped, unless the two are crops, and each gets its own geometry and light.

        The mask follows the query, and holds only places that the prompt also shows. Raises Dropped if the area is out of bounds.
        """
        augmentation, size = self.settings.augmentation, self.settings.resolution
        to_query, to_prompt = (small_affine(size, augmentation, rng) for _ in range(2))
        swapped = bool(rng.random() < self.settings.swapped) and not change.apart
        prompt, query = (change.query, change.prompt) if swapped else (change.prompt, change.query)
        mask = warp_mask(change.mask if change.apart else change.mask & shown(to_prompt, size), to_query)
        if rng.random() < augmentation.grey:
            prompt, query = without_colour(prompt), without_colour(query)
        low, high = self.settings.changed_area
        if recipe_.kind not in WITHOUT_MASK and not low <= mask.mean() <= high:
            raise Dropped("change too small" if mask.mean() < low else "change too large")
        return Pair(
            index=number,
            kind=recipe_.kind,
            method=recipe_.method,
            source=self.materials.sources.images[change.photo],
            draw=draw,
            query=make_of(jitter(warp_picture(query, to_query), augmentation, rng), augmentation, rng),
            prompt=make_of(jitter(warp_picture(prompt, to_prompt), augmentation, rng), augmentation, rng),
            mask=mask,
            changed=recipe_.kind not in UNCHANGED,
            swapped=swapped,
            held_out=self.held_out,
        )


def recipe(settings: SynthesisSettings, number: int, failed: frozenset[Recipe] = frozenset()) -> Recipe:
    """Draw how pair `number` is made, by the shares of the kinds. It is drawn again, without the recipes that have failed."""
    shares = [0.0 if one in failed else share for one, share in zip(RECIPES, settings.shares, strict=True)]
    chances: NDArray[np.float64] = np.cumsum(shares)
    rng = generator(settings.seed, "kind", number, *([len(failed)] if failed else []))
    return RECIPES[int(np.searchsorted(chances / chances[-1], rng.random(), side="right"))]


def groups(recipes: Mapping[int, Recipe], batch_size: int) -> Iterator[list[int]]:
    """Split the numbers into groups that each have one batch of pairs to be painted, or MOST_HELD pairs if that is fewer."""
    group: list[int] = []
    painted_ones = 0
    for number, recipe_ in recipes.items():
        group.append(number)
        painted_ones += recipe_.repaints
        if painted_ones == batch_size or len(group) == max(MOST_HELD, batch_size):
            yield group
            group, painted_ones = [], 0
    if group:
        yield group
