"""Set how much a command and its libraries print. The Prefect UI has all of it anyway."""

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
    """Return the volume of this process, or of the one that started it."""
    try:
        return Volume(os.environ.get(VOLUME, Volume.NORMAL))
    except ValueError:
        return Volume.NORMAL


def set_volume(wanted: Volume) -> None:
    """Set the volume of this process and those that it starts. To be called after Prefect and DVC, which set up logs, are imported."""
    os.environ[VOLUME] = wanted
    logging.getLogger("dvc").propagate = False  # it prints by itself
    if wanted == Volume.VERBOSE:
        return
    logging.getLogger("dvc").setLevel(logging.ERROR)  # what fails is raised; a folder that is empty is one that a stage left so
    if "prefect" not in sys.modules:
        return
    from prefect.logging.handlers import PrefectConsoleHandler

    for logger in [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]:
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, PrefectConsoleHandler):
                handler.addFilter(_is_news)  # twice is once


def set_volume_of_workers() -> None:
    """Limit the console of a stage's worker processes, which start with Prefect's own log. To be called by the stage alone: it would hide
    what `_is_news` lets through."""
    if volume() != Volume.VERBOSE:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = logging.getLevelName(LEVELS[volume()])


def hide_bars() -> None:
    """Disable the progress bars of the processes that this one starts, where nobody watches them on a terminal."""
    if volume() == Volume.QUIET or (volume() == Volume.NORMAL and not sys.stderr.isatty()):
        os.environ["TQDM_DISABLE"] = "1"


def _is_news(record: logging.LogRecord) -> bool:
    """Filter the log: an error is printed once, at the command's end."""
    if getattr(record, SAID, False):
        return False
    if record.name.startswith("prefect") and (record.exc_info or str(record.msg).startswith(("Finished in state", "Task run failed"))):
        return volume() == Volume.NORMAL and TRIED_AGAIN in str(record.msg)
    return record.levelno >= LEVELS.get(volume(), logging.NOTSET)
