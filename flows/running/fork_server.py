"""Fork the stages of a run from a process that has imported their libraries. See forking.py for the command of a stage, which asks for it.

`python -m changepair.flows.running.fork_server <listener> <lifeline>` is that process. Its arguments are descriptors of sockets.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from types import ModuleType

from changepair.flows.running.forking import FORWARDED, SERVER, Request, describe_process
from changepair.tasks.common.stopping import die_with_parent

IGNORED = (signal.SIGTERM, signal.SIGHUP)  # by the server, which ends after the run
PATIENCE = 30.0  # seconds for a request to arrive
SETTLED = 100_000_000  # nanoseconds by which a file must be older than its import: the resolution of a file system's clock
QUICK = tuple(f"changepair.flows.{kind}" for kind in ("ingest", "objects", "sample"))  # import no torch
FIRST = (
    "changepair.flows.running.entry",
    "prefect",
    "changepair.flows.running.api",
    "changepair.flows.running.steps",
    "prefect.task_runners",
    "prefect.events.worker",
    "prefect.logging.handlers",
    "changepair.tasks.ingestion.ingest",
    "changepair.tasks.sampling.sample",
)
THEN = ("torch",)
"""Modules that most stages import. They start no thread and initialise no GPU."""


def _state(file: str) -> list[int] | None:
    """Return what changes whenever a file is written, replaced or deleted; None if it does not exist."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _own_files() -> Iterator[str]:
    """List the files of this package in the working directory or where it is installed, and files that select packages and settings."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name in ("flows", "tasks"):
        for place, folders, files in os.walk(os.path.join(home, name)):
            folders[:] = [one for one in folders if one != "__pycache__"]
            yield from (os.path.join(place, file) for file in files)
    yield from ("requirements.lock", "pyproject.toml", "prefect.toml", ".env")
    prefect = os.path.expanduser(os.environ.get("PREFECT_HOME", "~/.prefect"))
    yield os.environ.get("PREFECT_PROFILES_PATH", os.path.join(prefect, "profiles.toml"))


def _loaded_files() -> set[str]:
    """List the files that this process has loaded: of modules, and libraries."""
    files = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    modules = {file for file in files if isinstance(file, str) and os.path.isabs(file)}  # torch makes modules without a file
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return modules | {parts[5] for line in maps if len(parts := line.rstrip("\n").split(None, 5)) > 5 and ".so" in parts[5]}


def _names_on_path() -> dict[str, set[str]]:
    """List the names in each folder of sys.path."""
    found = {}
    for folder in sys.path:
        with suppress(OSError):
            found[folder] = set(os.listdir(folder))
    return found


class _Sources:
    """What the imports of the server have read. A file that differs later would be read differently by a plain start."""

    def __init__(self) -> None:
        self.states = {file: _state(file) for file in _own_files()}
        self.names = _names_on_path()
        self.loaded: dict[str, list[int] | None] = {}
        self.unsettled = ""
        self.load(())

    def load(self, modules: Sequence[str]) -> None:
        """Import modules, and record what they loaded."""
        began = time.time_ns()
        for module in modules:
            with suppress(Exception):  # the stage reports it
                import_module(module)
        for file in _loaded_files() - self.loaded.keys():
            self.loaded[file] = state = _state(file)
            if state is None or state[4] > began - SETTLED:  # it was perhaps written while it was read
                self.unsettled = file

    def changed(self) -> str:
        """Return a file that differs from the one that was read; "" without one."""
        own = {file: _state(file) for file in _own_files()}
        for before, now in ((self.states, own), (self.loaded, {file: _state(file) for file in self.loaded})):
            for file in before.keys() | now.keys():
                if before.get(file) != now.get(file):
                    return file
        tops = {name.partition(".")[0] for name in sys.modules}
        before, now = self.names, _names_on_path()
        for folder in before.keys() | now.keys():
            for name in before.get(folder, set()) ^ now.get(folder, set()):
                if name.partition(".")[0] in tops or name.endswith((".pth", "-info", ".egg-link")):
                    return os.path.join(folder, name)
        return self.unsettled


class _Server:
    """Fork a process for each stage, and report its end to the command of the stage. It has one thread, so that its forks are sound."""

    def __init__(self, listener: socket.socket, lifeline: socket.socket) -> None:
        self.process, self.sources = describe_process(), _Sources()
        self.listener, self.lifeline, self.own = listener, lifeline, os.getpid()
        self.children: dict[int, socket.socket] = {}
        self.waiting = [*FIRST, *THEN]
        self.asked = self.ended = False
        self.wake, wakes = socket.socketpair()
        wakes.setblocking(False)
        self.wakes = wakes
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wakes.fileno())

    def serve(self) -> Request | None:
        """Return None when the run has ended and all forks too. Return the request of a stage in its fork."""
        while self.children or not self.ended:
            idle = self.asked and self.waiting and not self.ended
            files = [self.wake, *self.children.values(), *(() if self.ended else (self.listener, self.lifeline))]
            ready = select.select(files, (), (), 0 if idle else None)[0]
            if not ready:
                self.sources.load([self.waiting.pop(0)])
            if self.wake in ready:
                self.wake.recv(4096)
                self._report_ends()
            for child, connection in self.children.items():
                if connection in ready:  # its command was killed
                    os.kill(child, signal.SIGKILL)
            if self.lifeline in ready:
                self.ended = True
                for child in self.children:
                    os.kill(child, signal.SIGTERM)
            elif self.listener in ready and (request := self._start(self.listener.accept()[0])) is not None:
                return request
        return None

    def _report_ends(self) -> None:
        for child in tuple(self.children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                with closing(self.children.pop(child)) as connection, suppress(OSError):
                    connection.sendall(f"ended {status}\n".encode())

    def _start(self, connection: socket.socket) -> Request | None:
        """Answer a request. Return it in the fork, and None in the server."""
        streams: list[int] = []
        try:
            connection.settimeout(PATIENCE)
            header, streams, _flags, _address = socket.recv_fds(connection, 4, 3)
            message = connection.makefile("rb").read(struct.unpack("!I", header)[0])
            request = Request(*json.loads(message))
            refusal = self._refusal(request)
            fork = None if refusal or len(streams) != 3 else self._fork()
            if fork == 0:
                self._become(request, streams, connection)
                return request
            connection.sendall((f"plain {refusal}\n" if fork is None else f"started {fork}\n").encode())
            if fork is not None:
                self.children[fork] = connection
                return None
        except (OSError, ValueError, TypeError, struct.error):  # its command was killed
            pass
        finally:
            for stream in streams:
                os.close(stream)
        connection.close()
        return None

    def _refusal(self, request: Request) -> str:
        """Import what the stage imports. Return why a fork would differ from a plain start; "" if it would not."""
        differing = [name for name, value in self.process.items() if request.process.get(name) != value]
        if "environment" in differing:
            ours, theirs = self.process["environment"], request.process["environment"]
            differing += sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            return f"it differs from the run: {', '.join(differing)}"
        self.asked = True
        needed = FIRST if request.module in QUICK else (*FIRST, *THEN)
        self.sources.load([name for name in self.waiting if name in needed])
        self.waiting = [name for name in self.waiting if name not in needed]
        if threading.active_count() > 1:
            return "a module has started a thread"
        changed = self.sources.changed()
        return f"{changed} has changed" if changed else ""

    def _fork(self) -> int:
        """Fork with signals blocked. Return 0 in the fork, else its process."""
        gc.freeze()  # a collection in the fork would copy the pages of all objects
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about threads of NumPy's BLAS, which ends and restarts them at a fork
            fork = os.fork()
        if fork:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return fork

    def _become(self, request: Request, streams: list[int], connection: socket.socket) -> None:
        """Give the fork what the stage's command has."""
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        signal.set_wakeup_fd(-1)
        for one in (self.listener, self.lifeline, self.wake, self.wakes, connection, *self.children.values()):
            one.close()
        for number in (signal.SIGCHLD, *IGNORED):
            signal.signal(number, signal.SIG_IGN if number in request.process["ignored signals"] else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update({name: value for name, value in request.environment.items() if name != SERVER})
        die_with_parent()
        if os.getppid() != self.own:
            os.kill(os.getpid(), signal.SIGTERM)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # forks would draw the same numbers; Python's own generator does this itself
        invalidate_caches()
        signal.pthread_sigmask(signal.SIG_SETMASK, request.process["blocked signals"])


def _run(request: Request) -> None:
    """Run a module as `python -m` does."""
    spec = find_spec(request.module)
    main = ModuleType("__main__")
    code = spec.loader.get_code(request.module)
    main.__dict__.update(__spec__=spec, __file__=spec.origin, __loader__=spec.loader, __package__=spec.parent, __cached__=spec.cached)
    main.__dict__["__builtins__"] = __builtins__
    sys.argv[:] = [spec.origin, *request.arguments]
    sys.orig_argv[1:] = ["-m", request.module, *request.arguments]
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


class _Exit:
    """End a fork after its exit handlers. Python would then take half a second to free each object, in pages that the fork shares."""

    def __init__(self) -> None:
        self.code: int | None = None
        if atexit._ncallbacks() == 0:  # handlers run in reverse order
            atexit.register(self._end)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the exit code of the block."""
        try:
            yield
            self.code = 0
        except SystemExit as error:
            self.code = 0 if error.code is None else error.code & 0xFF if isinstance(error.code, int) else 1
            raise
        except Exception:
            self.code = 1
            raise

    def _end(self) -> None:
        if self.code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)


def serve(listener: int, lifeline: int) -> None:
    """Serve stages until the other end of `lifeline` closes and every fork has ended. Both are descriptors of sockets."""
    end = _Exit()
    request = _Server(socket.socket(fileno=listener), socket.socket(fileno=lifeline)).serve()
    if request is None:
        os._exit(0)  # without the exit handlers of the libraries
    with end.recorded():
        _run(request)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
