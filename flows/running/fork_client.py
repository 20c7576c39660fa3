"""Start the stages of a run as forks of one process that has imported their libraries, which saves seconds a stage.

`changepair retrain` starts this process, the fork server. The command of a stage asks the server for a fork with its arguments,
environment and standard streams. It then exits with the fork's exit code or signal. A fork has no other stage in its memory.

A stage starts plainly, as a new Python process, if there is no server. It also does if an import could have a different result, because
a source file, an installed package, an environment variable or a setting of the process has changed. A stage imports this module first, so
this module imports the standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

SWITCH = "CHANGEPAIR_FORK"  # environment variable: 0 starts every stage plainly
SERVER = "CHANGEPAIR_FORK_SERVER"  # environment variable: the socket of the fork server, for the stages of a run
OF_A_STAGE = {SERVER, "CHANGEPAIR_PARENT_TASK_RUN", "CHANGEPAIR_TOLD", "CHANGEPAIR_LISTENER"}
OF_A_STAGE |= {"DVC_ROOT", "DVC_STAGE", "OLDPWD", "PWD", "SHLVL", "_"}
"""Environment variables of one stage. No library reads them during its import. All others must equal those of the server."""
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the command of a stage passes on to its fork. A terminal sends Ctrl-C to both, so SIGINT is not passed on."""
LAST = 0.5  # seconds for the server to end, because it may be importing a module
CODE = "changepair.flows.code"  # a stage that imports neither Prefect nor torch


class Request(NamedTuple):
    """A request to start a stage."""

    command: list[str]  # python -m <module> <arguments>
    environment: dict[str, str]
    process: dict[str, Any]  # result of `describe_process`


def hand_over() -> None:
    """Run the stage of this process in a fork of the server, and exit as the fork does. Return if the stage starts plainly."""
    address, module = os.environ.get(SERVER), (sys.orig_argv[2:3] or [""])[0]
    is_stage = sys.orig_argv[1:2] == ["-m"] and module.startswith("changepair.flows.") and module.count(".") == 2 and module != CODE
    closed = None in (sys.stdin, sys.stdout, sys.stderr)  # the connection would take the place of a closed stream
    if not address or not is_stage or "DVC_STAGE" not in os.environ or closed or _has_startup_code():
        return
    request = Request(sys.orig_argv, dict(os.environ), describe_process())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until the fork exists
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        message = json.dumps(request).encode()
        socket.send_fds(connection, [struct.pack("!I", len(message))], [0, 1, 2])
        connection.sendall(message)
        answers = connection.makefile("r", encoding="utf-8", errors="surrogateescape")
        word, _, rest = answers.readline().strip().partition(" ")
        if word == "started":
            _follow(int(rest), answers.readline, mask)
        elif os.environ.get("CHANGEPAIR_CONSOLE") == "verbose":
            print(f"changepair: {module} starts without a fork: {rest or 'the fork server has ended'}", file=sys.stderr, flush=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _follow(fork: int, answer: Any, mask: Any) -> None:
    """Pass signals on to a fork, wait for its end, and end this process in the same way."""

    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(fork, number)

    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    line = answer()
    if not line.endswith("\n"):  # the server was killed; its forks then get SIGTERM
        print("changepair: the fork server was killed; run the command again", file=sys.stderr, flush=True)
        forward(signal.SIGTERM, None)
        os._exit(1)
    code = os.waitstatus_to_exitcode(int(line.split()[1]))
    if code < 0:
        with suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code)


def _has_startup_code() -> bool:
    """Return whether Python ran startup code of the user, which may depend on the command. Startup code of the system does not count."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in ("sitecustomize", "usercustomize"))
    return any(file is not None and os.path.dirname(file) != os.path.dirname(os.__file__) for file in files)


def describe_process() -> dict[str, Any]:
    """Describe what a process gets at its start, except for its standard streams. Values have types of JSON."""
    import resource

    umask = os.umask(0)
    os.umask(umask)
    here = os.stat(".")
    return {
        "interpreter": [list(sys.path), sys.executable, sys.version, sys.prefix, list(sys.flags), sys.warnoptions, sorted(sys._xoptions)],
        "environment": {name: value for name, value in os.environ.items() if name not in OF_A_STAGE},
        "working directory": [os.getcwd(), here.st_dev, here.st_ino],
        "user": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "umask": umask,
        "priority": [os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))],
        "limits": [list(resource.getrlimit(getattr(resource, name))) for name in dir(resource) if name.startswith("RLIMIT_")],
        "ignored signals": [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN],
        "blocked signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "terminals": [os.isatty(number) for number in range(3)],
    }


@contextmanager
def fork_server() -> Iterator[None]:
    """Run a fork server for the stages of the block, on Linux, unless CHANGEPAIR_FORK is 0. It imports nothing before the first stage."""
    if sys.platform != "linux" or os.environ.get(SWITCH) == "0":
        yield
        return
    import shutil
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="changepair-", ignore_cleanup_errors=True) as folder:
        address = os.path.join(folder, "stages")
        ours, theirs = socket.socketpair()
        server: subprocess.Popen[bytes] | None = None
        with socket.socket(socket.AF_UNIX) as listener, theirs, suppress(OSError):  # a path may be too long; stages start plainly then
            listener.bind(address)
            listener.listen()
            files = (listener.fileno(), theirs.fileno())
            # DVC starts stages with the `python` of PATH.
            command = [shutil.which("python") or sys.executable, "-m", "changepair.flows.running.fork_server", *map(str, files)]
            server = subprocess.Popen(command, pass_fds=files, env=dict(os.environ))  # as for stages: without variables of C libraries
        os.environ[SERVER] = address
        try:
            yield
        finally:
            os.environ.pop(SERVER, None)
            ours.close()  # ends the server
            if server is not None:
                try:
                    server.wait(timeout=LAST)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
