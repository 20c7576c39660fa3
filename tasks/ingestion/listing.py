"""List the pictures of a layout, and files that are not pictures, without opening them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.decoding import ENDINGS, Mask
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import written_beside
from changepair.tasks.common.pictures import png
from changepair.tasks.common.places import file_names, folder_names, is_remote, is_text, odd_names

GOOD = "good"  # the defect of a normal picture
LEADS_OUT = "a link to outside the dataset's folder"


@dataclass(frozen=True)
class ListedPicture:
    """A picture, and the masks whose union marks its defect. `masks` is () if the dataset has none or the picture is normal."""

    image: Path
    category: str
    split: str
    defect: str
    masks: tuple[Path, ...] = ()
    write: Callable[[], None] | None = None  # writes image and masks if they are copies, or cut out of a file of the dataset
    original: Path | None = None  # the dataset's file, if the picture is a copy of it
    licence: str | None = None  # licence of this picture; None for that of its dataset


class Unusable(Exception):
    """Raised for a picture that cannot be cut out or copied. The message states the reason."""


@dataclass(frozen=True)
class Rejected:
    file: Path
    reason: str


Item = ListedPicture | Rejected


@dataclass(frozen=True)
class DatasetFolder:
    name: str  # name in pipelines.yaml; the category of a dataset without categories
    folder: Path
    written: Path  # folder for pictures that the dataset does not have as files
    normal: tuple[str, ...] = ()  # stated folders of normal pictures, relative to `folder`
    abnormal: tuple[str, ...] = ()  # stated folders of pictures with defects, relative to `folder`
    masks: str | None = None  # stated folder of the masks of abnormal pictures, relative to `folder`

    def needs(self, *parts: str) -> Path:
        """Return a file or folder of the layout. Raises BadInput if it is missing."""
        path = self.folder.joinpath(*parts)
        if not path.exists():
            raise BadInput(f"{self.name}: {self.folder} has no {'/'.join(parts)}, which its layout requires; correct its path or layout")
        return path


Reader = Callable[[DatasetFolder], Iterator[Item]]
FindMasks = Callable[[Path], tuple[Path, ...]]


def no_masks(_file: Path) -> tuple[Path, ...]:
    return ()


def pictures(folder: Path, category: str, split: str, defect: str, masks: FindMasks = no_masks) -> Iterator[Item]:
    """Yield every file of a folder, ordered by the bytes of their names."""
    for name in file_names(folder):
        yield picture(folder / name, category, split, defect, masks)
    for file in (folder / name for name in odd_names(folder)):
        odd = "a broken or circular link" if file.is_symlink() else "not a readable file: a pipe, a socket or a device"
        yield Rejected(file, odd)


def picture(file: Path, category: str, split: str, defect: str, masks: FindMasks = no_masks) -> Item:
    if not (is_text(file.name) and file.name.isprintable()):  # such a name can be neither stored in a table nor shown
        return Rejected(file, "its name is not readable text; rename it")
    if file.suffix.lower() not in ENDINGS:
        return Rejected(file, f"not a picture by its suffix, {file.suffix or 'none'!r}")
    return ListedPicture(file, category, split, defect, masks(file))


def write_png(file: Path, array: NDArray[np.uint8] | Mask) -> None:
    with written_beside(file) as partial:
        partial.write_bytes(png(array))


def folders(folder: Path) -> list[Path]:
    return [folder / name for name in folder_names(folder)]


def files(folder: Path) -> list[Path]:
    return [folder / name for name in file_names(folder)]


def within(file: Path, folder: Path) -> bool:
    """Return whether a file, after following links, lies in a folder."""
    if is_remote(file) or is_remote(folder):
        return is_remote(file)  # a store has no links, and what is written here lies in no store
    root = folder if folder.is_dir() else folder.parent
    steps = (file, *(parent for parent in file.parents if parent != root and parent.is_relative_to(root)))
    return not any(step.is_symlink() for step in steps) or file.resolve().is_relative_to(root.resolve())
