"""Looks through DVC's cache: an object whose bytes are no longer what its name says is taken out, to be fetched or made again.

DVC itself trusts a file of its cache as long as it is write-protected, and would hand a damaged one on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from flows.promotion.store import POINTER
from flows.running.places import MODELS
from flows.running.provenance import LOCK
from flows.settings.reader import load_yaml
from tasks.common import stopping

DIRECTORY = ".dir"  # ending of the objects that list a folder's files
WORKERS = 4  # threads that read and hash: both release the GIL


def verify(folder: Path, stages: list[str] | None = None) -> list[str]:
    """Reads every object in the cache that dvc.lock and the models in use name; takes out what is damaged, and the files in the checkout
    that came of it. Gives the paths of those outs. stages: those of dvc.lock to look at; None for all."""
    with Repo(str(folder)) as repo:
        cache = Path(repo.cache.local.path)
    outs = {out["path"]: out["md5"] for out in _outs(folder, stages)}
    wanted = {path: list(_objects(cache, md5)) for path, md5 in outs.items()}
    objects = sorted({name for names in wanted.values() for name in names})
    with ThreadPoolExecutor(WORKERS) as pool:
        sound = list(pool.map(lambda name: _sound(_file(cache, name), name), objects))
    damaged = {name for name, whole in zip(objects, sound, strict=True) if not whole}
    for name in damaged:
        _file(cache, name).unlink(missing_ok=True)
    spoilt = [path for path, names in wanted.items() if damaged & set(names)]
    for path in spoilt:  # it may be a link to what was damaged
        out = folder / path
        shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
    return spoilt


def _outs(folder: Path, stages: list[str] | None) -> Iterator[Mapping[str, Any]]:
    file = folder / LOCK
    locked = (load_yaml(file) or {}).get("stages", {}) if file.is_file() else {}
    for name, stage in locked.items():
        if stages is None or name in stages:
            yield from (out for out in stage.get("outs", []) if "md5" in out)
    for pointer in sorted((folder / MODELS).glob(f"*/{POINTER}")):
        for out in load_yaml(pointer)["outs"]:
            yield {**out, "path": (pointer.parent / out["path"]).relative_to(folder).as_posix()}


def _objects(cache: Path, md5: str) -> Iterator[str]:
    """Lists the names of an out's objects in the cache: its own, and a folder's files'."""
    yield md5
    if md5.endswith(DIRECTORY):
        try:
            listed = json.loads(_file(cache, md5).read_text(encoding="utf-8"))
            yield from (item["md5"] for item in listed)
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
