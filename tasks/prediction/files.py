"""Finds what a user names on disk, pictures and kits, and names what is written of it. It imports no torch: a mistake is told at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from changepair.tasks.common.decoding import ENDINGS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_hidden, visible

KIT_NAME = "kit.json"


def is_kit(folder: Path) -> bool:
    return (folder / KIT_NAME).is_file()


def files_of(names: Sequence[str]) -> list[Path]:
    """Find the files that names refer to: each a file, a folder, or a pattern with * or ?.

    A folder stands for the picture files in it, at any depth, by suffix. Hidden files are left out.

    In the order of names, a folder's sorted, each file once. Raises BadInput for a name that is nothing, and a folder without a picture.
    """
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(file for file in visible(path.rglob("*"), path) if file.suffix.lower() in ENDINGS and file.is_file())
            if not inside:
                raise BadInput(f"{name}: a folder without a picture ({', '.join(ENDINGS)})")
            files.update(dict.fromkeys(inside))
        elif path.exists() or not any(sign in name for sign in "*?["):
            if not path.exists():
                raise BadInput(f"{name}: no such file or folder")
            files[path] = None
        else:
            parent = Path(path.anchor) if path.is_absolute() else Path()
            matching = sorted(file for file in parent.glob(str(path.relative_to(parent))) if not is_hidden(file.name) and file.is_file())
            if not matching:
                raise BadInput(f"{name}: nothing matches")
            files.update(dict.fromkeys(matching))
    return list(files)


def names_of(files: Sequence[Path]) -> Iterator[Path]:
    """Name the output of each file: its path below the common parent folder, with its suffix in the name, so that no two
    are the same.

    >>> [str(name) for name in names_of([Path("a/1.png"), Path("a/b/1.png"), Path("a/b/1.jpg")])]
    ['1_png', 'b/1_png', 'b/1_jpg']
    """
    parents = [os.path.abspath(file.parent) for file in files]
    common = Path(os.path.commonpath(parents)) if parents else Path()
    for file, parent in zip(files, parents, strict=True):
        yield Path(parent).relative_to(common) / file.name.replace(".", "_")
