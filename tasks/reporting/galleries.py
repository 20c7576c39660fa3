"""Draw galleries of anomaly maps.

One gallery shows the first pictures of every category with the maps of all detectors side by side. The others show each detector's missed
pictures, false alarms, borderline cases and found pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from changepair.tasks.common.files import made_anew
from changepair.tasks.common.pictures import Picture, read_mask, read_picture
from changepair.tasks.common.places import place_of
from changepair.tasks.common.sheets import PAPER, TILE, SheetRow, contact_sheet, heated, outlined
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.calibration import least_rate, top_of
from changepair.tasks.sampling.episodes import Episode, TargetFiles, read_episodes, read_pictures, shown_episodes
from changepair.tasks.scoring.operating import RATE
from changepair.tasks.scoring.scores import Scored, read_scored

PickKind = Literal["missed", "false alarms", "borderline", "found"]
KINDS: tuple[PickKind, ...] = get_args(PickKind)
"""Missed pictures are anomalous and below the threshold; false alarms are normal and above it. Both are sorted by distance from the
threshold, the farthest first. Borderline pictures are the nearest to it. Found pictures are anomalous and above it, the farthest first."""

Maps = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shown:
    """A query with what the galleries show of it."""

    image: str
    """Path of the query."""
    prompt: str | None
    """Path of the first prompt. None without prompts."""
    category: str
    label: int
    """0 normal, 1 anomalous."""
    mask: str | None
    """Path of its mask, if it has one."""
    maps: Maps = field(default_factory=dict)
    """Anomaly maps hxw in [0, 1], by detector."""


@dataclass(frozen=True)
class Pick:
    """A picture in a detector's gallery."""

    detector: str
    kind: PickKind
    shown: Shown
    score: float
    threshold: float
    """Threshold of the category's best F1. It is for display only: the pictures that it judges set it."""


@dataclass(frozen=True)
class Gallery:
    """The pictures of a target that are shown."""

    target: str
    overlays: list[Shown]
    """The first queries of each category."""
    picks: list[Pick]
    """Each detector's pictures of all KINDS."""
    tops: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Map value that normal pictures reach, by category and detector. It scales the colours of all maps of the detector."""

    @property
    def tiles(self) -> tuple[str, ...]:
        """Describe the pictures of a `strip`, from left to right. Without any mask, the mask is left out."""
        masked = any(shown.mask is not None for shown in (*self.overlays, *(pick.shown for pick in self.picks)))
        return ("prompt", "query", "mask", "anomaly map") if masked else ("prompt", "query", "anomaly map")

    def of(self, detector: str) -> list[Pick]:
        return [pick for pick in self.picks if pick.detector == detector]


def galleries_of(scores: Mapping[str, Path], files: TargetFiles, count: int) -> list[Gallery]:
    """Return the gallery of each target.

    scores: the folders that the score stage wrote, by detector. count: number of pictures, as in `choose`.
    """
    episodes = read_episodes(files.episodes)
    mask_of = {row.image: row.mask for row in read_pictures(files.targets)}
    scored = [(detector, episodes[item.number], item) for detector, folder in scores.items() for item in read_scored(folder)]
    targets = dict.fromkeys(episode.target for episode in episodes)
    return [choose(target, [item for item in scored if item[1].target == target], mask_of, count) for target in targets]


def choose(target: str, scored: Sequence[tuple[str, Episode, Scored]], mask_of: Mapping[str, str | None], count: int) -> Gallery:
    """Choose the pictures of a target's gallery from one episode of each category (`shown_episodes`).

    The overlays are the first `count` queries of each category. Each detector's picks are the first `count` of each of KINDS, over all
    categories. Distances from the threshold are in standard deviations of the category's scores.

    scored: detector, episode, and the detector's scores on it.
    """
    chosen = {episode.category: episode for episode in shown_episodes({item.number: episode for _name, episode, item in scored}).values()}
    shown: dict[tuple[str, str], Shown] = {}
    for category, episode in chosen.items():
        for image, label in zip(episode.queries, episode.labels, strict=True):
            prompt = next(iter(episode.prompts), None)
            shown[category, image] = Shown(image, prompt, category, label, mask_of[image])
    ranked: dict[str, list[tuple[float, Shown, float, float]]] = defaultdict(list)
    tops: dict[tuple[str, str], float] = {}
    for detector, episode, item in scored:
        category = episode.category
        if episode != chosen[category]:
            continue
        labels = episode.labels[: len(item.scores)]
        threshold = best_threshold(np.array(labels) == ANOMALOUS, item.scores)
        spread = max(float(item.scores.std()), 1e-12)
        maxima = item.maxima(labels)
        highest = float(item.maps.max()) if item.maps is not None and not maxima else 0.0  # without a normal picture, half of it
        tops[category, detector] = top_of(maxima, least_rate(len(maxima), RATE)) or highest / 2
        for place, (image, label, score) in enumerate(zip(episode.queries, labels, item.scores.tolist(), strict=False)):
            if item.maps is not None:
                shown[category, image].maps[detector] = item.maps[place]
            margin = (score - threshold) / spread * (1 if label == ANOMALOUS else -1)
            ranked[detector].append((margin, shown[category, image], score, threshold))
    picks = []
    for detector, rows in ranked.items():
        anomalous, normal = ([row for row in rows if (row[1].label == ANOMALOUS) == wanted] for wanted in (True, False))
        order: dict[PickKind, list[tuple[float, Shown, float, float]]] = {
            "missed": sorted((row for row in anomalous if row[2] <= row[3]), key=lambda row: row[0]),
            "false alarms": sorted((row for row in normal if row[2] > row[3]), key=lambda row: row[0]),
            "borderline": sorted(rows, key=lambda row: abs(row[0])),
            "found": sorted((row for row in anomalous if row[2] > row[3]), key=lambda row: -row[0]),
        }
        for kind in KINDS:
            picks += [Pick(detector, kind, which, score, threshold) for _margin, which, score, threshold in order[kind][:count]]
    overlays = [shown[category, image] for category, episode in chosen.items() for image in episode.queries[:count]]
    return Gallery(target, overlays, picks, tops)


def best_threshold(anomalous: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Return the threshold of the best F1, halfway between two scores. Scores above it are anomalous."""
    levels, place = np.unique(scores, return_inverse=True)
    falling, flagged = levels[::-1], np.cumsum(np.bincount(place)[::-1])
    hits = np.cumsum(np.bincount(place, anomalous)[::-1])
    best = int(np.argmax(2 * hits / (flagged + anomalous.sum())))
    return float((falling[best] + falling[min(best + 1, len(falling) - 1)]) / 2)


def write_galleries(folder: Path, galleries: Sequence[Gallery], advised: Mapping[str, str] | None = None) -> list[Path]:
    """Write the galleries as PNG files and return their paths.

        overlays-<target>.png     the first queries with the maps of all detectors
        <detector>-<target>.png   the detector's pictures of all KINDS
        short-<target>.png        the first picture of each kind, from the recommended detector

    advised: the recommended detectors by target.
    """
    written = []
    with made_anew(folder) as partial:
        for gallery in galleries:
            detectors = list(dict.fromkeys(pick.detector for pick in gallery.picks))
            sheets = {overlays_name(gallery.target): overlays(gallery)}
            sheets |= {f"{detector}-{gallery.target}.png": picks_sheet(gallery.of(detector), gallery) for detector in detectors}
            if advised is not None and gallery.target in advised:
                first = {pick.kind: pick for pick in reversed(gallery.of(advised[gallery.target]))}
                sheets[short_name(gallery.target)] = picks_sheet(sorted(first.values(), key=lambda pick: KINDS.index(pick.kind)), gallery)
            for name, sheet in sheets.items():
                if sheet is not None:
                    sheet.save(partial / name)
                    written.append(folder / name)
    return written


def overlays_name(target: str) -> str:
    return f"overlays-{target}.png"


def short_name(target: str) -> str:
    return f"short-{target}.png"


def overlays(gallery: Gallery) -> Image.Image | None:
    """Draw prompt, query with its mask outlined, and each detector's map over the query; one line a picture. None without pictures."""
    detectors = list(dict.fromkeys(name for shown in gallery.overlays for name in shown.maps))
    lines = []
    for shown in gallery.overlays:
        query = read_picture(place_of(shown.image), TILE)
        marked = query if shown.mask is None else outlined(query, read_mask(place_of(shown.mask), TILE))
        lines.append(SheetRow([_prompt(shown), marked, *(_heat(gallery, shown, name) for name in detectors)]))
    return contact_sheet([SheetRow(above=("prompt", "query", *detectors)), *lines]) if lines else None


FITS = 21  # characters that fit above each tile
SCALE = (256, 16)  # pixels: width and height of the colour scale


def picks_sheet(picks: Sequence[Pick], gallery: Gallery) -> Image.Image:
    """Draw the `strip` of each picture under a caption."""
    lines = [SheetRow(above=gallery.tiles)]
    for pick in picks:
        text = f"{pick.kind}: {pick.shown.category}, score {pick.score:.4f}, best F1 at {pick.threshold:.4f}, "
        image = _short(pick.shown.image)
        room = max(FITS * len(gallery.tiles) - len(text), 2)
        lines.append(SheetRow(_tiles(gallery, pick), (text + (image if len(image) <= room else f"…{image[1 - room :]}"),)))
    return contact_sheet(lines)


def strip(gallery: Gallery, pick: Pick) -> Image.Image:
    """Draw the tiles of a picture side by side: prompt, query, mask, and the detector's anomaly map over the query."""
    return contact_sheet([SheetRow(_tiles(gallery, pick))])


def colour_scale() -> Image.Image:
    """Draw the colours of all anomaly maps over grey, from 0 to twice the value that normal pictures reach."""
    width, height = SCALE
    ramp = np.repeat(np.linspace(0, 2, width)[None], height, axis=0)
    return Image.fromarray(heated(np.full((height, width, 3), 160, dtype=np.uint8), ramp, 1.0))


def caption(pick: Pick) -> str:
    """Describe a picture: category, label, score, threshold and file."""
    label = "anomalous" if pick.shown.label == ANOMALOUS else "normal"
    side = "above" if pick.score > pick.threshold else "below"
    judged = f"score {pick.score:.6f} {side} {pick.threshold:.6f}, the threshold of best F1"
    return f"{pick.shown.category}: {label}, {judged} ({_short(pick.shown.image)})"


def _short(image: str) -> str:
    """Return the last three parts of a path: category, defect and name."""
    return "/".join(Path(image).parts[-3:])


def _tiles(gallery: Gallery, pick: Pick) -> list[Picture]:
    shown = pick.shown
    masks = [_mask(shown)] if "mask" in gallery.tiles else []
    return [_prompt(shown), read_picture(place_of(shown.image), TILE), *masks, _heat(gallery, shown, pick.detector)]


def _mask(shown: Shown) -> Picture:
    """Draw a mask: black for a normal picture, grey for an anomalous one without a mask."""
    if shown.mask is None:
        return _blank(128 if shown.label == ANOMALOUS else 0)
    return np.repeat(read_mask(place_of(shown.mask), TILE)[..., None], 3, axis=2).astype(np.uint8) * 255


def _blank(level: int) -> Picture:
    return np.full((TILE, TILE, 3), level, dtype=np.uint8)


def _prompt(shown: Shown) -> Picture:
    return _blank(PAPER[0]) if shown.prompt is None else read_picture(place_of(shown.prompt), TILE)


def _heat(gallery: Gallery, shown: Shown, detector: str) -> Picture:
    if detector not in shown.maps:
        return _blank(PAPER[0])
    small = np.asarray(Image.fromarray(shown.maps[detector]).resize((TILE, TILE), Image.Resampling.BILINEAR))
    return heated(read_picture(place_of(shown.image), TILE), small, gallery.tops.get((shown.category, detector), 0.0))
