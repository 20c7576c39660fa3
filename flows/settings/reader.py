"""Parse pipelines.yaml into typed settings. An error is one line with the path of the key."""

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
"""Start of the conflict markers that Git writes into a file."""
MOST_VALUES = 100_000  # in a file; nested aliases can expand to billions
LONGEST = 120  # characters of a value in an error
UNKNOWN_KEYS = ("extra_forbidden", "unexpected_keyword_argument")
IN_FULL = "in_full"
"""Type of an error whose message is complete except for the path."""
DEEPEST = 100
"""Nesting levels of lists and sections. It stays far below Python's recursion limit of 1,000."""
WORDING = {  # of pydantic's expectations, for readers of YAML
    r"a valid (tuple|list)": "a list",
    r"a valid dictionary.*|a dictionary or .*": "a section",
    r"a valid integer.*": "a whole number",
    r"a valid number.*": "a number",
    r"a valid boolean.*": "true or false",
    r"a valid string": "text",
    r"String should match pattern (.*)": r"text that matches \1",
    r"String should have at most (.*)": r"at most \1",
}
KEY = re.compile(r"[a-z_]+(\.[a-z_]+|\.<name>)*")
CHOICE = re.compile(r"(literal|function-[a-z]+)\[|constrained-(int|float|str)$")
"""Name that pydantic gives a type among several."""
BRACKET = re.compile(r"[\[\]{}]")
BEGINNING = re.compile(r"^[ \t?-]+", re.MULTILINE)
SettingsT = TypeVar("SettingsT")
Keys = tuple[str | int, ...]


_held: dict[Path, Any] = {}


def hold(file: Path = FILE) -> Any:
    """Read the file and return its content. This process keeps that content from then on, even if the file is edited. Raises BadInput."""
    _held[file] = read_again(file)
    return _held[file]


def read_yaml(file: Path = FILE) -> Any:
    """Read the file with the library that DVC uses. Raises BadInput if the file is missing, is invalid YAML, or has an unusable value. The
    message has the line or the key."""
    return deepcopy(_held[file]) if file in _held else read_again(file)


def read_again(file: Path = FILE) -> Any:
    """Read the file from disk, even if `hold` keeps its content. Raises BadInput like `read_yaml`."""
    if not file.exists():
        raise BadInput(f"{file}: not found; run the command from the project's root")
    content = load_yaml(file)
    check_values(content, file)
    return content


def load_yaml(file: Path) -> Any:
    """Read a YAML file with the library that DVC uses. Raises BadInput, with the line, if it is missing or invalid."""
    return parse_yaml(read_text(file), file)


def parse_yaml(text: str, file: Path | str) -> Any:
    """Parse YAML. `file` is its path or a description of its origin, for messages. Raises BadInput with the line."""
    if not _is_shallow(text):  # the library would crash the process
        raise BadInput(f"{file}: more than {DEEPEST:,} nested levels of lists and sections")
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {min(mark.line, text.count(chr(10))) + 1}" if mark else ""  # the library counts the end as a line
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        if MERGE in text:
            how = f"(`git checkout --ours {file}`, or --theirs)" if isinstance(file, Path) else "and commit it"
            what = f"{what}; the file has merge conflict markers, so choose one side {how}"
        raise BadInput(f"{file}: invalid YAML{place}: {what}") from error
    except Exception as error:  # the library raises others for a number of thousands of digits or an invalid date
        raise BadInput(f"{file}: invalid YAML ({type(error).__name__}: {' '.join(str(error).split())[:100]})") from error


def _is_shallow(text: str) -> bool:
    """Return whether YAML has at most DEEPEST levels, without parsing it.

    Each open bracket, even in text, may open a level; so may each character of indentation, dash and question mark.
    """
    open_now = deepest = 0
    for bracket in BRACKET.findall(text):
        open_now = open_now + 1 if bracket in "[{" else max(0, open_now - 1)
        deepest = max(deepest, open_now)
    return max(deepest, max((len(start) for start in BEGINNING.findall(text)), default=0)) <= DEEPEST


def check_values(content: Any, file: Path = FILE) -> None:
    """Check every value for what no setting allows. Raises BadInput with the key."""
    for count, (keys, value) in enumerate(_leaves(content, (), set())):
        wrong = _unusable(value) if count < MOST_VALUES else f"the file has more than {MOST_VALUES:,} values"
        if wrong:
            raise BadInput(f"{file}: {dotted(keys)}: {wrong}")


def _leaves(value: Any, at: Keys, above: set[int]) -> Iterator[tuple[Keys, Any]]:
    """Yield the keys and values of a tree. An alias that contains itself, or a value DEEPEST levels down, counts as a leaf."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or id(value) in above or len(at) >= DEEPEST:
        yield at, value
        return
    for key, one in inner:
        if isinstance(value, dict):
            yield (*at, str(key)), key
        yield from _leaves(one, (*at, key if isinstance(key, int) else str(key)), above | {id(value)})


def _unusable(value: Any) -> str:
    """Explain why a value is invalid for any setting; "" if it is usable."""
    if isinstance(value, (dict, list)):
        return f"an alias contains itself, or there are more than {DEEPEST} nested levels of lists and sections"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a number, not {value}"
    if isinstance(value, int) and abs(value) > MOST:
        return f"expected a number up to {MOST:,}" + (f", not {value}" if abs(value) < 10**20 else "")
    if isinstance(value, str) and not all(letter.isprintable() or letter in "\n\t" for letter in value):
        return f"expected printable text, not {value[:80]!r}"
    if isinstance(value, str) and holds_password(value):
        return PASSWORD_IN_URL
    return "" if value is None or isinstance(value, (bool, float, int, str)) else f"a {type(value).__name__} is not supported"


def parse(kind: type[SettingsT], value: Any, at: Keys = (), file: Path = FILE) -> SettingsT:
    """Parse `value` as `kind`. Raises BadInput with the path of the first wrong key, what was expected, and the nearest valid name."""
    try:
        return TypeAdapter(kind).validate_python({} if value is None and _has_fields(kind) else value)
    except ValidationError as error:
        # A misspelt key often causes a second error, for the missing key. The misspelling is the one to report.
        first = min(error.errors(), key=lambda detail: detail["type"] not in (*UNKNOWN_KEYS, IN_FULL))
        choices = [one for one in error.errors() if _is_choice(one) and one["loc"][:-1] == first["loc"][:-1]]
        raise BadInput(f"{file}: {_of_choices(choices, at) if _is_choice(first) else _message(first, kind, at)}") from error


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the valid names if no name is near, or "" without valid names."""
    names = [str(item) for item in valid]
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(repr(item) for item in names)}" if names else ""


def dotted(keys: Keys) -> str:
    """Format the path of a key on one line."""
    names = (key if isinstance(key, int) or key.isprintable() else repr(key)[1:-1] for key in keys)
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")


def _is_choice(detail: ErrorDetails) -> bool:
    """Return whether the path of an error ends with one of several types that a setting may have, such as `constrained-int`."""
    return bool(detail["loc"]) and CHOICE.match(str(detail["loc"][-1])) is not None


def _of_choices(details: typing.Sequence[ErrorDetails], at: Keys) -> str:
    """Describe a value that has none of the types that a setting may have."""
    expected = [_expected(one["msg"]).partition(", not ")[0] for one in details]
    return f"{dotted((*at, *details[0]['loc'][:-1]))}: expected {' or '.join(expected)}, not {_shown(details[0]['input'])}"


def _expected(message: str) -> str:
    """Describe what pydantic expects in the words of YAML."""
    expected = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return next((found.expand(text) for pattern, text in WORDING.items() if (found := re.fullmatch(pattern, expected))), expected)


def _message(detail: ErrorDetails, kind: Any, at: Keys) -> str:
    place = tuple(key for key in detail["loc"] if key != "[key]")
    path = dotted((*at, *place))
    if detail["type"] == IN_FULL:
        return f"{path}: {detail['msg']}"
    if detail["type"] in UNKNOWN_KEYS:
        return f"{path}: unknown key{nearest(str(place[-1]), names_at(kind, place[:-1]))}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{path}: missing; this setting is required"
    if detail["type"] == "literal_error":
        expected, given = str(detail["ctx"]["expected"]), detail["input"]
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        near = get_close_matches(str(given), choices, n=1)
        return f"{path}: expected {expected}, not {_shown(given)}" + (f"; did you mean {near[0]!r}?" if near else "")
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        inner, _, rest = expected.partition(": ")
        path, wanted = (f"{path}.{inner}", rest) if rest and KEY.fullmatch(inner) else (path, expected)
        return f"{path}: {wanted}" if wanted.startswith("must ") else f"{path}: expected {wanted}"
    return f"{path}: expected {_expected(detail['msg'])}, not {_shown(detail['input'])}"


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
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
    """Return settings as JSON values, with their defaults."""
    return TypeAdapter(Any).dump_python(settings, mode="json")


def renamed_setting(place: str, section: Mapping[str, Any], old: str, new: str) -> None:
    """Warn on stderr, once per process, that a setting was renamed. Raises ValueError if the section has both names."""
    if new in section:
        raise ValueError(f"{place}.{old}: must not be set together with {new}, its new name; remove {old}")
    _say_renamed(f"{place}.{old}", new)


@cache
def _say_renamed(old: str, new: str) -> None:
    print(f"changepair: {FILE}: pipelines.<name>.{old} was renamed to {new}; version 0.2 will not read the old name", file=sys.stderr)
