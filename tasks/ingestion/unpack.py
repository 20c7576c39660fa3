"""Unpack a tar or zip. If any member would leave the folder, nothing is unpacked."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Self

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import NO_ROOM, made_anew


def unpack(archive: Path, folder: Path) -> int:
    """Unpack .tar (also .gz, .bz2, .xz) or .zip into a new folder. Return the number of files.

    Raises BadInput, and leaves nothing, if the archive is damaged, the folder exists, a member or a link would leave it, or the disk is
    full.
    """
    if not archive.is_file():
        raise BadInput(f"{archive}: no such file")
    if folder.exists():
        raise BadInput(f"{folder}: already exists; name a new folder")
    if not hasattr(tarfile, "data_filter"):  # PEP 706
        found = platform.python_version()
        raise BadInput(f"{archive}: Python {found} cannot unpack safely; use Python 3.11.4 or later, or unpack it with another tool")
    with made_anew(folder) as partial:
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, partial)
            elif tarfile.is_tarfile(archive):
                _untar(archive, partial)
            else:
                raise BadInput(f"{archive}: neither a tar nor a zip file")
        except BadInput:
            raise
        except tarfile.FilterError as error:
            raise _leaves(archive, error.tarinfo.name) from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            why = f"cannot be unpacked ({in_short(error)}); it is damaged, or its names conflict or are too long"
            raise BadInput(f"{archive}: {why}") from error
        except Exception as error:  # a decoder may raise anything on hostile bytes
            raise BadInput(f"{archive}: damaged, truncated or encrypted ({in_short(error)}); download it again") from error
        return sum(1 for file in partial.rglob("*") if file.is_file())


class _Member(tarfile.TarInfo):
    """A member that is read strictly.

    The library treats the end of the file, or anything other than a header, as the archive's end. So it would unpack a truncated archive as
    a complete one.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros ends a complete archive
            raise tarfile.ReadError(f"no end of the archive: {error}") from error


def _untar(archive: Path, folder: Path) -> None:
    """Unpack files before links, so that no file is written through a link. Then check on disk where each link leads.

    The library's filter does not resolve paths that are too long (CVE-2025-4517).
    """
    with tarfile.open(archive, tarinfo=_Member) as tar:
        members = [tarfile.data_filter(member, str(folder)) for member in tar]  # PEP 706: no devices, no special permissions
        _refuse_too_big(sum(member.size for member in members), folder, archive)
        links = [member for member in members if member.issym() or member.islnk()]
        for member in members:
            _refuse_outside(archive, member.name)
            if not (member.issym() or member.islnk()):
                tar.extract(member, folder, filter="data")
        for link in links:
            _make_link(archive, folder, link)
        for link in links:
            if not _stays_inside(folder / link.name, folder):
                raise _leaves(archive, link.name)


def _make_link(archive: Path, folder: Path, link: tarfile.TarInfo) -> None:
    place = folder / link.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not _stays_inside(place.parent, folder):
        raise _leaves(archive, link.name)
    if link.issym():
        place.symlink_to(link.linkname)
        return
    _refuse_outside(archive, link.linkname)
    if not _stays_inside(folder / link.linkname, folder):
        raise _leaves(archive, link.name)
    os.link(folder / link.linkname, place)


def _stays_inside(place: Path, folder: Path) -> bool:
    """Return whether a path exists and is within the folder, after following links."""
    try:
        return place.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):  # a broken or circular link, or a path that is too long to follow
        return False


def _refuse_outside(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise _leaves(archive, name)


def _leaves(archive: Path, name: str) -> BadInput:
    return BadInput(f"{archive}: {in_short(repr(name))} would leave the folder or is not a regular file; nothing was unpacked")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        _refuse_too_big(sum(item.file_size for item in packed.infolist()), folder, archive)
        for item in packed.infolist():
            _refuse_outside(archive, item.filename)
            if stat.S_ISLNK(item.external_attr >> 16):
                raise _leaves(archive, item.filename)
        packed.extractall(folder)


def _refuse_too_big(size: int, folder: Path, archive: Path) -> None:
    room = shutil.disk_usage(folder).free
    if size > room:
        raise BadInput(f"{archive}: unpacks to {size / 2**30:.1f} GiB, but {os.fspath(folder.parent)} has {room / 2**30:.1f} GiB free")
