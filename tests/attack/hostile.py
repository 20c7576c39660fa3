"""What the attacks share: how many inputs each tries, what came of them, and ways to damage a file.

Each is drawn by its number, so that one that gets through can be tried again. `make test` tries a few of each kind, `make attack` hundreds,
and prints how many were refused and accepted; anything else that comes of one fails the test.
"""

from __future__ import annotations

import copy
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from changepair.tasks.common.errors import BadInput

TRIES = int(os.environ.get("CHANGEPAIR_TRIES", "25"))  # of each kind
LONGEST = 1500  # characters of an error's line
COUNTS: Counter[tuple[str, str]] = Counter()


def attack(kind: str, draw: Callable[[random.Random], Any], attempt: Callable[[Any], Any]) -> None:
    """Draws inputs and tries each: `attempt` may give anything, or raise BadInput of one line. kind: what is attacked, for the counts."""
    for number in range(TRIES):
        drawn = draw(random.Random(f"{kind} {number}"))
        try:
            attempt(drawn)
        except BadInput as error:
            line = str(error)
            assert line and "\n" not in line and len(line) < LONGEST, (number, line)
            COUNTS[kind, "refused"] += 1
        except BaseException as error:
            raise AssertionError(f"number {number}: {type(error).__name__}: {error}; of {str(drawn)[:600]!r}") from error
        else:
            COUNTS[kind, "accepted"] += 1


def summary() -> list[str]:
    """Gives a line a kind: how many were tried, and what came of them."""
    lines = []
    for kind in dict.fromkeys(kind for kind, _end in COUNTS):
        ends = {end: count for (one, end), count in COUNTS.items() if one == kind}
        lines.append(f"{kind}: {sum(ends.values())} tried: " + ", ".join(f"{count} {end}" for end, count in ends.items()))
    return lines


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Gives bytes as a disk, a network or an enemy leaves them: cut off, overwritten, with a part twice or gone, or with bits turned."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        at = draw.randrange(len(content) + 1)
        size = draw.choice((1, 2, 4, 64, 4096))
        match draw.choice(("cut", "cut", "write", "zero", "drop", "double", "bit")):
            case "cut":
                del content[at:]
            case "write":
                content[at : at + size] = draw.randbytes(size)
            case "zero":
                content[at : at + size] = bytes(size)
            case "drop":
                del content[at : at + size]
            case "double":
                content[at:at] = content[at : at + size]
            case "bit" if content:
                content[min(at, len(content) - 1)] ^= 1 << draw.randrange(8)
    return bytes(content)


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31 - 1, 2**31, 2**40, 2**63, -(2**70), 10**30, 0.5, -0.0, 1e-300, 1e300,
    float("nan"), float("inf"), float("-inf"),
    "", " ", ".", "..", "/", "~", "~nobody-of-that-name", "data", "data/pairs/x", "remote://", "remote://x/y", "s3://", "-x", "a" * 250,
    "caf\u00e9", "\u202egnp", "a\nb", "\0", "\x1b[31m", "null", "{}", "[]", "${x}", "a: b",
    [], {}, [[]], [None], {"": None}, {"a": {"b": {}}},
    [1, 1], ["x", "x"], "1e5", "0x10", "2020-01-01", "good", "train/../../x",
)  # fmt: skip
"""Values that settings and tables are not made for."""


def changed(tree: Any, draw: random.Random) -> Any:
    """Gives a tree of dicts and lists with one value in it another one, gone, or under another name."""
    places = list(_places(tree))
    if not places:
        return draw.choice(ODD)
    inner, key = draw.choice(places)
    match draw.choice(("odd", "odd", "odd", "gone", "renamed", "other")):
        case "odd":
            inner[key] = draw.choice(ODD)
        case "gone":
            del inner[key]
        case "renamed" if isinstance(inner, dict):
            inner[draw.choice((str(key)[:-1], f"{key}x", "", "\0", "a.b", 7, "a" * 250))] = inner.pop(key)
        case _:
            other, place = draw.choice(places)
            if isinstance(other, list) and place >= len(other):
                return tree
            inner[key] = copy.deepcopy(other[place])
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()):
        yield tree, key
        yield from _places(value)
