"""Make the kinds of change: a prompt, a query and the mask of where they differ, or a request to the inpainting model.

A way is a function `(materials, rng) -> Change | Repaint`. It draws only what it needs, so that a dropped draw costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.ingestion.objects.table import box_of
from changepair.tasks.synthesis.augmentation import three_random
from changepair.tasks.synthesis.blending import inner, poisson_blend
from changepair.tasks.synthesis.defects.drawing import Defect, Severity
from changepair.tasks.synthesis.defects.registry import DEFECTS
from changepair.tasks.synthesis.objects import Dropped, ObjectCutout, Objects
from changepair.tasks.synthesis.perlin import perlin_mask
from changepair.tasks.synthesis.settings import DRAWN, GROUPS, METHODS, PAINTED, Blend, ChangeKind, SynthesisSettings


@dataclass(frozen=True)
class Materials:
    settings: SynthesisSettings
    sources: Photographs
    textures: Photographs
    objects: Objects


@dataclass(frozen=True)
class Change:
    """Prompt and query (H, W, 3), and the mask (H, W) of their difference, on one grid, before changes of geometry and light."""

    photo: int  # index of the source
    prompt: Picture
    query: Picture
    mask: Mask
    apart: bool = False  # whether they are two crops of one texture; then they keep their roles, and the mask is for the query alone


@dataclass(frozen=True)
class Repaint:
    """A region for the inpainting model to paint, and whether the painted picture becomes the query or the prompt."""

    photo: int
    picture: Picture
    region: Mask
    text: str
    painted_is_query: bool


Way = Callable[[Materials, np.random.Generator], Change | Repaint]

MOST_TRANSPARENT = 0.8  # beta in DRAEM, uniform in [0, 0.8]
MOST_DEFECTS = 10  # draws of a defect into one crop
MOST_NOISES = 50  # draws of a noise until the size of its region is within the settings
SOFT_EDGE = 0.7  # blur in pixels of a pasted object's edge
MOST_CROPS = 30  # draws of two crops until they show one texture
SCALES = 4
LIKE_MEAN, LIKE_ENERGY = 28.0, 0.5  # levels of 255, and natural logarithm of a factor
UNCHANGED: tuple[ChangeKind, ...] = ("distractor", "none")
WITHOUT_MASK = frozenset([*UNCHANGED, *GROUPS["global"]])


def no_change(materials: Materials, rng: np.random.Generator) -> Change:
    """Change nothing: one crop twice or, in a share of the draws, two crops of a texture."""
    photo, prompt, query, apart = _places(materials, rng)
    return Change(photo, prompt, query, _nothing(prompt), apart)


def _places(materials: Materials, rng: np.random.Generator) -> tuple[int, Picture, Picture, bool]:
    """Draw one crop or, in a share of the draws, two crops of one texture, because real prompts are not registered.

    Return the photograph's index, prompt, query, and whether they are two crops.
    """
    if rng.random() < materials.settings.apart:
        for _draw in range(MOST_CROPS):
            photo = materials.sources.choose(rng)
            prompt, query = (materials.sources.cut(photo, square) for square in materials.sources.squares_apart(photo, rng))
            if same_texture(prompt, query):
                return photo, prompt, query, True
    photo, picture = materials.sources.draw(rng)
    return photo, picture, picture, False


def same_texture(one: Picture, other: Picture) -> bool:
    """Return whether two pictures and all their quarters have similar colour, and similar energy at every scale."""
    if not _alike([one, other]):  # most different pairs fail here
        return False
    half = len(one) // 2
    places = [(top, left) for top in (0, half) for left in (0, half)]
    return _alike([one, other, *(picture[top : top + half, left : left + half] for picture in (one, other) for top, left in places)])


def _alike(parts: list[Picture]) -> bool:
    """Compare the means of the channels, and the log of the root mean square of differences of blurs, scale by scale.

    Most comparisons fail early, and blurs of later scales take most of the time.
    """
    if np.ptp([cv2.mean(part)[:3] for part in parts], axis=0).max() >= LIKE_MEAN:
        return False
    greys = [cv2.cvtColor(part, cv2.COLOR_RGB2GRAY).astype(np.float32) for part in parts]
    fine = greys
    for scale in range(SCALES):
        coarse = [cv2.GaussianBlur(grey, (0, 0), 2.0**scale) for grey in greys]
        energies = [np.log(np.sqrt(((a - b) ** 2).mean()) + 1.0) for a, b in zip(fine, coarse, strict=True)]
        if np.ptp(energies) >= LIKE_ENERGY:
            return False
        fine = coarse
    return True


def _nothing(picture: Picture) -> Mask:
    return np.zeros(picture.shape[:2], dtype=bool)


def distractor(materials: Materials, rng: np.random.Generator) -> Change:
    """Put the artefact of a local change into prompt and query, so that nothing has changed.

    Two crops of a texture show it in two shapes. Alternatively only the prompt shows it, which is no change of the query either.
    """
    photo, prompt, query, apart = _places(materials, rng)
    artefact = _artefact(materials, photo, rng)
    prompt = artefact.on(prompt)
    if not apart:
        return Change(photo, prompt, prompt, _nothing(query))
    if rng.random() < 0.5:
        query = replace(artefact, mask=_noise(materials, rng)).on(query)
    return Change(photo, prompt, query, _nothing(query), apart)


def pasted_distractor(materials: Materials, rng: np.random.Generator) -> Change:
    """Paste an object into the prompt and the query."""
    change = exchange_pasted(materials, rng)
    return Change(change.photo, change.query, change.query, _nothing(change.query))


def local_region(materials: Materials, rng: np.random.Generator) -> Change:
    """Make DRAEM's local change in one crop or, in a share of the draws, in one of two crops of a texture."""
    photo, prompt, query, apart = _places(materials, rng)
    artefact = _artefact(materials, photo, rng)
    return Change(photo, prompt, artefact.on(query), artefact.mask, apart)


def drawn_defect(materials: Materials, rng: np.random.Generator, *, draw: Defect) -> Change:
    """Draw a defect into one crop or, in a share of the draws, into one of two crops of a texture.

    It is drawn again until its area is within the settings. Raises Dropped if all draws fail.
    """
    photo, prompt, query, apart = _places(materials, rng)
    defects, (low, high) = materials.settings.defects, materials.settings.changed_area
    reason = "no defect within changed_area"
    for _draw in range(MOST_DEFECTS):
        size, contrast = (float(np.exp(rng.uniform(*np.log(span)))) for span in (defects.size, defects.contrast))
        try:
            changed, mask = draw(query, Severity(size, contrast), rng)
        except Dropped as dropped:
            reason = str(dropped)
            continue
        if not mask.any() or low <= mask.mean() <= high:
            return Change(photo, prompt, changed, mask, apart)
    raise Dropped(reason)


@dataclass(frozen=True)
class Artefact:
    """DRAEM's artefact (Zavrtanik et al., ICCV 2021, eq. 2): I_a = (1-M) I + (1-beta) M A + beta M I.

    M is thresholded Perlin noise. A is a texture under three random photometric augmentations.
    """

    mask: Mask
    texture: Picture
    beta: float

    def on(self, picture: Picture) -> Picture:
        changed = picture.copy()
        mixed = cv2.addWeighted(self.texture, 1 - self.beta, picture, self.beta, 0)
        cv2.copyTo(mixed, self.mask.astype(np.uint8), changed)
        return changed


def _artefact(materials: Materials, photo: int, rng: np.random.Generator) -> Artefact:
    """Draw an artefact. If the sources are also the textures, its texture comes from another photograph."""
    mask, textures = _noise(materials, rng), materials.textures
    index = textures.choose(rng, but=photo if textures.images == materials.sources.images else None)
    texture = textures.cut(index, textures.square(index, rng))
    return Artefact(mask, three_random(texture, rng), rng.uniform(0, MOST_TRANSPARENT))


def _noise(materials: Materials, rng: np.random.Generator) -> Mask:
    """Draw a noise whose area is within the settings. Raises Dropped if all draws fail."""
    low, high = materials.settings.changed_area
    masks = (perlin_mask(materials.sources.resolution, rng) for _draw in range(MOST_NOISES))
    mask = next((mask for mask in masks if low <= mask.mean() <= high), None)
    if mask is None:
        raise Dropped("no noise within changed_area")
    return mask


def painted_away(materials: Materials, rng: np.random.Generator, *, painted_is_query: bool) -> Repaint:
    """Paint an object away: in the query, so that it disappears, or in the prompt, so that it appears (MetaUAS, arXiv 2505.09265, 3.2)."""
    chosen = materials.objects.draw(rng)
    reach = round(materials.settings.objects.margin * len(chosen.mask))
    region = ndimage.binary_dilation(chosen.mask, iterations=reach) if reach else chosen.mask
    return Repaint(chosen.photo, chosen.picture, region, materials.settings.inpainting.removal_text, painted_is_query)


def exchange_regenerated(materials: Materials, rng: np.random.Generator) -> Repaint:
    """Let the inpainting model paint another object within an object's outline."""
    chosen = materials.objects.draw(rng)
    texts = materials.settings.inpainting.exchange_texts
    text = texts[int(rng.integers(len(texts)))] if texts else chosen.label
    return Repaint(chosen.photo, chosen.picture, chosen.mask, text, painted_is_query=True)


def exchange_pasted(materials: Materials, rng: np.random.Generator) -> Change:
    """Paste an object of another photograph over an object, fitted to its box."""
    place = materials.objects.draw(rng)
    other = materials.objects.draw(rng, but=place.photo)
    top, bottom, left, right = box_of(place.mask)
    factor = rng.uniform(0.9, 1.25, size=2)
    height, width = max(round((bottom - top) * factor[0]), 2), max(round((right - left) * factor[1]), 2)
    blend = materials.settings.objects.blend
    query, shape = pasted(place.picture, other, (left + right - width) // 2, (top + bottom - height) // 2, width, height, blend)
    query, mask = only_the_change(place.picture, query, shape, materials.settings)
    return Change(place.photo, place.picture, query, mask)


def pasted(
    picture: Picture, other: ObjectCutout, left: int, top: int, width: int, height: int, blend: Blend = "soft"
) -> tuple[Picture, Mask]:
    """Paste an object into a box of a picture (H, W, 3). Return the picture, and the mask (H, W) of what was touched.

    The box may reach over the border. The edge is soft, or the object is blended by Poisson's equation.
    """
    high, low, near, far = box_of(other.mask)
    size, box = (width, height), (near, high, far, low)
    opacity = Image.fromarray(other.mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR, box=box)
    pixels = Image.fromarray(other.picture).resize(size, Image.Resampling.BICUBIC, box=box)
    layer, shape = Image.fromarray(picture.copy()), Image.new("L", picture.shape[1::-1])
    layer.paste(pixels, (left, top))
    shape.paste(opacity, (left, top))
    if blend != "soft":
        region = inner(np.asarray(shape) > 127, top, left, height, width)
        return poisson_blend(picture, np.asarray(layer), region, mixed=blend == "mixed"), region
    shape = shape.filter(ImageFilter.GaussianBlur(SOFT_EDGE))
    return np.asarray(Image.composite(layer, Image.fromarray(picture), shape)), np.asarray(shape) > 0


def appeared(materials: Materials, rng: np.random.Generator, *, pasted_is_query: bool) -> Change:
    """Paste an object of another photograph anywhere: into the query, so that it appears, or into the prompt, so that it disappears.

    Its box keeps its proportions. The area of its box is drawn evenly on a logarithmic scale within objects.area.
    """
    photo, picture = materials.sources.draw(rng)
    other = materials.objects.draw(rng, but=photo)
    side = len(picture)
    top, bottom, left, right = box_of(other.mask)
    low, high = materials.settings.objects.area
    scale = side * np.sqrt(np.exp(rng.uniform(np.log(max(low, 1e-3)), np.log(high))) / ((bottom - top) * (right - left)))
    height, width = (min(max(round(length * scale), 2), side) for length in (bottom - top, right - left))
    corner = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    after, shape = pasted(picture, other, *corner, width, height, materials.settings.objects.blend)
    after, mask = only_the_change(picture, after, shape, materials.settings)
    return Change(photo, picture, after, mask) if pasted_is_query else Change(photo, after, picture, mask)


def painted(repaint: Repaint, answer: Picture, settings: SynthesisSettings) -> Change:
    """Return the change that the inpainting model's answer makes. Raises Dropped if the region, or its features, are unchanged."""
    after, mask = only_the_change(repaint.picture, answer, repaint.region, settings)
    if settings.inpainting.verified:
        from changepair.tasks.synthesis.verified import verified  # imports torch and an encoder

        mask = verified(repaint.picture, answer, repaint.region, mask)
        after = np.where(mask[..., None], after, repaint.picture)
    prompt, query = (repaint.picture, after) if repaint.painted_is_query else (after, repaint.picture)
    return Change(repaint.photo, prompt, query, mask)


def only_the_change(before: Picture, after: Picture, region: Mask, settings: SynthesisSettings) -> tuple[Picture, Mask]:
    """Return `after` where it visibly differs from `before` within the region, exactly `before` elsewhere, and the mask of the difference.

    A visible difference is at least least_difference in some channel, after a blur that removes fine grain. Differences elsewhere, such as
    a VAE makes in every pixel, are undone, because a detector would learn them. Raises Dropped if less than least_changed of the region
    differs.
    """
    moved = ndimage.gaussian_filter(after.astype(np.float32) - before, (len(region) / 100,) * 2 + (0,), truncate=3.0)
    changed = (np.abs(moved).max(axis=2) > 255 * settings.inpainting.least_difference) & region
    if not region.any() or changed.sum() < settings.inpainting.least_changed * region.sum():
        raise Dropped("region unchanged")
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(changed, iterations=2) | changed) & region
    return np.where(mask[..., None], after, before), mask


APPEAR, DISAPPEAR = partial(painted_away, painted_is_query=False), partial(painted_away, painted_is_query=True)
PASTED_IN, PASTED_AWAY = partial(appeared, pasted_is_query=True), partial(appeared, pasted_is_query=False)
# For each of METHODS.
WAYS: tuple[Way, ...] = (
    *(APPEAR, DISAPPEAR, exchange_regenerated, exchange_pasted, local_region, distractor, pasted_distractor, no_change),
    *(PASTED_IN, PASTED_AWAY),
    *(partial(drawn_defect, draw=DEFECTS[kind]) for kind, method in METHODS if method == DRAWN),
)


@dataclass(frozen=True)
class Recipe:
    kind: ChangeKind
    method: str  # method in the index
    way: Way

    @property
    def repaints(self) -> bool:
        return self.method == PAINTED


RECIPES = tuple(Recipe(kind, method, way) for (kind, method), way in zip(METHODS, WAYS, strict=True))
