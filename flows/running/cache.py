"""Looks through DVC's cache: an object whose bytes are no longer what its name says is taken out, to be fetched or made again.

DVC itself trusts a file of its cache as long as it is write-protected, and would hand a damaged one on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """Reads every object in the cache that dvc.lock and the models in use name; takes out what is damaged, and the files in the checkout
    that came of it. Gives the paths of those outs. stages: those of dvc.lock to look at; None for all."""
    with Repo(str(folder)) as repo:
        cache = Path(repo.cache.local.path)
    outs = dict(_outs(folder, stages))
    wanted = {path: list(_objects(cache, md5)) for path, md5 in outs.items()}
    objects = sorted({name for names in wanted.values() for name in names})
    with ThreadPoolExecutor(WORKERS) as pool:
        sound = list(pool.map(lambda name: _sound(_file(cache, name), name), objects))
    damaged = {name for name, whole in zip(objects, sound, strict=True) if not whole}
    for name in damaged:
        _file(cache, name).unlink(missing_ok=True)
    spoilt = [path for path, names in wanted.items() if damaged & set(names)]
    for out in (folder / path for path in spoilt if _is_within(folder, Path(path))):  # it may be a link to what was damaged
        shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
    return spoilt


def _outs(folder: Path, stages: list[str] | None) -> Iterator[tuple[str, str]]:
    """Yields path and md5 of the outs that dvc.lock and the pointers name. What is no md5 is passed over: what is damaged is deleted, by
    these names, which in a checkout of somebody else's may be any."""
    every = [out for name, stage in locked(folder).items() if stages is None or name in stages for out in stage.get("outs", [])]
    for pointer in sorted((folder / MODELS).glob(f"*/{POINTER}")):
        beside = pointer.parent.relative_to(folder)
        every += [{**out, "path": (beside / out["path"]).as_posix()} for out in pointed(pointer) if out.get("path")]
    for out in every:
        path, md5 = out["path"], out.get("md5")
        if md5 and HASH.fullmatch(md5):
            yield path, md5


def _is_within(folder: Path, out: Path) -> bool:
    """Tells whether an out is in the folder and not the folder itself, whatever links lead to."""
    return bool(out.name) and ".." not in out.parts and folder.resolve() in ((folder / out).parent.resolve() / out.name).parents


def _objects(cache: Path, md5: str) -> Iterator[str]:
    """Lists the names of an out's objects in the cache: its own, and a folder's files'."""
    yield md5
    if md5.endswith(DIRECTORY):
        try:
            listed = json.loads(_file(cache, md5).read_text(encoding="utf-8"))
            yield from (item["md5"] for item in listed if HASH.fullmatch(item["md5"]))
        except (OSError, ValueError, TypeError, KeyError):
            return  # not there, or damaged itself


def _file(cache: Path, name: str) -> Path:
    return cache / name[:2] / name[2:]


def _sound(file: Path, name: str) -> bool:
    """Tells whether an object is what it is called; one that is absent counts as sound."""
    stopping.check("looking through the cache")
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == name.removesuffix(DIRECTORY)
    except FileNotFoundError:
        return True
