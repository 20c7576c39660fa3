"""Sums up why files were left out, for many files at once."""

from __future__ import annotations

import re


def in_general(reason: str) -> str:
    """Gives a reason without what is of one file alone: names and numbers.

    >>> in_general("mask 30_mask.png is 90x96, the picture 96x96 (see a.png)")
    'mask … is …, the picture … (see …)'
    """
    return re.sub(r"[^\s(),]*\d[^\s(),]*|[^\s(),]+\.\w{2,4}\b", "…", reason)
