"""How much a command says on the console, and what its libraries may say there. The Prefect UI has all of it, whatever is said here."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum

VOLUME = "CHANGEPAIR_CONSOLE"  # environment: for the processes that this one starts
SAID = "changepair_said"  # marks a line of a run's log that the console has in words of its own


class Volume(StrEnum):
    QUIET = "quiet"  # what goes wrong
    NORMAL = "normal"  # a line a milestone, too
    VERBOSE = "verbose"  # all that Prefect and DVC say, too


LEVELS = {Volume.QUIET: logging.ERROR, Volume.NORMAL: logging.WARNING}  # of what libraries say
TRIED_AGAIN = " - Retry "  # in what Prefect says, at INFO, of a task that failed and is tried again


def volume() -> Volume:
    """Gives what this process, or the one that started it, was told."""
    try:
        return Volume(os.environ.get(VOLUME, Volume.NORMAL))
    except ValueError:
        return Volume.NORMAL


def set_volume(wanted: Volume) -> None:
    """Has this process, and those that it starts, say as much. To be called when Prefect and DVC are imported, which set up their logs."""
    os.environ[VOLUME] = wanted
    logging.getLogger("dvc").propagate = False  # it prints by itself
    if wanted == Volume.VERBOSE:
        return
    logging.getLogger("dvc").setLevel(logging.ERROR)  # what fails is raised; a folder that is empty is one that a stage left so
    for handler in _of_prefect():
        handler.addFilter(_is_news)


def set_volume_of_workers() -> None:
    """Has the processes that share a stage's work, which begin with Prefect's own log, print no more than its warnings. To be called by the
    stage: it would hide from one what `_is_news` lets through."""
    if volume() != Volume.VERBOSE:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = logging.getLevelName(LEVELS[volume()])


def hide_bars() -> None:
    """Disable the progress bars of the processes that this one starts, where nobody watches them on a terminal."""
    if volume() == Volume.QUIET or (volume() == Volume.NORMAL and not sys.stderr.isatty()):
        os.environ["TQDM_DISABLE"] = "1"


def _of_prefect() -> list[logging.Handler]:
    if "prefect" not in sys.modules:
        return []
    from prefect.logging.handlers import PrefectConsoleHandler

    loggers = [logging.getLogger(), *(one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    return list({handler for logger in loggers for handler in logger.handlers if isinstance(handler, PrefectConsoleHandler)})


def _is_news(record: logging.LogRecord) -> bool:
    """Tells what the console would not have else: what was raised is said once, by the command's own end."""
    if getattr(record, SAID, False):
        return False
    if record.name.startswith("prefect") and (record.exc_info or str(record.msg).startswith(("Finished in state", "Task run failed"))):
        return volume() == Volume.NORMAL and TRIED_AGAIN in str(record.msg)
    return record.levelno >= LEVELS.get(volume(), logging.NOTSET)
