"""Find the pictures and kits that a user names, and name the outputs. This module imports no torch, so errors come at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from changepair.tasks.common.decoding import ENDINGS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_hidden, visible

KIT_NAME = "kit.json"


def is_kit(folder: Path) -> bool:
    """Tell whether a folder is a kit."""
    return (folder / KIT_NAME).is_file()


def files_of(names: Sequence[str]) -> list[Path]:
    """Find the files that names refer to. A name is a file, a folder, or a pattern with * or ?.

    A folder stands for its pictures at any depth, selected by suffix and sorted. Hidden files are left out. Each file is returned once, in
    the order of names. Raises BadInput if a name matches nothing, or if a folder has no picture.
    """
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(file for file in visible(path.rglob("*"), path) if file.suffix.lower() in ENDINGS and file.is_file())
            missing = f"a folder without a picture ({', '.join(ENDINGS)})"
        elif path.exists() or not any(sign in name for sign in "*?["):
            found, missing = [path] if path.exists() else [], "no such file or folder"
        else:
            parent = Path(path.anchor) if path.is_absolute() else Path()
            found = sorted(file for file in parent.glob(str(path.relative_to(parent))) if not is_hidden(file.name) and file.is_file())
            missing = "nothing matches"
        if not found:
            raise BadInput(f"{name}: {missing}")
        files.update(dict.fromkeys(found))
    return list(files)


def names_of(files: Sequence[Path]) -> Iterator[Path]:
    """Name the output of each file uniquely: its path below the common parent folder, with its suffix in the name.

    >>> [str(name) for name in names_of([Path("a/1.png"), Path("a/b/1.png"), Path("a/b/1.jpg")])]
    ['1_png', 'b/1_png', 'b/1_jpg']
    """
    parents = [os.path.abspath(file.parent) for file in files]
    common = Path(os.path.commonpath(parents)) if parents else Path()
    for file, parent in zip(files, parents, strict=True):
        yield Path(parent).relative_to(common) / file.name.replace(".", "_")
