"""Set how much a command and its libraries print. The Prefect UI always shows the complete log."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum

VOLUME = "CHANGEPAIR_CONSOLE"  # environment variable, for child processes
SAID = "changepair_said"  # marks a log record that the command prints itself


class Volume(StrEnum):
    QUIET = "quiet"  # errors
    NORMAL = "normal"  # errors, and a line per milestone
    VERBOSE = "verbose"  # also the logs of Prefect and DVC


LEVELS = {Volume.QUIET: logging.ERROR, Volume.NORMAL: logging.WARNING}  # for libraries
TRIED_AGAIN = " - Retry "  # part of Prefect's INFO message about a failed task that it retries


def volume() -> Volume:
    """Return the volume of this process, which children inherit."""
    try:
        return Volume(os.environ.get(VOLUME, Volume.NORMAL))
    except ValueError:
        return Volume.NORMAL


def set_volume(wanted: Volume) -> None:
    """Set the volume of this process and its children. Call it after importing Prefect and DVC, which configure logging on import."""
    os.environ[VOLUME] = wanted
    logging.getLogger("dvc").propagate = False  # DVC has its own handler
    if wanted == Volume.VERBOSE:
        return
    logging.getLogger("dvc").setLevel(logging.ERROR)  # DVC raises failures, and warns about folders that a stage left empty
    if "prefect" not in sys.modules:
        return
    from prefect.logging.handlers import PrefectConsoleHandler

    for logger in [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]:
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, PrefectConsoleHandler):
                handler.addFilter(_is_news)  # adding it again has no effect


def set_volume_of_workers() -> None:
    """Limit the console of a stage's worker processes, which start with Prefect's own logging. Only a stage may call this, because it
    hides records that `_is_news` lets through."""
    if volume() != Volume.VERBOSE:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = logging.getLevelName(LEVELS[volume()])


def hide_bars() -> None:
    """Disable the progress bars of child processes if there is no terminal, or the volume is quiet."""
    if volume() == Volume.QUIET or (volume() == Volume.NORMAL and not sys.stderr.isatty()):
        os.environ["TQDM_DISABLE"] = "1"


def _is_news(record: logging.LogRecord) -> bool:
    """Filter the log so that an error is printed only once, at the command's end."""
    if getattr(record, SAID, False):
        return False
    if record.name.startswith("prefect") and (record.exc_info or str(record.msg).startswith(("Finished in state", "Task run failed"))):
        return volume() == Volume.NORMAL and TRIED_AGAIN in str(record.msg)
    return record.levelno >= LEVELS.get(volume(), logging.NOTSET)
