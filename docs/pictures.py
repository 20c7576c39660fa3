"""Draw the pictures of the documentation: `python docs/pictures.py [NAME ...] [--to FOLDER]`.

Everything is drawn from pictures that come with packages, with the detectors that come with changepair, or from the CSV files next to the
pages. The same machine draws the same bytes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from charts import COLOURS, across_domains, black_prompt, chart, growth, prompts, ranking, registration, scales, self_residual
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from changepair import Predictor
from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.pictures import Mask, Picture, read_mask, read_picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.rows import write_rows
from changepair.tasks.common.sheets import INK, PAPER, heated, outlined
from changepair.tasks.ingestion.development.textures import CATEGORIES
from changepair.tasks.ingestion.objects.table import ObjectRow
from changepair.tasks.ingestion.packaged import PACKAGED
from changepair.tasks.ingestion.texture_defects import SIZE
from changepair.tasks.inpainting.inpainter import Inpainter, load_inpainter, write_choice
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.packaged.inpainting import write_packaged
from changepair.tasks.synthesis.changes import Materials
from changepair.tasks.synthesis.objects import Objects
from changepair.tasks.synthesis.pair import Maker
from changepair.tasks.synthesis.settings import AugmentationSettings, ChangeKind, GlobalKind, LocalKind, ObjectSettings, SynthesisSettings
from changepair.tasks.synthesis.shards import Pair

PAGES = Path(__file__).parent / "pages"
IMAGES = PAGES / "images"

SIDE, GAP = 184, 8  # pixels: of a tile, and between tiles
LETTERS, LINE = 0.018, 1.35  # size of letters, as a share of the picture's width, so that they stay legible; and of a line, in letters
GREY = (110, 110, 110)
DETECTORS = {
    "multi-scale-residual": "metric-residual,\n3 scales",
    "metric-residual": "metric-residual,\n1 scale",
    "prompt-query": "prompt-query",
    "metauas": "metauas",
}
RATE = 0.05  # false-alarm rate of the thresholds in the figures of failures: 19 normal pictures are enough for it


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PICTURES)} (default: all)")
    parser.add_argument("--to", type=Path, default=IMAGES, help="folder to write to (default: docs/pages/images)")
    asked = parser.parse_args()
    asked.to.mkdir(parents=True, exist_ok=True)
    for name in asked.names or PICTURES:
        PICTURES[name]().save(asked.to / f"{name}.png", optimize=True)


# Tiles


@dataclass(frozen=True)
class Tile:
    """A picture, or a panel of words, with lines of words above and below it."""

    picture: Picture | str
    above: str = ""
    below: str = ""


def sheet(rows: Sequence[Sequence[Tile]], *, arrows: bool = False) -> Image.Image:
    """Draw rows of tiles. arrows: whether an arrow leads from each tile to the next."""
    gap = 44 if arrows else GAP
    columns = max(map(len, rows))
    width = 2 * GAP + columns * SIDE + (columns - 1) * gap
    font = ImageFont.load_default(round(LETTERS * width))
    line = round(LINE * LETTERS * width)
    tops, height = [], GAP
    for row in rows:
        above = _lines(tile.above for tile in row)
        tops.append(height + above * line + (GAP if above and tops else 0))
        height = tops[-1] + SIDE + _lines(tile.below for tile in row) * line + GAP
    drawn = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(drawn)

    def write(left: int, top: int, words: str) -> None:
        for number, part in enumerate(words.splitlines()):
            draw.text((left, top + number * line), part, fill=INK, font=font)

    for row, top in zip(rows, tops, strict=True):
        for column, tile in enumerate(row):
            left = GAP + column * (SIDE + gap)
            write(left, top - 4 - _lines([tile.above]) * line, tile.above)
            write(left, top + SIDE + 2, tile.below)
            if isinstance(tile.picture, str):
                draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=GREY, fill=(255, 255, 255))
                write(left + 12, top + 10, tile.picture)
            else:
                drawn.paste(Image.fromarray(_square(tile.picture)), (left, top))
            if arrows and column + 1 < len(row):
                start, middle = left + SIDE + 8, top + SIDE // 2
                draw.line((start, middle, start + 16, middle), fill=GREY, width=4)
                draw.polygon([(start + 16, middle - 9), (start + 16, middle + 9), (start + 29, middle)], fill=GREY)
    return drawn


def _lines(texts: Iterable[str]) -> int:
    return max(len(words.splitlines()) for words in texts)


def _square(picture: Picture) -> Picture:
    how = Image.Resampling.NEAREST if len(picture) < SIDE // 4 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), how))


def white_on_black(mask: Mask) -> Picture:
    return np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255


# Packaged data


@cache
def dataset(name: str) -> Path:
    """Write a packaged dataset to a temporary folder, and return the folder."""
    folder = Path(_work().name) / name
    PACKAGED[name].write(folder)
    return folder


@cache
def _work() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="changepair-pictures-")


def mask_of(picture: Path) -> Mask | None:
    """Return the mask of a test picture in MVTec AD's layout, if there is one."""
    file = picture.parents[2] / "ground_truth" / picture.parent.name / f"{picture.stem}_mask.png"
    return read_mask(file, SIZE) if file.is_file() else None


def normals_of(category: Path) -> list[Path]:
    """List the normal pictures of a category: the first prompts, and the others set the threshold. Those of the digits for testing are left
    out."""
    splits = ("train",) if category.name == "digits" else ("train", "test")
    return [file for split in splits for file in sorted((category / split / "good").glob("*.png"))]


@cache
def calibrated(model: str, category: Path) -> Predictor:
    """Load a detector with the first normal picture as its prompt, and a threshold from the others."""
    prompt, *others = normals_of(category)
    predictor = Predictor.load(model).prompt(prompt)
    predictor.calibrate(others, false_alarms=RATE)
    return predictor


def judged(model: str, category: Path, picture: Picture, *, anomalous: bool, above: str) -> Tile:
    """Score a picture, and draw its map with the verdict."""
    predictor = calibrated(model, category)
    [prediction] = predictor.each([picture])
    assert predictor.threshold is not None
    flagged = predictor.threshold.exceeded(prediction.score)
    verdict = ("found" if flagged else "missed") if anomalous else ("false alarm" if flagged else "passed")
    ratio = prediction.score / predictor.threshold.value
    return Tile(heated(picture, prediction.map, predictor.top), above, f"{verdict} ({ratio:.2f})")


def cases(rows: Iterable[tuple[Path, str, Picture, Mask | None, bool]]) -> Image.Image:
    """Draw a row for each case: the prompt, the query, and the verdict and the map of each detector. rows: the category, what the query
    shows, the query, its mask, and whether it is anomalous."""
    lines = []
    for number, (category, words, picture, mask, anomalous) in enumerate(rows):
        first = number == 0
        prompt = Tile(read_picture(normals_of(category)[0]), "prompt" if first else "", category.name)
        shown = picture if mask is None else outlined(picture, mask)
        query = Tile(shown, "query" if first else "", words)
        heads = [DETECTORS[model] if first else "" for model in DETECTORS]
        lines.append(
            [
                prompt,
                query,
                *(judged(m, category, picture, anomalous=anomalous, above=head) for m, head in zip(DETECTORS, heads, strict=True)),
            ]
        )
    return sheet(lines)


# Pictures


def pipeline() -> Image.Image:
    """Photograph → pair → detector → kit."""
    [pair] = pairs_of("exchange", [PIPELINE_PAIR])
    photograph = _middle(read_picture(Path(pair.source)))
    category = dataset("texture-defects") / "weave"
    part = category / "test" / "hole" / "001.png"
    predictor = calibrated("multi-scale-residual", category)
    [prediction] = predictor.each([part])
    assert predictor.threshold is not None
    verdict = "anomalous" if predictor.threshold.exceeded(prediction.score) else "normal"
    kit = f"prompts: 1 picture\nthreshold: {predictor.threshold.value:.3f}\n\nnew part: {prediction.score:.3f}\n{verdict}"
    return sheet(
        [
            [
                Tile(photograph, "1. photograph"),
                Tile(pair.prompt, "2. pair: prompt"),
                Tile(pair.query, "query"),
                Tile(white_on_black(pair.mask), "mask of the change"),
            ],
            [
                Tile(read_picture(normals_of(category)[0]), "3. detector: prompt"),
                Tile(read_picture(part), "new part"),
                Tile(heated(prediction.picture, prediction.map, predictor.top), "anomaly map"),
                Tile(kit, "4. kit"),
            ],
        ],
        arrows=True,
    )


def _middle(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def pairs() -> Image.Image:
    """A pair of each kind: prompt, query and mask."""
    triples = []
    for kind, number in PAIRS.items():
        [pair] = pairs_of(kind, [number])
        told = "mask" if pair.mask.any() else "mask: no change"
        triples.append([Tile(pair.prompt, kind, "prompt"), Tile(pair.query, "", "query"), Tile(white_on_black(pair.mask), "", told)])
    return sheet([[*left, *right] for left, right in zip(triples[::2], triples[1::2], strict=True)])


def defects(kinds: Sequence[ChangeKind]) -> Image.Image:
    """Five queries of each kind, without a change of geometry or light. The change is outlined if the kind has a mask."""
    rows = []
    for kind in kinds:
        still = {"augmentation": AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0), "swapped": 0.0, "apart": 0.0}
        shown = [outlined(pair.query, ndimage.binary_dilation(pair.mask, iterations=2)) for pair in pairs_of(kind, range(5), **still)]
        rows.append([Tile(picture, kind if not column else "") for column, picture in enumerate(shown)])
    return sheet(rows).quantize(256)  # a third of the bytes


def pairs_of(kind: ChangeKind, numbers: Sequence[int], **options: Any) -> list[Pair]:
    """Make pairs of a kind from the packaged photographs, by the packaged inpainting model."""
    cv2.setNumThreads(1)
    settings = SynthesisSettings(kinds={kind: 1.0}, regenerated=0.0, objects=ObjectSettings(area=(0.02, 0.2)), **options)
    photographs = Photographs(
        sorted(str(file) for file in (dataset("sample-photos") / "train/good").glob("*.png")), settings.crop, settings.resolution
    )
    table = Path(_work().name) / "objects.parquet"
    write_rows(table, ObjectRow, [])
    materials = Materials(settings, photographs, photographs, Objects(settings.objects, photographs, table))
    return list(Maker(materials, inpainter() if settings.repaints else None).make(numbers))


@cache
def inpainter() -> Inpainter:
    folder = Path(_work().name) / "inpainter"
    write_packaged(folder)
    write_choice(folder, InpainterSettings(model="packaged"))
    return load_inpainter(folder, RepaintingSettings())


def failures() -> Image.Image:
    """Defects that detectors miss: from one that all find to one that none finds."""
    textures, development = dataset("texture-defects"), dataset("development-textures")
    chosen = [
        (textures / "weave", "hole/001", "a hole"),
        (textures / "brick", "scratch/001", "a scratch"),
        (development / "knit", "shifted/004", "a shifted band"),
        (development / "pebbles", "crack/000", "a crack"),
        (dataset("digits"), "digit-3/0059", "a 3 among zeros"),
    ]
    rows = []
    for category, name, words in chosen:
        file = category / "test" / f"{name}.png"
        rows.append((category, words, read_picture(file), mask_of(file), True))
    return cases(rows)


def quickstart() -> Image.Image:
    """The first defect of each texture, as five detectors see it."""
    rows = []
    for category in sorted(dataset("texture-defects").iterdir()):
        file = next(file for file in sorted((category / "test").glob("*/000.png")) if file.parent.name != "good")
        mask = mask_of(file)
        assert mask is not None
        first = not rows
        tiles = [Tile(read_picture(normals_of(category)[0]), "prompt" if first else "")]
        tiles.append(Tile(outlined(read_picture(file), mask), "query" if first else ""))
        for model, name in {"patch-residual": "patch-residual", **DETECTORS}.items():
            predictor = calibrated(model, category)
            [prediction] = predictor.each([file])
            tiles.append(Tile(heated(prediction.picture, prediction.map, predictor.top), name if first else ""))
        rows.append(tiles)
    return sheet(rows)


def false_alarms() -> Image.Image:
    """Normal pictures that look different: the same part under another camera, another light, in another pose."""
    weave, brick = (dataset("texture-defects") / name for name in ("weave", "brick"))
    normal, wall = (read_picture(category / "test/good/001.png") for category in (weave, brick))
    zero = dataset("digits") / "test/good/0824.png"
    return cases(
        [
            (weave, "unchanged", normal, None, False),
            (weave, "out of focus", blurred(normal, 1.5), None, False),
            (weave, "less light", np.rint(normal * 0.6).astype(np.uint8), None, False),
            (brick, "a shadow", shaded(wall), None, False),
            (brick, "turned by 90°", np.ascontiguousarray(np.rot90(wall)), None, False),
            (dataset("digits"), "another hand", read_picture(zero), None, False),
        ]
    )


def blurred(picture: Picture, sigma: float) -> Picture:
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(picture: Picture, rng: np.random.Generator) -> Picture:
    """Add noise of 12 grey levels."""
    return np.clip(picture + rng.normal(0, 12, picture.shape[:2])[..., None], 0, 255).round().astype(np.uint8)


def shaded(picture: Picture) -> Picture:
    """Darken the right half of a picture to 60 %, with a soft edge."""
    light = ndimage.gaussian_filter1d(np.where(np.arange(picture.shape[1]) < picture.shape[1] / 2, 1.0, 0.6), 4)
    return np.rint(picture * light[:, None]).astype(np.uint8)


# Charts


def reruns() -> Image.Image:
    """Which stages an edit reruns, as a table of dots."""
    stages = ("code", "ingest", "sample", "inpainter", "synthesize", "train", "score", "metrics", "report")
    edits = {
        "a comment or docstring": ("code",),
        "the text of the report": ("code", "report"),
        "a metric's formula": ("code", "metrics", "report"),
        "a detector's settings": ("code", "train", "score", "metrics", "report"),
        "the settings of pairs": ("code", "synthesize", "train", "score", "metrics", "report"),
        "a target's test picture": ("ingest", "sample", "score", "metrics", "report"),
    }

    def draw(axes: Sequence[Axes]) -> None:
        [ax] = axes
        for row, rerun in enumerate(edits.values()):
            for column, stage in enumerate(stages):
                ax.plot(column, row, "o", markersize=13, color=COLOURS[0] if stage in rerun else "#e4e4e0")
        ax.set(xlim=(-0.5, len(stages) - 0.5), ylim=(len(edits) - 0.5, -0.5))
        ax.set_xticks(range(len(stages)), stages)
        ax.set_yticks(range(len(edits)), edits)
        ax.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9)
        for side in ax.spines.values():
            side.set_visible(False)

    return chart(draw, size=(7.6, 2.7))


def promotion() -> Image.Image:
    """The gate, and how a model becomes the current one."""
    places = {
        "candidate\n(retrained)": (0.0, 0.0),
        "gate: same prompts,\nsame queries": (1.9, 0.0),
        "the candidate is the\ncurrent model": (4.0, 0.55),
        "the current model\nstays": (4.0, -0.55),
        "previous\nmodel": (6.1, 0.55),
    }
    arrows = {
        ((0.45, 0.0), (1.15, 0.0)): ("", 0.0),
        ((2.62, 0.15), (3.25, 0.5)): ("not worse", 0.3),
        ((2.62, -0.15), (3.25, -0.5)): ("may be worse", -0.45),
        ((4.72, 0.55), (5.65, 0.55)): ("rollback", 0.12),
    }

    def draw(axes: Sequence[Axes]) -> None:
        [ax] = axes
        ax.axis("off")
        ax.set(xlim=(-0.5, 6.6), ylim=(-1, 1))
        for (start, end), (words, above) in arrows.items():
            look = {"arrowstyle": "-|>", "color": "#777777", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5}
            ax.annotate("", end, start, arrowprops=look)
            ax.text((start[0] + end[0]) / 2 - abs(above) * 0.3, (start[1] + end[1]) / 2 + above, words, ha="center", fontsize=9)
        for words, (x, y) in places.items():
            look = {"boxstyle": "round,pad=0.5", "facecolor": "#ffffff", "edgecolor": "#777777"}
            ax.text(x, y, words, ha="center", va="center", bbox=look, fontsize=10)

    return chart(draw, size=(7.6, 2.3))


def threshold() -> Image.Image:
    """Scores of normal and defective pictures against a threshold, with the camera that set it and with another."""
    name = "dots"
    category = dataset("development-textures") / name
    predictor = Predictor.load("metric-residual").prompt(normals_of(category)[0])

    def normal(number: int) -> Picture:
        grey = np.rint(CATEGORIES[name].texture(generator(0, name, "threshold", number), "test")).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)

    set_by = predictor.calibrate((normal(number) for number in range(SET_BY)), false_alarms=0.01)
    new = [normal(number) for number in range(SET_BY, SET_BY + NEW)]
    groups = {
        f"{NEW} new normal pictures": new,
        f"the same {NEW} from a noisier sensor": [noisy(picture, generator(0, "noise", number)) for number, picture in enumerate(new)],
        "18 defective pictures": sorted(file for file in (category / "test").glob("*/*.png") if file.parent.name != "good"),
    }
    scores = {words: predictor(pictures).scores for words, pictures in groups.items()}

    def draw(axes: Sequence[Axes]) -> None:
        [ax] = axes
        high = max(float(found.max()) for found in scores.values())
        edges = np.linspace(min(float(found.min()) for found in scores.values()), high, 60)
        colours = (COLOURS[0], COLOURS[4], COLOURS[1])
        for (words, found), colour in zip(scores.items(), colours, strict=True):
            above = sum(map(set_by.exceeded, found.tolist()))
            ax.hist(found, edges, color=colour, alpha=0.6, label=f"{words}: {above} above")
        ax.axvline(set_by.value, color="#222222", linewidth=1.5)
        ax.set_ylim(top=1.2 * ax.get_ylim()[1])
        ax.annotate(f" threshold {set_by.value:.4f}, set by {SET_BY} others", (set_by.value, 0.93 * ax.get_ylim()[1]), fontsize=9)
        ax.set(xlabel="image score", ylabel="pictures")
        ax.legend(loc="center right")

    return chart(draw)


PIPELINE_PAIR = 9  # number of the pair
PAIRS: dict[ChangeKind, int] = {"appearance": 9, "disappearance": 8, "exchange": 0, "local-region": 10, "distractor": 3, "none": 5}
SET_BY, NEW = 199, 200  # normal pictures
PICTURES: dict[str, Callable[[], Image.Image]] = {
    "pipeline": pipeline,
    "pairs": pairs,
    "defects-1": partial(defects, get_args(LocalKind)[:6]),
    "defects-2": partial(defects, get_args(LocalKind)[6:16]),
    "defects-3": partial(defects, get_args(LocalKind)[16:]),
    "defects-4": partial(defects, get_args(GlobalKind)),
    "quickstart": quickstart,
    "failures": failures,
    "false-alarms": false_alarms,
    "threshold": threshold,
    "reruns": reruns,
    "promotion": promotion,
    "quality-prompts": prompts,
    "quality-black-prompt": black_prompt,
    "quality-self-residual": self_residual,
    "quality-registration": registration,
    "quality-ranking": ranking,
    "quality-scales": scales,
    "quality-domains": across_domains,
    "growth": growth,
}

if __name__ == "__main__":
    main()
