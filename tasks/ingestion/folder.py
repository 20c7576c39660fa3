"""Reads the folder layout of MVTec AD (Bergmann et al., CVPR 2019), with or without a category level.

    <folder>/[<category>/]train/good/*.png
    <folder>/[<category>/]test/good/*.png
    <folder>/[<category>/]test/<defect>/*.png
    <folder>/[<category>/]ground_truth/<defect>/<name>_mask.png      (optional)

A folder that holds pictures and no `train` is read as photographs to train on: all normal, one category. So is a folder whose
folders hold them, with or without a level called `images`, as the Describable Textures Dataset has it: <folder>/images/<class>/*.jpg.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BadInput

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MASK_ENDING = "_mask"


@dataclass(frozen=True)
class Found:
    """A picture where the layout says one should be; not opened yet."""

    image: Path
    category: str
    split: str
    defect: str
    mask: Path | None


@dataclass(frozen=True)
class Rejected:
    """A file left out, and why."""

    file: Path
    reason: str


def read_folder(dataset: str, folder: Path) -> Iterator[Found | Rejected]:
    """Every file of the dataset in a fixed order, as a picture found or a file rejected.

    Raises BadInput if the folder is missing or has none of the layouts above.
    """
    if not folder.is_dir():
        raise BadInput(f"{dataset}: no folder {folder}; correct datasets.folders.{dataset}.path in pipelines.yaml")
    categories = [child for child in _folders(folder) if (child / "train" / "good").is_dir()]
    if (folder / "train" / "good").is_dir():
        yield from _category(dataset, folder)
    elif categories:
        for category in categories:
            yield from _category(category.name, category)
    elif any(file.suffix.lower() in PICTURE_SUFFIXES for file in _files(folder)):
        yield from _pictures(folder, dataset, "train", "good", masks=None)
    elif nested := [child for child in _nested(folder) if any(file.suffix.lower() in PICTURE_SUFFIXES for file in _files(child))]:
        for child in nested:
            yield from _pictures(child, dataset, "train", "good", masks=None)
    else:
        raise BadInput(
            f"{dataset}: {folder} has neither train/good, nor <category>/train/good, nor pictures of its own or one folder down; "
            "lay it out as README.md shows under «Your own data»"
        )


def _category(name: str, folder: Path) -> Iterator[Found | Rejected]:
    yield from _pictures(folder / "train" / "good", name, "train", "good", masks=None)
    truth = folder / "ground_truth"
    claimed: set[Path] = set()
    for defect in _folders(folder / "test"):
        # A dataset with masks has one for every anomalous picture; good pictures never have any.
        masks = truth / defect.name if truth.is_dir() and defect.name != "good" else None
        for item in _pictures(defect, name, "test", defect.name, masks=masks):
            if isinstance(item, Found) and item.mask is not None:
                claimed.add(item.mask)
            yield item
    for defect in _folders(truth):
        for mask in _files(defect):
            if mask not in claimed:
                yield Rejected(mask, "a mask for no picture")


def _nested(folder: Path) -> list[Path]:
    return _folders(folder / "images" if (folder / "images").is_dir() else folder)


def _pictures(folder: Path, category: str, split: str, defect: str, *, masks: Path | None) -> Iterator[Found | Rejected]:
    for file in _files(folder):
        if not readable_name(file.name):
            yield Rejected(file, "its name is not readable text; rename it")
        elif file.suffix.lower() not in PICTURE_SUFFIXES:
            yield Rejected(file, f"not a picture: its name ends in {file.suffix or 'nothing'!r}")
        else:
            yield Found(file, category, split, defect, _mask(masks, file.stem))


def _mask(masks: Path | None, stem: str) -> Path | None:
    """Where the picture's mask is, or where it was looked for first if there is none."""
    if masks is None:
        return None
    candidates = [masks / f"{stem}{ending}.png" for ending in (MASK_ENDING, "")]
    return next((file for file in candidates if file.is_file()), candidates[0])


def readable_name(name: str) -> bool:
    """Whether a file name is printable UTF-8: others cannot be stored in a table or shown to a person."""
    try:
        return name.encode("utf-8").decode("utf-8").isprintable()
    except UnicodeEncodeError:
        return False


def _folders(folder: Path) -> list[Path]:
    return sorted((child for child in folder.iterdir() if child.is_dir()), key=_bytes) if folder.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return sorted((child for child in folder.iterdir() if child.is_file()), key=_bytes) if folder.is_dir() else []


def _bytes(path: Path) -> bytes:
    """Sorting by bytes is the same under every locale."""
    return os.fsencode(path.name)
