"""Write files that are complete or absent, and hash them."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import platform
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_remote

if TYPE_CHECKING:
    import pyarrow as pa

HOST = platform.node().partition(".")[0]  # without a dot, because dots separate the parts of a partial file's name
os.umask(_umask := os.umask(0))  # reading the umask requires setting it
MODE = 0o666 & ~_umask  # permissions of a new file
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PLACE = (errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EPERM, errno.EROFS)


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """Yield a path next to `file` to write to. It replaces `file` at the end.

    So no reader sees half a file, and a failure changes nothing. Raises BadInput if `file` is a folder, or the disk is full.
    """
    if file.is_dir():
        raise BadInput(f"{file}: is a folder; name a file")
    with _beside(file) as partial:
        yield partial
        _follow_umask(partial)
        os.replace(partial, file)


@contextmanager
def made_anew(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill. It replaces `folder` at the end, as `written_beside` replaces a file.

    It is for folders that a stage owns: the contents of `folder` are deleted. If `folder` is a link, only the link is deleted.
    """
    with _beside(folder) as partial:
        partial.mkdir()
        yield partial
        _follow_umask(partial)
        _remove(folder)
        os.replace(partial, folder)


def _follow_umask(path: Path) -> None:
    """Give files the permissions of the umask. Some libraries (safetensors) write files that only their owner can read."""
    for file in (path, *path.rglob("*")):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != MODE:
            file.chmod(MODE)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    partial = path.parent / f".{path.name}.{HOST}.{os.getpid()}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        _remove(partial)
    except OSError as error:
        if error.errno in NO_PLACE:
            raise BadInput(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); name another place") from error
        raise
    try:
        yield partial
    except OSError as error:
        if error.errno in NO_ROOM:
            raise BadInput(f"{path}: cannot be written, the disk is full ({os.strerror(error.errno)}); free space and run again") from error
        raise
    finally:
        _remove(partial)


@cache
def _sweep(folder: Path) -> None:
    """Delete the partial files of killed writers in a folder, once a process. Writers on other machines may be alive, so their files
    stay."""
    for partial in folder.glob(f".*.{HOST}.*.partial"):
        writer = partial.name.split(".")[-2]
        if writer.isdecimal() and not _lives(int(writer)):
            _remove(partial)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 is not delivered
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # the process belongs to another user
    return True


def write_text(path: Path, text: str) -> None:
    with written_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pa.Table) -> None:
    """Write parquet whose bytes depend only on the rows."""
    import pyarrow.parquet as pq

    with written_beside(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with written_beside(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_table(path: Path, schema: pa.Schema, made_by: str) -> pa.Table:
    """Read parquet and cast it to `schema`. `made_by` names the stage that writes such files, for the error."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise BadInput(f"{path}: no such file; the {made_by} stage writes it, so run `dvc repro` first")
    table = pq.read_table(io.BytesIO(path.read_bytes()) if is_remote(path) else path)
    table = table.rename_columns(["metric" if name == "figure" else name for name in table.column_names])  # the earlier name
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise BadInput(f"{path}: no column {missing[0]!r}; it was written by another version, so run the {made_by} stage again")
    return table.select(schema.names).cast(schema)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_of(path: str | Path) -> str | None:
    """Hash a file, or all files of a folder with their names. Return None for a text that is not a local path, such as a model name."""
    place = Path(path)
    if place.is_file():
        return sha256(place)
    if not place.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for file in place.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(place).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
