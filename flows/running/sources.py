"""Import modules, and detect later whether one of their files has changed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module

SETTLED = 100_000_000  # nanoseconds that a file must be older than its import, because clocks of file systems are coarse


class Sources:
    """Record the state of the files that this process has imported. A new process would read a changed file."""

    def __init__(self) -> None:
        self.states = {file: _state(file) for file in _own_files()}
        self.names = _names_on_path()
        self.loaded: dict[str, list[int] | None] = {}
        self.unsettled = ""
        self.load(())

    def load(self, modules: Sequence[str]) -> None:
        """Import modules, and record the files that they load."""
        began = time.time_ns()
        for module in modules:
            with suppress(Exception):  # the stage raises it again, and reports it
                import_module(module)  # returns at once if it is imported already
        for file in _loaded_files() - self.loaded.keys():
            self.loaded[file] = state = _state(file)
            if state is None or state[4] > began - SETTLED:  # it may have been written during the import
                self.unsettled = file

    def changed(self) -> str:
        """Return the path of a file that has changed since its import; "" if none has."""
        before = {**self.loaded, **self.states}
        now = {file: _state(file) for file in (*self.loaded, *_own_files())}
        for file in before.keys() | now.keys():
            if before.get(file) != now.get(file):
                return file
        tops, names = {name.partition(".")[0] for name in sys.modules}, _names_on_path()
        for folder in self.names:
            for name in self.names[folder] ^ names.get(folder, set()):
                top, _, suffix = name.partition(".")
                if name.endswith((".pth", "-info", ".egg-link")) or (top in tops and suffix.rpartition(".")[2] in ("", "py", "pyc", "so")):
                    return os.path.join(folder, name)
        return self.unsettled


def _state(file: str) -> list[int] | None:
    """Return the device, inode, size in bytes, and times in ns of a file. An edit changes at least one. None if it does not exist."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _own_files() -> Iterator[str]:
    """List the files of this package, and the files that select installed packages and settings of Prefect."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name in ("flows", "tasks"):
        for place, folders, files in os.walk(os.path.join(home, name)):
            folders[:] = [one for one in folders if one != "__pycache__"]
            yield from (os.path.join(place, file) for file in files)
    yield from ("requirements.lock", "pyproject.toml", "prefect.toml", ".env")
    prefect = os.path.expanduser(os.environ.get("PREFECT_HOME", "~/.prefect"))
    yield os.environ.get("PREFECT_PROFILES_PATH", os.path.join(prefect, "profiles.toml"))


def _loaded_files() -> set[str]:
    """Return the files of modules and shared libraries that this process has loaded."""
    files = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    modules = {file for file in files if isinstance(file, str) and os.path.isabs(file)}  # some modules of torch name no existing file
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return modules | {parts[5] for line in maps if len(parts := line.rstrip("\n").split(None, 5)) > 5 and ".so" in parts[5]}


def _names_on_path() -> dict[str, set[str]]:
    """Return the names of the files in each folder of sys.path."""
    found = {}
    for folder in sys.path:
        with suppress(OSError):
            found[folder] = set(os.listdir(folder))
    return found
