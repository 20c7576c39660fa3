"""Unpacks a dataset as it is distributed, a tar or zip: everything in it stays within the folder, or nothing is unpacked."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from tasks.errors import BadInput
from tasks.files import written_beside

UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError, NotImplementedError)


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks .tar (also .gz, .bz2, .xz) or .zip into a new folder; gives the number of files. Raises BadInput, and then leaves nothing, if
    the archive is damaged, the folder is there already, a member (or a link) would lie outside it, or the disk has no room."""
    if not archive.is_file():
        raise BadInput(f"{archive}: no such file")
    if folder.exists():
        raise BadInput(f"{folder}: is there already; name a new folder")
    with written_beside(folder) as partial:
        partial.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, partial)
            elif tarfile.is_tarfile(archive):
                _untar(archive, partial)
            else:
                raise BadInput(f"{archive}: neither a tar nor a zip")
        except tarfile.FilterError as error:
            raise BadInput(f"{archive}: {error.tarinfo.name!r} would leave the folder or is no file; nothing was unpacked") from error
        except UNREADABLE as error:
            raise BadInput(f"{archive}: damaged, cut off or encrypted ({error}); get it again") from error
        return sum(1 for file in partial.rglob("*") if file.is_file())


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        _refuse_too_big(sum(member.size for member in tar), folder, archive)
        tar.extractall(folder, filter="data")  # PEP 706: names and links stay inside, no devices, no special permissions


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        _refuse_too_big(sum(item.file_size for item in packed.infolist()), folder, archive)
        for item in packed.infolist():
            name = PurePosixPath(item.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or (item.external_attr >> 16) & 0o170000 == 0o120000:
                raise BadInput(f"{archive}: {item.filename!r} would leave the folder or is no file; nothing was unpacked")
        packed.extractall(folder)


def _refuse_too_big(size: int, folder: Path, archive: Path) -> None:
    room = shutil.disk_usage(folder).free
    if size > room:
        raise BadInput(f"{archive}: unpacks to {size / 2**30:.1f} GiB, and {os.fspath(folder.parent)} has room for {room / 2**30:.1f}")
