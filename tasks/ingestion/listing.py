"""Lists pictures where a layout says there should be some, and files that are none. Nothing is opened yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from changepair.tasks.common.decoding import ENDINGS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import file_names, folder_names, is_remote, odd_names

GOOD = "good"  # the defect of a normal picture
LEADS_OUT = "a link that leads out of the dataset's folder"


@dataclass(frozen=True)
class Listed:
    """A picture, and the masks whose union marks its defect (() where its dataset has none, or it is normal)."""

    image: Path
    category: str
    split: str
    defect: str
    masks: tuple[Path, ...] = ()
    write: Callable[[], None] | None = None  # writes image and masks, where they are no files of the dataset but cut out of one, or copies
    original: Path | None = None  # the dataset's own file, where the picture is a copy of it


class Unusable(Exception):
    """A picture that cannot be written where it is to be read. Its message says why."""


@dataclass(frozen=True)
class Rejected:
    """A file left out, and why."""

    file: Path
    reason: str


Item = Listed | Rejected


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset on disk."""

    name: str  # as pipelines.yaml calls it; the category of a dataset without categories
    folder: Path
    written: Path  # where pictures go that the dataset does not have as files
    normal: tuple[str, ...] = ()  # stated folders of normal pictures, relative to `folder`
    abnormal: tuple[str, ...] = ()  # stated folders of pictures with defects, relative to `folder`
    masks: str | None = None  # stated folder of the masks of abnormal pictures, relative to `folder`

    def needs(self, *parts: str) -> Path:
        """Gives a file or folder of the layout. Raises BadInput if it is not there."""
        path = self.folder.joinpath(*parts)
        if not path.exists():
            raise BadInput(f"{self.name}: {self.folder} has no {'/'.join(parts)}, which its layout has; is it the right folder and layout?")
        return path


Reader = Callable[[DatasetFolder], Iterator[Item]]


def pictures(
    folder: Path, category: str, split: str, defect: str, masks: Callable[[Path], tuple[Path, ...]] = lambda _file: ()
) -> Iterator[Item]:
    """Yields every file of a folder, in the order of their names' bytes."""
    for name in file_names(folder):
        yield picture(folder / name, category, split, defect, masks)
    yield from (Rejected(folder / name, _odd(folder / name)) for name in odd_names(folder))


def _odd(file: Path) -> str:
    return "a link that leads nowhere, or in a circle" if file.is_symlink() else "no file that can be read: a pipe, a socket or a device"


def picture(file: Path, category: str, split: str, defect: str, masks: Callable[[Path], tuple[Path, ...]] = lambda _file: ()) -> Item:
    if not readable_name(file.name):
        return Rejected(file, "its name is not readable text; rename it")
    if file.suffix.lower() not in ENDINGS:
        return Rejected(file, f"not a picture: its name ends in {file.suffix or 'nothing'!r}")
    return Listed(file, category, split, defect, masks(file))


def readable_name(name: str) -> bool:
    """Tells whether a file name is printable UTF-8: others cannot be stored in a table or shown to a person."""
    try:
        return name.encode("utf-8").decode("utf-8").isprintable()
    except UnicodeEncodeError:
        return False


def folders(folder: Path) -> list[Path]:
    return [folder / name for name in folder_names(folder)]


def files(folder: Path) -> list[Path]:
    return [folder / name for name in file_names(folder)]


def holds_pictures(folder: Path) -> bool:
    return any(os.path.splitext(name)[1].lower() in ENDINGS for name in file_names(folder))


def within(file: Path, folder: Path) -> bool:
    """Tells whether a file, links followed, lies in a folder."""
    if is_remote(file) or is_remote(folder):
        return is_remote(file)  # a store has no links; what is written here lies in none
    root = folder if folder.is_dir() else folder.parent
    return (not file.is_symlink() and not _linked(file, root)) or file.resolve().is_relative_to(root.resolve())


def _linked(file: Path, root: Path) -> bool:
    return any(parent.is_symlink() for parent in file.parents if parent != root and parent.is_relative_to(root))
