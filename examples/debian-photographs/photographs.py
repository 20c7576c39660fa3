"""Make datasets of photographs, textures and object cut-outs from unpacked Debian packages.

    python photographs.py <folder of unpacked packages> <folder to write>

Writes three tables of the layout `table`, with the licence of each picture: `photographs.csv`, `textures.csv` and `objects.csv`. The
pictures of `objects` show cut-outs on grounds. `masks/` holds their masks, for `datasets.objects` with `format: masks`.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

LONGEST_SIDE = 1024  # pixels
SCENES, SCENE_SIDE = 900, 320  # number of pictures of objects, and their side in pixels
MOST_OBJECTS = 5
PLAIN = 0.5  # share of the scenes on a ground of one colour; the others have a texture
REPEATED = 0.4  # share of the scenes that show one object several times
MOST_EQUAL = 0.13  # share of neighbouring pixels of one colour, above which a stamp or texture is a drawing
LEAST_SIDE = {"objects": 70, "textures": 240}  # pixels

# Files of each package, by the end of their path. Drawings, renderings of desktops and second sizes of one picture are left out.
PHOTOGRAPHS = {
    "mate-backgrounds": ("nature/*.jpg",),
    "plasma-workspace-wallpapers": ("contents/images/2560x1600.jpg",),
}
TEXTURES = {
    "gnome-backgrounds": ("gnome/grid-?.webp", "gnome/wood-?.webp"),
    "supertuxkart-data": ("data/textures/*.jpg", "data/textures/*.png", "data/tracks/*.jpg", "data/tracks/*.png", "data/library/*.png"),
}
OBJECTS = {"tuxpaint-stamps-default": ("stamps/*.png",)}
SHOWS = re.compile(
    "rock|stone|wood|bark|dirt|sand|grass|earth|soil|snow|ice|marble|concrete|asphalt|tarmac|wall|roof|plank|board|canyon|leather|ceramic|"
    "plaster|stucco|floor|thatch|wicker|moss|coral|straw|plastic|carpet|paper|water|tile|pav|cliff|mud|bamboo|hay|grid"
)
# Maps of normals, gloss and opacity; pictures of places; and domains that this project evaluates on: brick, gravel, metal, cloth, cells.
LEFT_OUT = re.compile(
    "_nm|normal|_n[.]|nor[.]|gloss|alpha|screenshot|sky|flag|kart|brick|grav|metal|steel|weave|cloth|fabric|towel|solar|wallpaper"
)
# Folders of drawings, of letters and digits, which are evaluated on, and of light without an outline.
NO_OBJECTS = re.compile(
    "cartoon|alphabets|math|00_symbols|music/|faces|shapes|chess|flags|seasonal|clothes|people|naturalforces|space|roadsigns"
)


@dataclass(frozen=True)
class Taken:
    """A picture of a package, (H, W, 4) uint8 RGBA, and its licence."""

    name: str
    picture: NDArray[np.uint8]
    licence: str


def taken(packages: Path, wanted: dict[str, tuple[str, ...]]) -> Iterator[Taken]:
    """Yield the files of each package whose path ends in one of the patterns, in the order of their paths, each content once."""
    seen = set()
    for package, patterns in wanted.items():
        root = packages / package
        licences = read_licences(root / "usr/share/doc" / package)
        for file in sorted(root.rglob("*")):
            path = file.relative_to(root).as_posix()
            if not (file.is_file() and any(fnmatch(path, f"*/{one}") for one in patterns)):
                continue
            with Image.open(file) as image:
                picture = np.asarray(image.convert("RGBA"))
            if picture.tobytes() not in seen:
                seen.add(picture.tobytes())
                yield Taken(path, picture, f"{licence_of(path, licences)} (Debian package {package})")


def read_licences(folder: Path) -> list[tuple[list[str], str]]:
    """Read the copyright file of a package: patterns of files, and their licence, by paragraph.

    Without paragraphs, read AUTHORS: lines such as ` - grid*:`, and after them the sentence that licences these files.
    """
    text = (folder / "copyright").read_text(encoding="utf-8")
    found = re.findall(r"^Files:((?:.*\n)(?:[ \t].*\n)*)(?:(?!\n).*\n)*?License:[ \t]*(\S.*)$", text, flags=re.MULTILINE)
    if not found:
        text = (folder / "AUTHORS").read_text(encoding="utf-8")
        found = re.findall(r"((?:^ ?- \S+\n)+)(?:.*\n)*?.*Licensed under (.*?) License", text, flags=re.MULTILINE)
    return [([one.strip("-:") for one in patterns.split() if one != "-"], licence.strip()) for patterns, licence in found]


def licence_of(path: str, licences: Sequence[tuple[list[str], str]]) -> str:
    """Return the licence of the last paragraph that matches, as the format defines. Paths of the source end installed ones.

    Raises ValueError if none does, because a picture without a licence must not be used.
    """
    found = [licence for patterns, licence in licences if any(fnmatch(f"/{path}".lower(), f"*/{one}".lower()) for one in patterns)]
    if not found:
        raise ValueError(f"{path}: its package states no licence; remove its pattern")
    return found[-1]


def is_drawn(picture: NDArray[np.uint8]) -> bool:
    """Return whether too many neighbouring opaque pixels have exactly one colour. A photograph has grain everywhere."""
    colours, opaque = picture[..., :3].astype(int), picture[..., 3] > 250
    equal = pairs = 0
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        both = opaque[one] & opaque[other]
        equal, pairs = equal + int((both & (colours[one] == colours[other]).all(axis=-1)).sum()), pairs + int(both.sum())
    return equal > MOST_EQUAL * pairs


def photographs(packages: Path) -> Iterator[Taken]:
    yield from taken(packages, PHOTOGRAPHS)


def textures(packages: Path) -> Iterator[Taken]:
    """Yield photographed or painted materials. Maps of other properties, transparent pictures and drawings are left out."""
    for one in taken(packages, TEXTURES):
        name = Path(one.name).name.lower()
        large = min(one.picture.shape[:2]) >= LEAST_SIDE["textures"] and one.picture[..., 3].min() == 255
        if large and SHOWS.search(name) and not LEFT_OUT.search(name) and not is_drawn(one.picture):
            yield one


def cutouts(packages: Path) -> Iterator[Taken]:
    """Yield photographed stamps, cropped to what is opaque."""
    for one in taken(packages, OBJECTS):
        opaque = one.picture[..., 3] > 127
        if NO_OBJECTS.search(one.name) or not opaque.any() or is_drawn(one.picture):
            continue
        rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
        cut = one.picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if max(cut.shape[:2]) >= LEAST_SIDE["objects"] and opaque.mean() > 0.1:
            yield Taken(one.name, cut, one.licence)


def scene(grounds: Sequence[Taken], objects: Sequence[Taken], rng: np.random.Generator) -> tuple[Image.Image, Image.Image, str]:
    """Put one to MOST_OBJECTS objects on a ground. Return the picture, the mask with one value an object, and the licences."""
    plain = rng.random() < PLAIN
    ground = grounds[int(rng.integers(len(grounds)))]
    picture = _plain(rng) if plain else _cut(ground.picture, rng)
    numbers = Image.new("L", picture.size)
    used = [] if plain else [ground]
    count = int(rng.integers(1, MOST_OBJECTS + 1))
    chosen = [objects[int(number)] for number in rng.integers(len(objects), size=count)]
    if rng.random() < REPEATED:
        chosen = chosen[:1] * count
    size = SCENE_SIDE * rng.uniform(0.9, 1.3) / (count**0.5 + 1)
    for one in chosen:
        stamp = Image.fromarray(one.picture)
        stamp = stamp.resize(tuple(max(8, round(side * size / max(stamp.size))) for side in stamp.size), Image.Resampling.LANCZOS)
        stamp = stamp.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
        opacity = stamp.getchannel("A").point(lambda value: 255 if value > 127 else 0)
        for _draw in range(20):
            left, top = (int(rng.integers(max(1, SCENE_SIDE - side))) for side in stamp.size)
            box = (left, top, left + stamp.width, top + stamp.height)
            if numbers.crop(box).getbbox() is None:
                picture.paste(stamp, (left, top), stamp)
                numbers.paste(len(used) + 1, (left, top), opacity)
                used.append(one)
                break
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), numbers, "; ".join(sorted({one.licence for one in used}))


def _plain(rng: np.random.Generator) -> Image.Image:
    """Return a ground of one colour with a gradient and grain."""
    along = np.linspace(-1, 1, SCENE_SIDE)
    slope = rng.uniform(-20, 20, size=2)
    light = slope[0] * along[:, None] + slope[1] * along
    grain = rng.normal(0, rng.uniform(0.5, 4), (SCENE_SIDE, SCENE_SIDE))
    colour = rng.uniform(0, 255) + rng.normal(0, 15, 3)
    return Image.fromarray(np.clip(colour + (light + grain)[..., None], 0, 255).astype(np.uint8))


def _cut(picture: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
    height, width = picture.shape[:2]
    side = int(rng.uniform(0.5, 1) * min(height, width))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    square = Image.fromarray(picture[top : top + side, left : left + side, :3])
    return square.resize((SCENE_SIDE, SCENE_SIDE), Image.Resampling.LANCZOS)


def write_table(folder: Path, name: str, rows: Sequence[tuple[str, str]]) -> None:
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("image", "category", "split", "label", "licence"))
        table.writerows((image, name, "train", 0, licence) for image, licence in rows)


def write(folder: Path, name: str, pictures: Sequence[Taken]) -> None:
    """Write pictures as PNG, at most LONGEST_SIDE a side, and their table."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, one in enumerate(pictures):
        image = Image.fromarray(one.picture).convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        place = f"{name}/{number:04d}-{Path(one.name).parent.name}-{Path(one.name).stem}.png"
        image.save(folder / place)
        rows.append((place, one.licence))
    write_table(folder, name, rows)


def write_scenes(folder: Path, grounds: Sequence[Taken], objects: Sequence[Taken]) -> None:
    for part in ("objects", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(SCENES):
        picture, numbers, licence = scene(grounds, objects, np.random.default_rng(number))
        picture.save(folder / "objects" / f"{number:04d}.png")
        numbers.save(folder / "masks" / f"{number:04d}.png")
        rows.append((f"objects/{number:04d}.png", licence))
    write_table(folder, "objects", rows)


def main(packages: Path, folder: Path) -> None:
    grounds, objects = list(textures(packages)), list(cutouts(packages))
    write(folder, "photographs", list(photographs(packages)))
    write(folder, "textures", grounds)
    write_scenes(folder, grounds, objects)
    print(f"{folder}: {len(grounds)} textures, {SCENES} pictures of {len(objects)} objects")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
