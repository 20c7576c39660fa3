"""Read datasets without a split, which are labelled by names, folders or a list.

Normal pictures are split as in InCTRL (arXiv 2403.06495, and its conversion scripts). A quarter of them is for testing, drawn from the
order of their names by scikit-learn's train_test_split with random_state 42.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from changepair.tasks.common.decoding import decode
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import UNREADABLE, Mask, picture_size, read_marks
from changepair.tasks.common.texts import csv_lines, read_text
from changepair.tasks.ingestion.listing import (
    GOOD,
    DatasetFolder,
    Item,
    ListedPicture,
    Rejected,
    Unusable,
    files,
    folders,
    picture,
    write_png,
)

TEST_SHARE, SPLIT_SEED = 0.25, 42


def split_normal(images: Sequence[Path]) -> dict[Path, str]:
    """Split normal pictures into those for training and those for testing."""
    from sklearn.model_selection import train_test_split  # here, because it costs a second that other datasets do not need

    tested = set(train_test_split(list(images), test_size=TEST_SHARE, random_state=SPLIT_SEED)[1]) if len(images) > 1 else set()
    return {image: "test" if image in tested else "train" for image in images}


def _labelled(normal: Sequence[Path], anomalous: Sequence[Path], category: str, defect: str) -> Iterator[Item]:
    split = split_normal(normal)
    yield from (picture(file, category, split[file], GOOD) for file in normal)
    yield from (picture(file, category, "test", defect) for file in anomalous)


def elpv(source: DatasetFolder) -> Iterator[Item]:
    """Read labels.csv, or src/elpv_dataset/data/labels.csv as in the repository."""
    inner = () if (source.folder / "labels.csv").exists() else ("src", "elpv_dataset", "data")
    yield from _on_disk(elpv_cells(source.needs(*inner, "labels.csv"), source.name))


def elpv_cells(labels: Path, category: str) -> Iterator[Item]:
    """Read ELPV's labels. A line such as `images/cell0001.png  1.0  mono` holds a picture, its defect probability and its crystal type.

    The split is that of InCTRL's tables. Cells of probability 0 are normal: 1,131 for training, 377 for testing. The 715 cells of
    probability 1 are anomalous. Cells that the experts were unsure about are left out.
    """
    cells: dict[Path, float] = {}
    for number, line in enumerate(read_text(labels).splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            image, probability = labels.parent / parts[0], float(parts[1])
        except (IndexError, ValueError) as error:
            raise BadInput(f"{labels}: line {number} must name a picture and its probability, not {line.strip()[:80]!r}") from error
        if not 0 <= probability <= 1:
            raise BadInput(f"{labels}: line {number}: {parts[1]} is not a probability from 0 to 1")
        if image in cells:
            raise BadInput(f"{labels}: line {number}: {parts[0]} is listed twice; list it once")
        cells[image] = probability
    sure = {probability: [image for image, given in cells.items() if given == probability] for probability in (0.0, 1.0)}
    for image, probability in cells.items():
        if probability not in sure:
            yield Rejected(image, f"the experts were unsure about it (defect probability {probability:g})")
    yield from _labelled(sure[0.0], sure[1.0], category, "defective")


def yes_no(source: DatasetFolder) -> Iterator[Item]:
    """Read BrainMRI as on Kaggle: no/ without a tumour, yes/ with one."""
    return _labelled(files(source.needs("no")), files(source.needs("yes")), source.name, "tumour")


def head_ct(source: DatasetFolder) -> Iterator[Item]:
    """Read labels.csv (id, hemorrhage) and head_ct/000.png, which Kaggle packs in another folder head_ct."""
    folder = next((at for at in ("head_ct/head_ct", "head_ct") if (source.folder / at / "000.png").is_file()), "head_ct")
    labels = source.needs("labels.csv")
    rows: dict[Path, int] = {}
    for line, row in list(csv_lines(labels))[1:]:
        if not row:
            continue
        try:
            file, label = source.folder / folder / f"{int(row[0]):03d}.png", int(row[1])
        except (IndexError, ValueError) as error:
            raise BadInput(f"{labels}: line {line} must hold a picture's number and its label, not {','.join(row)[:80]!r}") from error
        if label not in (0, 1):
            raise BadInput(f"{labels}: line {line}: label {row[1][:80]} is not 0 or 1")
        if file in rows:
            raise BadInput(f"{labels}: line {line}: picture {row[0][:80]} is listed twice; list it once")
        rows[file] = label
    normal, anomalous = ([file for file, label in rows.items() if label == wanted] for wanted in (0, 1))
    yield from _on_disk(_labelled(normal, anomalous, source.name, "haemorrhage"))


def sdd2(source: DatasetFolder) -> Iterator[Item]:
    """Read KolektorSDD2: train/10000.png with train/10000_GT.png, and test/ likewise. A picture whose mask marks nothing is normal."""
    for split in ("train", "test"):
        listed = files(source.needs(split))
        masks = {file.stem.removesuffix("_GT"): file for file in listed if file.stem.endswith("_GT")}
        for file in listed:
            if file.stem.endswith("_GT"):
                continue
            mask = masks.pop(file.stem, None)
            if mask is None:
                yield Rejected(file, f"mask {file.stem}_GT.png is missing, so its label is unknown")
            elif (marked := _marked(mask)) is None:
                yield Rejected(file, f"its mask {mask.name} cannot be decoded")
            elif marked.any():
                yield picture(file, source.name, split, "defect", lambda _file, mask=mask: (mask,))  # type: ignore[misc]
            else:
                yield picture(file, source.name, split, GOOD)
        yield from (Rejected(mask, "a mask without a picture") for mask in masks.values())


PieceBox = tuple[int, int, int, int]  # left, top, right, bottom
Boxes = Callable[[int, int], list[PieceBox]]  # for a picture's width and height


def kolektor(source: DatasetFolder) -> Iterator[Item]:
    """Read KolektorSDD (Tabernik et al., 2019): kos01/Part0.jpg with kos01/Part0_label.bmp.

    Every picture is cut across into three pieces, as in InCTRL. A piece is normal if its part of the label marks nothing.
    """
    pairs = []
    for folder in folders(source.folder):
        for file in files(folder):
            if file.stem.endswith("_label"):
                continue
            label = file.with_name(f"{file.stem}_label.bmp")
            if label.is_file():
                pairs.append((file, label, f"{folder.name}_{file.stem}"))
            else:
                yield Rejected(file, f"label {label.name} is missing, so it cannot be classified")
    if not pairs:
        raise BadInput(f"{source.name}: {source.folder} has no <part>/<picture>.jpg with <picture>_label.bmp next to it")
    yield from _cut(source, pairs, lambda _name: "defect", _thirds, keep_normal=True)


# The defects' codes are the second number in a picture's name (Silvestre-Blanes et al., AUTEX Research Journal 2019).
AITEX_DEFECTS = {
    "002": "broken-end",
    "006": "broken-yarn",
    "010": "broken-pick",
    "016": "weft-curling",
    "019": "fuzzy-ball",
    "022": "cut-selvage",
    "023": "crease",
    "025": "warp-ball",
    "027": "knots",
    "029": "contamination",
    "030": "nep",
    "036": "weft-crack",
}


def aitex(source: DatasetFolder) -> Iterator[Item]:
    """Read strips of 4096x256, cut to squares as in InCTRL.

    Squares of NODefect_images/<fabric>/*.png are normal. Squares of Defect_images/0001_002_00.png that Mask_images/0001_002_00_mask.png (or
    _mask1) marks are anomalous. Its other squares are left out.
    """
    pieces: list[ListedPicture] = []
    for file in (file for folder in folders(source.needs("NODefect_images")) for file in files(folder)):
        size = _size(file)
        if size is None:
            yield Rejected(file, "cannot be decoded: truncated or not an image")
            continue
        for number, box in enumerate(_squares(*size)):
            image = source.written / GOOD / f"{file.parent.name}_{file.stem}_{number}.png"
            pieces.append(ListedPicture(image, source.name, "train", GOOD, (), partial(_write_piece, file, box, image)))
    yield from _split(pieces)
    pairs = []
    for file in files(_once_more(source.needs("Defect_images"))):
        masks = _once_more(source.needs("Mask_images"))
        mask = next((at for ending in ("_mask", "_mask1") if (at := masks / f"{file.stem}{ending}.png").is_file()), None)
        if mask is None:
            yield Rejected(file, f"mask {file.stem}_mask.png is missing, so it is unknown which squares are anomalous")
        else:
            pairs.append((file, mask, file.stem))
    yield from _cut(source, pairs, lambda name: AITEX_DEFECTS.get(name.split("_")[1], "defect"), _squares, keep_normal=False)


def _once_more(folder: Path) -> Path:
    """Return the inner folder, if Kaggle packs the folder in another one of the same name."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _cut(
    source: DatasetFolder, pairs: Sequence[tuple[Path, Path, str]], defect: Callable[[str], str], boxes: Boxes, *, keep_normal: bool
) -> Iterator[Item]:
    """Cut pictures into pieces. A piece is anomalous if the same piece of its mask marks anything."""
    normal: list[ListedPicture] = []
    anomalous: list[ListedPicture] = []
    for file, mask, name in pairs:
        marked, size = _marked(mask), _size(file)
        if marked is None or size is None:
            yield Rejected(file, f"the picture or its mask {mask.name} cannot be decoded")
            continue
        if (marked.shape[1], marked.shape[0]) != size:
            yield Rejected(file, f"its mask {mask.name} is {marked.shape[1]}x{marked.shape[0]} pixels, but the picture {size[0]}x{size[1]}")
            continue
        for number, box in enumerate(boxes(*size)):
            piece = marked[box[1] : box[3], box[0] : box[2]]
            kind = defect(name) if piece.any() else GOOD
            image, truth = (source.written / folder / f"{name}_{number}.png" for folder in (kind, "masks"))
            if kind != GOOD:
                anomalous.append(
                    ListedPicture(image, source.name, "test", kind, (truth,), partial(_write_piece, file, box, image, piece, truth))
                )
            elif keep_normal:
                normal.append(ListedPicture(image, source.name, "train", GOOD, (), partial(_write_piece, file, box, image)))
    yield from _split(normal)
    yield from anomalous


def _split(pieces: Sequence[ListedPicture]) -> Iterator[ListedPicture]:
    split = split_normal([piece.image for piece in pieces])
    yield from (replace(piece, split=split[piece.image]) for piece in pieces)


def _write_piece(file: Path, box: PieceBox, image: Path, mask: Mask | None = None, truth: Path | None = None) -> None:
    whole = decode(file.read_bytes())
    if whole.deep:
        raise Unusable(f"{whole.samples.dtype} samples, but pictures of this dataset must have 8 bits")
    left, top, right, bottom = box
    write_png(image, whole.samples[top:bottom, left:right])
    if mask is not None and truth is not None:
        write_png(truth, mask)


def _thirds(width: int, height: int) -> list[PieceBox]:
    return [(0, top, width, bottom) for top, bottom in pairwise([0, height // 3, height * 2 // 3, height])]


def _squares(width: int, height: int) -> list[PieceBox]:
    """Place squares side by side. A remainder of at least half a square counts as one."""
    lefts = range(0, width, height)
    return [(left, 0, min(left + height, width), height) for left in lefts if min(left + height, width) - left >= height // 2]


def _on_disk(items: Iterator[Item]) -> Iterator[Item]:
    """Reject pictures that a list names but that are not on disk."""
    for item in items:
        if isinstance(item, ListedPicture) and not item.image.is_file():
            yield Rejected(item.image, "the labels name it, but the file is missing")
        else:
            yield item


def _size(file: Path) -> tuple[int, int] | None:
    try:
        height, width = picture_size(file)
        return width, height
    except UNREADABLE:
        return None


def _marked(file: Path) -> Mask | None:
    try:
        return read_marks(file)
    except UNREADABLE:
        return None
