"""End a command with one line, without secrets, for errors that the user can correct. It starts fast because it imports no Prefect."""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import requires
from pathlib import Path
from traceback import walk_tb

from changepair.flows.running.console import SAID
from changepair.flows.running.progress import FAILURE, STOP, report
from changepair.flows.running.secrets import hide, hide_in_log
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import NO_ROOM
from changepair.tasks.common.places import is_of_store
from changepair.tasks.common.stopping import CTRL_C, Stopped

PARENT = "CHANGEPAIR_PARENT_TASK_RUN"  # environment variable: the id of the task run that started this process
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
CLOSED_PIPE = 128 + signal.SIGPIPE
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
NO_HOME = "Could not determine home directory."  # of pathlib, for ~name
DISK_FULL = (os.strerror(errno.ENOSPC), "disk is full")  # in messages of libraries that raise no OSError, such as SQLite


def exit_on_bad_input(work: Callable[[], object]) -> None:
    """Run `work`, and end the process with one line and exit code 2 on an error that the user can correct.

    SIGTERM ends it with exit code 143, Ctrl-C with 130. The run that started this process prints the line; without one, it goes to stderr.
    """
    log_in_lines()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # printing ± to an ASCII terminal must not end a run
    try:
        if PARENT not in os.environ:
            stopping.admit_ctrl_c()  # it was blocked during imports
        work()
    except KeyboardInterrupt:
        tell("stopped by Ctrl-C")
        sys.exit(CTRL_C)
    except SystemExit:
        raise
    except BaseException as error:  # on SIGTERM between two of its steps, Prefect raises a BaseException
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
            sys.exit(CLOSED_PIPE)
        line = _line_of(error)
        if line is None:
            raise
        ended = isinstance(error, Stopped) or stopping.asked()
        if ended:
            report(STOP, _where(error))
        if not report(FAILURE, hide(line)):
            tell(line)
        sys.exit(stopping.exit_code() if ended else 2)


def _output_is_closed() -> bool:
    """Return whether the program that reads this process's output has ended, as `head` does."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # an output without a file
        poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _file, event in poll.poll(0))


def end_at_ctrl_c_when_saved() -> None:
    """Let Ctrl-C end this process after its results are saved. If a run started the process, that run stops it instead.

    Call it before importing libraries that start threads, because each thread would receive the signal too.
    """

    def end_all() -> None:
        import psutil

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        tell("killed; the next run resumes from the last saved state")

    if PARENT not in os.environ:
        stopping.hear_ctrl_c(lambda: tell("stopping after the current work is saved; press Ctrl-C again to end at once"), end_all)


def log_in_lines() -> None:
    """Configure logging: one line for an error that the user can correct, and no secrets."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_one_line)
        logging.getLogger(name).addFilter(hide_in_log)


def tell(line: str) -> None:
    """Print a line to stderr."""
    print(f"changepair: {hide(line)}", file=sys.stderr, flush=True)


def _line_of(error: BaseException | None) -> str | None:
    """Describe an error that the user can correct, or a stop, in one line; None for a fault of the code."""
    if isinstance(error, BadInput):
        return str(error)
    if isinstance(error, Stopped) or stopping.asked():  # a child process may have received the signal too, and failed
        return f"stopped ({_where(error)}); finished work is kept, and the next run resumes from there"
    cause = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError):
            return _extra_for(cause)
        if (isinstance(cause, OSError) and cause.errno in NO_ROOM) or any(words in str(cause) for words in DISK_FULL):
            return f"the disk of {Path.cwd()} is full ({cause}); free some space and run the command again"
        if isinstance(cause, OSError) and cause.errno in FORBIDDEN and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror}; change its permissions, or use another path"
        if isinstance(cause, OSError) and cause.errno in NO_NAMES and cause.filename is not None:
            return f"{in_short(str(cause.filename))}: {cause.strerror}; use another path"
        words = " ".join(str(cause).split())
        if isinstance(cause, RuntimeError) and words == NO_HOME:
            return "~: no such user, or the user has no home folder; name the folder without ~"
        if type(cause).__module__.partition(".")[0] == "dvc":
            return f"DVC: {words}"
        if is_of_store(cause):
            return f"a store does not answer, or refuses access ({words}); check its address and credentials, and run the command again"
        cause = cause.__cause__ or cause.__context__
    return None


def _where(error: BaseException | None) -> str:
    return str(error) if isinstance(error, Stopped) else "in the middle of a step"


def _one_line(record: logging.LogRecord) -> bool:
    """Filter the log: replace Prefect's traceback with one line if the user can correct the error."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    line = _line_of(error)
    if line is not None:
        record.msg, record.args, record.exc_info = line, (), None
        setattr(record, SAID, True)  # the command prints it at its end
    return True


EXTRAS = ("pipelines", "serve", "export", "samples", "s3", "plots", "trackers")
SERVICES = "changepair.flows.prediction."  # modules of the demo and the service, which share packages with pipelines
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Names of distributions that differ from their module's name."""


def _extra_for(error: ModuleNotFoundError) -> str | None:
    """Return a message with the extra that installs a missing module; None if no extra does."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    module = (error.name or "").partition(".")[0]
    distribution = canonicalize_name(DISTRIBUTIONS.get(module, module))
    needed = [one for one in map(Requirement, requires("changepair") or ()) if canonicalize_name(one.name) == distribution]
    having = [name for name in EXTRAS if any(one.marker is not None and one.marker.evaluate({"extra": name}) for one in needed)]
    if not having:
        return None
    served = any(frame.f_globals.get("__name__", "").startswith(SERVICES) for frame, _line in walk_tb(error.__traceback__))
    extra = "serve" if served and "serve" in having else having[0]
    return f"{module} is not installed; install it with `pip install 'changepair[{extra}]'`"
