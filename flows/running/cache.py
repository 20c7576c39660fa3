"""Verify DVC's cache and remove damaged objects, so that they are fetched or regenerated. DVC trusts every write-protected file in it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dvc.repo import Repo

from changepair.flows.promotion.store import POINTER
from changepair.flows.running.places import MODELS
from changepair.flows.running.provenance import locked, pointed
from changepair.flows.running.records import MD5
from changepair.tasks.common import stopping

DIRECTORY = ".dir"  # ending of the objects that list a folder's files
HASH = re.compile(rf"{MD5}(\{DIRECTORY})?")
WORKERS = 4  # threads that read and hash: both release the GIL


def verify(folder: Path, stages: list[str] | None = None) -> list[str]:
    """Hash every cached object that dvc.lock and the current models name, and remove damaged ones with their outs in the checkout.

    Return the paths of these outs. `stages` names the stages of dvc.lock to check; None checks all.
    """
    with Repo(str(folder)) as repo:
        cache = Path(repo.cache.local.path)
    outs = dict(_outs(folder, stages))
    wanted = {path: list(_objects(cache, md5)) for path, md5 in outs.items()}
    objects = sorted({name for names in wanted.values() for name in names})
    with ThreadPoolExecutor(WORKERS) as pool:
        sound = pool.map(lambda name: _sound(_file(cache, name), name), objects)
        damaged = {name for name, whole in zip(objects, sound, strict=True) if not whole}
    for name in damaged:
        _file(cache, name).unlink(missing_ok=True)
    affected = [path for path, names in wanted.items() if damaged & set(names)]
    for out in (folder / path for path in affected if _is_within(folder, Path(path))):  # it may link to a damaged object
        shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
    return affected


def _outs(folder: Path, stages: list[str] | None) -> Iterator[tuple[str, str]]:
    """Yield path and md5 of the outs of dvc.lock and the pointers, without invalid md5s.

    Objects are deleted by these names, and somebody else's checkout may choose them.
    """
    every = [out for name, stage in locked(folder).items() if stages is None or name in stages for out in stage.get("outs", [])]
    for pointer in sorted((folder / MODELS).glob(f"*/{POINTER}")):
        beside = pointer.parent.relative_to(folder)
        every += [{**out, "path": (beside / out["path"]).as_posix()} for out in pointed(pointer) if out.get("path")]
    yield from ((out["path"], out["md5"]) for out in every if out.get("md5") and HASH.fullmatch(out["md5"]))


def _is_within(folder: Path, out: Path) -> bool:
    """Return whether an out is inside the folder after links are resolved."""
    return bool(out.name) and ".." not in out.parts and folder.resolve() in ((folder / out).parent.resolve() / out.name).parents


def _objects(cache: Path, md5: str) -> Iterator[str]:
    """Yield the names of an out's objects in the cache, including those of the files in a folder."""
    yield md5
    if md5.endswith(DIRECTORY):
        with suppress(OSError, ValueError, TypeError, KeyError):  # missing, or damaged itself
            listed = json.loads(_file(cache, md5).read_text(encoding="utf-8"))
            yield from (item["md5"] for item in listed if HASH.fullmatch(item["md5"]))


def _file(cache: Path, name: str) -> Path:
    return cache / name[:2] / name[2:]


def _sound(file: Path, name: str) -> bool:
    """Return whether an object matches its name, or is absent."""
    stopping.check("while the cache was verified")
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == name.removesuffix(DIRECTORY)
    except FileNotFoundError:
        return True
