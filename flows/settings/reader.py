"""Reads a part of pipelines.yaml into the types that say what it may hold, or says in one line what is wrong, and at which key."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from changepair.tasks.common.bounds import MOST
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import PASSWORD_IN_URL, holds_password
from changepair.tasks.common.texts import read_text

FILE = Path("pipelines.yaml")
MERGE = "<<<<<<< "
"""Of the marks that Git leaves in a file where a merge is to be gone through."""
MOST_VALUES = 100_000  # of a file; aliases of aliases come to billions
LONGEST = 120  # characters of a value in an error
UNKNOWN_KEYS = ("extra_forbidden", "unexpected_keyword_argument")
IN_FULL = "in_full"
"""The type of an error whose message says all but the place."""
DEEPEST = 100
"""Levels of lists and sections in one another. Python goes through ten times as many, and not where it is deep in other calls already."""
BRACKET = re.compile(r"[\[\]{}]")
BEGINNING = re.compile(r"^[ \t?-]+", re.MULTILINE)
SettingsT = TypeVar("SettingsT")
Keys = tuple[str | int, ...]


_held: dict[Path, Any] = {}


def hold(file: Path = FILE) -> Any:
    """Reads the file, and has this process read no other content of it from then on, whoever edits it; gives it. Raises BadInput."""
    _held[file] = read_again(file)
    return _held[file]


def read_yaml(file: Path = FILE) -> Any:
    """Reads the file by the library that DVC reads it with. Raises BadInput with the line if it is missing or not YAML, and with the key of
    a number that is none, or too great, or of a text that cannot be shown."""
    return deepcopy(_held[file]) if file in _held else read_again(file)


def read_again(file: Path = FILE) -> Any:
    """Reads the file as it is now, whatever is held. Raises BadInput as `read_yaml`."""
    if not file.exists():
        raise BadInput(f"{file}: not there; run this from the project's root")
    content = load_yaml(file)
    check_values(content, file)
    return content


def load_yaml(file: Path) -> Any:
    """Reads YAML by the library that DVC reads it with. Raises BadInput with the line if it is not there or not YAML."""
    return parse_yaml(read_text(file), file)


def parse_yaml(text: str, file: Path | str) -> Any:
    """Reads YAML. file: where it is, or words for where it came from. Raises BadInput with the line."""
    if not _is_shallow(text):  # the library would take the process down with it
        raise BadInput(f"{file}: more than {DEEPEST:,} levels of lists and sections")
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {min(mark.line, text.count(chr(10))) + 1}" if mark else ""  # the end is a line more for the library
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        if MERGE in text:
            how = f"(`git checkout --ours {file}`, or --theirs)" if isinstance(file, Path) else "and commit that"
            what = f"{what}; it has Git's marks of a merge, so choose one side {how}"
        raise BadInput(f"{file}: not YAML{place}: {what}") from error
    except Exception as error:  # the library's own, of a number of thousands of digits or a date that is none
        raise BadInput(f"{file}: not YAML ({type(error).__name__}: {' '.join(str(error).split())[:100]})") from error


def _is_shallow(text: str) -> bool:
    """Tells whether YAML has at most DEEPEST levels, without reading it: by the brackets that are open at once, be they in words, and by
    how far a line is indented, dashes and question marks included, each of which may open one."""
    open_now = deepest = 0
    for bracket in BRACKET.findall(text):
        open_now = open_now + 1 if bracket in "[{" else max(0, open_now - 1)
        deepest = max(deepest, open_now)
    return max(deepest, max((len(start) for start in BEGINNING.findall(text)), default=0)) <= DEEPEST


def check_values(content: Any, file: Path = FILE) -> None:
    """Raises BadInput, with the key, for what no setting may be, whichever it is."""
    for count, (keys, value) in enumerate(_leaves(content, (), set())):
        wrong = _unusable(value) if count < MOST_VALUES else f"the file has more than {MOST_VALUES:,} values"
        if wrong:
            raise BadInput(f"{file}: {dotted(keys)}: {wrong}")


def _leaves(value: Any, at: Keys, above: set[int]) -> Iterator[tuple[Keys, Any]]:
    """Yields keys and values of a tree; an alias that leads into itself is a leaf, and so is what is DEEPEST levels down."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or id(value) in above or len(at) >= DEEPEST:
        yield at, value
        return
    for key, one in inner:
        if isinstance(value, dict):
            yield (*at, str(key)), key
        yield from _leaves(one, (*at, key if isinstance(key, int) else str(key)), above | {id(value)})


def _unusable(value: Any) -> str:
    """Says what no setting may be, whichever it is; "" if nothing."""
    if isinstance(value, (dict, list)):
        return f"an alias that leads into itself, or more than {DEEPEST} levels of lists and sections"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a number, not {value}"
    if isinstance(value, int) and abs(value) > MOST:
        return f"expected a number up to {MOST:,}" + (f", not {value}" if abs(value) < 10**20 else "")
    if isinstance(value, str) and not all(letter.isprintable() or letter in "\n\t" for letter in value):
        return f"expected text that can be shown, not {value[:80]!r}"
    if isinstance(value, str) and holds_password(value):
        return PASSWORD_IN_URL
    return "" if value is None or isinstance(value, (bool, float, int, str)) else f"expected no {type(value).__name__}"


def parse(kind: type[SettingsT], value: Any, at: Keys = (), file: Path = FILE) -> SettingsT:
    """Reads `value` as `kind`. Raises BadInput with the path of the first wrong key, what was expected, and the nearest valid name."""
    try:
        return TypeAdapter(kind).validate_python({} if value is None and _has_fields(kind) else value)
    except ValidationError as error:
        # A misspelt key often causes another error (a missing one); the misspelling is the one to tell.
        first = min(error.errors(), key=lambda detail: detail["type"] not in (*UNKNOWN_KEYS, IN_FULL))
        raise BadInput(f"{file}: {_told(first, kind, at)}") from error


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """Gives `; did you mean 'x'?`, or the valid names if none is near, or nothing if there is none at all."""
    names = [str(item) for item in valid]
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(repr(item) for item in names)}" if names else ""


def dotted(keys: Keys) -> str:
    """Gives the path of a key on one line."""
    names = (key if isinstance(key, int) or key.isprintable() else repr(key)[1:-1] for key in keys)
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")


def _told(detail: ErrorDetails, kind: Any, at: Keys) -> str:
    place = tuple(key for key in detail["loc"] if key != "[key]")
    path = dotted((*at, *place))
    if detail["type"] == IN_FULL:
        return f"{path}: {detail['msg']}"
    if detail["type"] in UNKNOWN_KEYS:
        return f"{path}: unknown key{nearest(str(place[-1]), names_at(kind, place[:-1]))}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{path}: missing"
    if detail["type"] == "literal_error":
        expected, given = str(detail["ctx"]["expected"]), detail["input"]
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        near = get_close_matches(str(given), choices, n=1)
        return f"{path}: expected {expected}, not {_shown(given)}" + (f"; did you mean {near[0]!r}?" if near else "")
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        inner, _, rest = expected.partition(": ")
        return f"{path}.{inner}: expected {rest}" if rest and inner.isidentifier() else f"{path}: expected {expected}"
    return f"{path}: expected {expected}, not {_shown(detail['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _has_fields(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)) or typing.is_typeddict(kind)


def names_at(kind: Any, place: Keys) -> list[str]:
    """List the keys that are valid at `place` within `kind`."""
    for key in place:
        kind = _inner(kind, key)
    return [str(name) for name in _fields(kind)]


def _inner(kind: Any, key: str | int) -> Any:
    fields = _fields(kind)
    if key in fields:
        return fields[key]
    arguments = typing.get_args(kind)
    return arguments[-1] if arguments else None


def _fields(kind: Any) -> dict[Any, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or hasattr(kind, "__total__"):
        return dict(typing.get_type_hints(kind))
    return {}


def as_json(settings: Any) -> Any:
    """Return settings as JSON has them, with their defaults."""
    return TypeAdapter(Any).dump_python(settings, mode="json")


def renamed_setting(place: str, section: Mapping[str, Any], old: str, new: str) -> None:
    """Say on stderr, once a process, that a setting has another name now. Raises ValueError if the section has both."""
    if new in section:
        raise ValueError(f"{place}.{old}: is called {new} now, which is given too; leave one out")
    _say_renamed(f"{place}.{old}", new)


@cache
def _say_renamed(old: str, new: str) -> None:
    print(f"changepair: {FILE}: pipelines.<name>.{old} is now called {new}; the old name will not be read in 0.2", file=sys.stderr)
