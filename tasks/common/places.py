"""Find pictures, pairs and models: files and folders of this machine, or in a store that fsspec supports, by URL.

A place such as `s3://bucket/parts` is read in place, one file at a time. It is a `upath.UPath`, which behaves like a `pathlib.Path` in all
that this project needs. Credentials and the store's address come from the environment, as for its own tools (AWS_PROFILE, …).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, cast

from changepair.tasks.common.errors import BadInput

MARK = "://"
WEB = ("http", "https")
SIGNED = re.compile(r"(^|[&-])(sig|signature|token|access_token|password|secret|api_?key|key|credential)=", re.IGNORECASE)
PORT = re.compile(r"\d{1,5}/")
PASSWORD_IN_URL = (
    "a password or token in a URL would be copied into dvc.yaml, logs and reports; put it in the environment (AWS_ACCESS_KEY_ID, …), in "
    "`dvc remote modify --local <remote> …`, or in Git's credential helper"
)
STORES = frozenset({"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "paramiko", "s3fs"})  # packages of stores
OF_A_STATE = ("size", "ETag", "etag", "mtime", "LastModified")  # a store's attributes of a file that change with it


def is_of_store(error: BaseException | None) -> bool:
    """Return whether an error comes from a store or the connection to it. Such an error may pass, so a retry is useful."""
    return type(error).__module__.partition(".")[0] in STORES


def is_url(text: str) -> bool:
    return MARK in text


def holds_password(address: str) -> bool:
    """Return whether a URL holds a password, a token or a signature.

    The user of an SSH address and an @ in an object's key are neither.
    """
    scheme, mark, rest = address.partition(MARK)
    web = scheme.rpartition("+")[2] in WEB
    user, at, _place = rest.rpartition("@")  # a password may contain / and @
    name, colon, password = user.partition(":")
    return bool(mark) and (
        bool(at and colon and "/" not in name and not PORT.match(password))
        or (web and "@" in rest.partition("/")[0])
        or (web and SIGNED.search(rest.partition("?")[2]) is not None)
    )


def place_of(text: str | Path) -> Path:
    """Return the place that a path or a URL names. `~` expands to the user's folder.

    Raises BadInput for a URL that cannot be read or contains a password.
    """
    if not is_url(str(text)):
        return Path(text).expanduser()
    if holds_password(str(text)):
        raise BadInput(f"a URL of {str(text).partition(MARK)[0]}{MARK}: {PASSWORD_IN_URL}")
    from upath import UPath  # here, because it costs a tenth of a second and most projects name no URL

    kind, _mark, rest = str(text).partition(MARK)
    if not rest.strip("/"):
        raise BadInput(f"{text}: names no folder in the store; give a bucket and a folder, for example s3://bucket/parts")
    try:
        found = UPath(str(text).rstrip("/"))
        _ = found.fs  # loads the store's driver
    except (ImportError, ValueError) as error:
        raise BadInput(f"{text}: no installed package reads {kind}:// ({error}); for s3:// run pip install 'changepair[s3]'") from error
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Return whether a place is in a store, not on this machine."""
    return not isinstance(path, Path)


def state_of(path: Path) -> str:
    """Return a text that changes when a file does, without reading the file. Raises OSError if the file is missing."""
    if is_remote(path):
        return str(path.fs.ukey(path.path))  # type: ignore[attr-defined]
    about = path.stat()
    return f"{about.st_size}:{about.st_mtime_ns}"


def states(place: Path) -> dict[str, str]:
    """Return the state of a file, or of every file in a folder, at any depth. Return {} if the place does not exist. An error is also a
    state."""
    if is_remote(place):
        listed = place.fs.find(place.path, detail=True)  # type: ignore[attr-defined]
        return {name: " ".join(str(about.get(key)) for key in OF_A_STATE) for name, about in listed.items()}
    if not place.is_dir():
        return {str(place): _state(place)} if place.exists() else {}
    files = (Path(folder, name) for folder, _folders, names in os.walk(place) for name in names)
    return {str(file): _state(file) for file in files}


def _state(file: Path) -> str:
    try:
        return state_of(file)
    except OSError as error:
        return error.strerror or "unknown"


def unreadable(folder: Path) -> Iterator[Path]:
    """Yield the unreadable entries of a local folder, at any depth.

    These are broken links, pipes, sockets, devices, entries without permission, and names that are not text.
    """
    for inside, folders, names in os.walk(folder):
        for name in folders:
            if not is_text(name) or not os.access(os.path.join(inside, name), os.R_OK | os.X_OK):
                yield Path(inside, name)
        for name in names:
            file = os.path.join(inside, name)
            if not is_text(name) or not os.path.isfile(file) or not os.access(file, os.R_OK):
                yield Path(file)


def is_text(name: str) -> bool:
    """Return whether a file name is UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# Names of files and folders that operating systems and storage devices create, in lower case.
SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is hidden or a system file, and so not data: `._0.png` of macOS, Thumbs.db, @eaDir."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(files: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that are neither hidden nor in a hidden folder."""
    return (file for file in files if not any(map(is_hidden, file.relative_to(folder).parts)))


def file_names(folder: Path) -> list[str]:
    """List the names of the files in a folder, without hidden ones, in byte order. Return [] if the folder does not exist."""
    return _names(folder, "file")


def folder_names(folder: Path) -> list[str]:
    """List the names of the folders in a folder, as `file_names`."""
    return _names(folder, "directory")


def odd_names(folder: Path) -> list[str]:
    """List the names of entries that are neither files nor folders, as `file_names`: broken links, pipes, sockets."""
    return [] if is_remote(folder) else _names(folder, "odd")


def _names(folder: Path, kind: Literal["file", "directory", "odd"]) -> list[str]:
    """List names, not paths, without a request for each, because a folder may hold a million."""
    if not folder.is_dir():
        return []
    if is_remote(folder):
        own = folder.path.strip("/")  # type: ignore[attr-defined]
        found = folder.fs.ls(folder.path, detail=True)  # type: ignore[attr-defined]
        paths = [one["name"].strip("/") for one in found if one["type"] == kind]
        names = [path.rpartition("/")[2] for path in paths if path != own]  # a store may list the folder itself
        return sorted((name for name in names if name and not is_hidden(name)), key=os.fsencode)
    with os.scandir(folder) as entries:
        return sorted((entry.name for entry in entries if not is_hidden(entry.name) and _kind(entry) == kind), key=os.fsencode)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "file" if entry.is_file() else "directory" if entry.is_dir() else "odd"
    except OSError:  # a circular link
        return "odd"
