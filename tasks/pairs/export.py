"""Export finished pairs to formats that other tools read. Pixels stay identical, and the held-out pairs become the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import made_anew, sha256
from changepair.tasks.common.places import is_remote
from changepair.tasks.pairs.card import Provenance, write_card
from changepair.tasks.pairs.reading import PairsFolder

FORMATS = {
    "webdataset": "tar shards, in a folder for each split, with an index",
    "mvtec": "MVTec AD's folders, with a category for each split",
    "coco": "pictures, and instances in JSON with run-length masks",
    "huggingface": "parquet with embedded pictures, for the library datasets",
}
CARD_NAME = "README.md"


@dataclass(frozen=True)
class Written:
    """The result of a format. `front` are keys for the front matter of the card."""

    counts: Mapping[str, int]
    front: Mapping[str, Any]


def export(pairs: PairsFolder, provenance: Provenance, out: Path, format_: str) -> Written:
    """Write the pairs to the new folder `out` in one of FORMATS, with a data card. Return the number of pairs of each split.

    Raises BadInput if `out` exists, or if a shard is missing, damaged or differs from the index. Nothing is then written.
    """
    if is_remote(out):
        raise BadInput(f"{out}: an export is written on this machine; name a local folder, and copy it to the store")
    if out.exists() or out.is_symlink():
        raise BadInput(f"{out}: exists; name a folder that does not exist")
    write: Callable[[PairsFolder, Path], Written] = import_module(f"changepair.tasks.pairs.formats.{format_}").write
    with made_anew(out) as partial:
        written = write(pairs, partial)
        held = {file.relative_to(partial).as_posix(): sha256(file) for file in sorted(partial.rglob("*")) if _is_listed(file)}
        write_card(pairs, provenance, partial / CARD_NAME, front=written.front, files=held)
    return written


def _is_listed(file: Path) -> bool:
    """Return whether the card lists a file: not the thousands of pictures of some formats."""
    return file.is_file() and file.suffix != ".png"
