"""The one error that is the user's to mend, and reasons in one line."""

from __future__ import annotations

import re

LONGEST = 200  # characters of what a library says


class BadInput(ValueError):
    """Something outside the code is wrong: a file, a folder, a setting, a missing package.

    Its message is one line that says what is wrong, where, and what to do. Flows print that line
    instead of a traceback, and never retry.
    """


def in_short(error: BaseException | str) -> str:
    """Gives what a library says on one line, of no more than LONGEST characters; the kind of error where it says nothing.

    >>> in_short(KeyError("detector"))
    "no 'detector'"
    """
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):  # which says the key alone
        said = f"no {said}"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def in_general(reason: str) -> str:
    """Gives a reason without what is of one file alone: names and numbers.

    >>> in_general("mask 30_mask.png is 90x96, the picture 96x96 (see a.png)")
    'mask … is …, the picture … (see …)'
    """
    return re.sub(r"[^\s(),]*\d[^\s(),]*|[^\s(),]+\.\w{2,4}\b", "…", reason)
