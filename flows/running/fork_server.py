"""Serve forks of one process that has imported the libraries of all stages. fork_client.py has the client, the command of a stage.

`python -m changepair.flows.running.fork_server <listener> <lifeline>` runs the server. Its arguments are file descriptors of sockets.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import invalidate_caches
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

from changepair.flows.running.fork_client import FORWARDED, SERVER, Request, describe_process
from changepair.flows.running.sources import Sources
from changepair.tasks.common.stopping import die_with_parent

IGNORED = (signal.SIGTERM, signal.SIGHUP)  # signals that the server ignores, because it ends after the run
PATIENCE = 30.0  # seconds that a request may take to arrive
ALWAYS = (
    "changepair.flows.running.entry",
    "prefect",
    "changepair.flows.running.api",
    "changepair.flows.running.steps",
    "prefect.concurrency.services",
    "prefect.task_runners",
    "prefect.utilities.visualization",
    "anyio._backends._asyncio",
    "pandas",
)
"""Modules that every flow imports. They and those of NEEDED start no Python thread and initialise no GPU."""
NEEDED = {
    "ingest": ("changepair.tasks.ingestion.ingest",),
    "objects": ("changepair.tasks.ingestion.objects.ingest",),
    "sample": ("changepair.tasks.sampling.sample",),
    "inpainter": ("changepair.tasks.inpainting.inpainter",),
    "synthesize": ("changepair.tasks.synthesis.synthesize",),
    "train": ("changepair.tasks.detectors.train", "changepair.tasks.training.processes"),
    "score": ("changepair.tasks.scoring.batch_scoring",),
    "metrics": ("changepair.tasks.scoring.measure", "changepair.tasks.reporting.curves"),
    "report": ("changepair.tasks.reporting.galleries", "changepair.tasks.reporting.report", "changepair.flows.promotion.history"),
}
"""Modules that each kind of stage imports. A module that is not listed is imported in each fork."""


def _kinds_from(kind: str) -> Iterator[str]:
    """List a kind of stage and the kinds after it in dvc.yaml, which lists stages in order."""
    with suppress(OSError), open("dvc.yaml", encoding="utf-8") as plan:
        kinds = list(dict.fromkeys(re.findall(r"^ +cmd: python -m changepair\.flows\.(\w+)", plan.read(), re.MULTILINE)))
        yield from kinds[kinds.index(kind) :] if kind in kinds else ()


class _Server:
    """Fork a process for each stage, and report its end to the command of the stage. It has one thread, because a fork keeps only one."""

    def __init__(self, listener: socket.socket, lifeline: socket.socket) -> None:
        self.process, self.sources = describe_process(), Sources()
        self.listener, self.lifeline, self.pid = listener, lifeline, os.getpid()
        self.children: dict[int, socket.socket] = {}
        self.waiting: list[str] = []  # modules to import while a stage runs
        self.ended = False
        self.wake, wakes = socket.socketpair()
        wakes.setblocking(False)
        self.wakes = wakes
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wakes.fileno())

    def serve(self) -> Request | None:
        """Serve until the run and all forks have ended, and return None. In a fork, return the request of its stage."""
        while self.children or not self.ended:
            idle = self.waiting and not self.ended
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
        """Send the wait status of each fork that has ended to the command of its stage."""
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
            connection.sendall((f"plain {refusal}\n" if fork is None else f"started {fork}\n").encode(errors="surrogateescape"))
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
        """Import the modules of the stage. Return why a fork would differ from a plain start; "" if it would not."""
        differing = [name for name, value in self.process.items() if request.process.get(name) != value]
        if "environment" in differing:
            ours, theirs = self.process["environment"], request.process["environment"]
            differing += sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            return f"it differs from the run: {', '.join(differing)}"
        kind = request.command[2].rpartition(".")[2]
        self.sources.load((*ALWAYS, *NEEDED.get(kind, ())))
        self.waiting = [name for later in _kinds_from(kind) for name in NEEDED.get(later, ()) if name not in sys.modules]
        if threading.active_count() > 1:
            return "a module has started a thread"
        changed = self.sources.changed()
        return f"{changed} has changed" if changed else ""

    def _fork(self) -> int:
        """Fork with signals blocked. Return 0 in the fork, and its process id in the server."""
        gc.freeze()  # otherwise a collection in the fork copies the pages of all objects
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about the threads of NumPy's BLAS, which it stops before a fork
            fork = os.fork()
        if fork:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return fork

    def _become(self, request: Request, streams: list[int], connection: socket.socket) -> None:
        """Give the fork the streams, signal handlers, search path and environment of the stage's command."""
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        signal.set_wakeup_fd(-1)
        for one in (self.listener, self.lifeline, self.wake, self.wakes, connection, *self.children.values()):
            one.close()
        for number in (signal.SIGCHLD, *IGNORED):
            signal.signal(number, signal.SIG_IGN if number in request.process["ignored signals"] else signal.SIG_DFL)
        sys.path[:] = request.process["interpreter"][0]  # without the folder that OpenCV adds
        os.environ.clear()
        os.environ.update({name: value for name, value in request.environment.items() if name != SERVER})
        die_with_parent()
        if os.getppid() != self.pid:
            os.kill(os.getpid(), signal.SIGTERM)
        # Otherwise all forks draw the same numbers. Python's own generator is seeded at each fork.
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        if "torch" in sys.modules:
            sys.modules["torch"].default_generator.seed()
        invalidate_caches()
        signal.pthread_sigmask(signal.SIG_SETMASK, request.process["blocked signals"])


def _run(request: Request) -> None:
    """Run a module as `python -m` does."""
    main, spec = ModuleType("__main__"), cast(Any, find_spec(request.command[2]))
    main.__dict__.update(__spec__=spec, __file__=spec.origin, __loader__=spec.loader, __package__=spec.parent, __cached__=spec.cached)
    sys.orig_argv[:] = request.command
    sys.argv[:] = [spec.origin, *request.command[3:]]
    sys.modules["__main__"] = main
    exec(spec.loader.get_code(request.command[2]), main.__dict__)


class _Exit:
    """End a fork after its exit handlers, without freeing its objects. Freeing takes half a second, because it copies shared pages."""

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
        """Flush open files, and exit."""
        if self.code is None:
            return
        for one in gc.get_objects():  # of the fork: those of the server are frozen
            if issubclass(type(one), io.IOBase) and not one.closed:
                with suppress(OSError, ValueError):
                    one.flush()
        os._exit(self.code)


def serve(listener: int, lifeline: int) -> None:
    """Serve stages until the other end of `lifeline` closes and every fork has ended. The arguments are file descriptors of sockets."""
    end = _Exit()
    request = _Server(socket.socket(fileno=listener), socket.socket(fileno=lifeline)).serve()
    if request is None:
        os._exit(0)  # without the exit handlers of the libraries
    with end.recorded():
        _run(request)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
