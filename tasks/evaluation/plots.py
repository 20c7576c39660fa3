"""ROC curves and overlays: pictures of an evaluation."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tasks.evaluation.evaluate import Shown, TargetResult
from tasks.evaluation.figures import auroc, rank
from tasks.files import written_beside
from tasks.pictures import Picture, read_mask, read_picture

matplotlib.use("agg")
TILE = 128  # pixels a side
GAP = 4
HEADER = 22
PAPER, INK, OUTLINE = (250, 250, 248), (30, 30, 30), (90, 255, 120)


def write_plots(folder: Path, results: Sequence[TargetResult]) -> list[Path]:
    """Writes roc-<target>.png and overlays-<target>.png for every target; gives their paths."""
    written = []
    with written_beside(folder) as partial:
        partial.mkdir()
        for result in results:
            for name, draw in (("roc", _roc), ("overlays", _overlays)):
                draw(result).save(partial / f"{name}-{result.target}.png")
                written.append(folder / f"{name}-{result.target}.png")
    return written


def _roc(result: TargetResult) -> Image.Image:
    """Image ROC of each detector at each number of shots: the mean curve over categories and seeds, class-specific if there is."""
    rows = result.scores.to_pylist()
    protocol = max(row["protocol"] for row in rows)  # class-specific, if both
    runs: dict[tuple[str, int], dict[tuple[str, int], list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["protocol"] == protocol:
            runs[row["detector"], row["shots"]][row["category"], row["seed"]].append((row["label"], row["score"]))
    detectors = list(dict.fromkeys(detector for detector, _shots in runs))
    figure = Figure(figsize=(4.2 * len(detectors), 4.2), layout="constrained")
    grid = np.linspace(0, 1, 201)
    for axes, detector in zip(figure.subplots(1, len(detectors), squeeze=False)[0], detectors, strict=True):
        levels = sorted(shots for name, shots in runs if name == detector)
        for shots, colour in zip(levels, colormaps["viridis"](np.linspace(0.85, 0.1, len(levels))), strict=True):
            curves, areas = [], []
            for pairs in runs[detector, shots].values():
                labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
                ranking = rank(labels == 1, scores)
                rates = (
                    np.append(0, ranking.false_positives / ranking.negatives),
                    np.append(0, ranking.true_positives / ranking.positives),
                )
                curves.append(np.interp(grid, *rates))
                areas.append(auroc(ranking))
            axes.plot(grid, np.mean(curves, axis=0), color=colour, label=f"{shots} shot{'s' * (shots > 1)}: {np.mean(areas):.3f}")
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")
        axes.set(title=f"{result.target}: {detector}", xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.legend(title=f"image AUROC, {protocol}", fontsize="small", loc="lower right")
    return _drawn(figure)


def _drawn(figure: Figure) -> Image.Image:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight")  # or titles and labels are cut at the figure's edge
    return Image.open(stream).convert("RGB")


def _overlays(result: TargetResult) -> Image.Image:
    """One line a picture: prompt, query with its mask outlined, and each detector's map over the query."""
    detectors = list(dict.fromkeys(name for shown in result.shown for name in shown.maps))
    columns = ["prompt", "query", *detectors]
    sheet = Image.new("RGB", (len(columns) * (TILE + GAP) + GAP, len(result.shown) * (TILE + GAP) + HEADER + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (TILE + GAP), 5), title, fill=INK, font=ImageFont.load_default(12))
    # One scale for a category's maps, so that a normal picture looks calm beside an anomalous one.
    scale = {
        (shown.category, name): _range([other.maps[name] for other in result.shown if other.category == shown.category])
        for shown in result.shown
        for name in shown.maps
    }
    for line, shown in enumerate(result.shown):
        tiles = [_prompt(shown), _query(shown)]
        tiles += [_heat(shown, shown.maps[name], scale[shown.category, name]) for name in detectors]
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (GAP + column * (TILE + GAP), HEADER + line * (TILE + GAP)))
    return sheet


def _prompt(shown: Shown) -> Picture:
    return np.full((TILE, TILE, 3), PAPER, dtype=np.uint8) if shown.prompt is None else read_picture(Path(shown.prompt), TILE)


def _query(shown: Shown) -> Picture:
    query = read_picture(Path(shown.image), TILE).copy()
    if shown.mask is not None:
        mask = read_mask(Path(shown.mask), TILE)
        inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        rim = mask.copy()
        rim[1:-1, 1:-1] &= ~inner
        query[rim] = OUTLINE
    return query


def _heat(shown: Shown, map_: NDArray[np.float32], scale: tuple[float, float]) -> Picture:
    low, high = scale
    level = np.clip((map_ - low) / max(high - low, 1e-6), 0, 1)
    small = np.asarray(Image.fromarray(level).resize((TILE, TILE), Image.Resampling.BILINEAR))
    colour = colormaps["turbo"](small)[..., :3] * 255
    opacity = (0.25 + 0.5 * small)[..., None]
    return (opacity * colour + (1 - opacity) * read_picture(Path(shown.image), TILE)).astype(np.uint8)


def _range(maps: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    stacked = np.stack(maps)
    return float(np.quantile(stacked, 0.5)), float(np.quantile(stacked, 0.998))
