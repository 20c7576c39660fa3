"""Define the error that a user can correct, and shorten reasons to one line."""

from __future__ import annotations

import re

LONGEST = 200  # characters of a library's message that are kept


class BadInput(ValueError):
    """Raised for a wrong file, folder, setting or package.

    The message is one line: what is wrong, where, and what to do. Flows print that line instead of a traceback, and never retry.
    """


def in_short(error: BaseException | str) -> str:
    """Return an error's message on one line of at most LONGEST characters, or its type if the message is empty.

    >>> in_short(KeyError("detector"))
    "no 'detector'"
    """
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):  # the key is the whole message
        said = f"no {said}"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def in_general(reason: str) -> str:
    """Replace names and numbers, which concern one file only, in a reason.

    >>> in_general("mask 30_mask.png is 90x96, the picture 96x96 (see a.png)")
    'mask … is …, the picture … (see …)'
    """
    return re.sub(r"[^\s(),]*\d[^\s(),]*|[^\s(),]+\.\w{2,4}\b", "…", reason)
