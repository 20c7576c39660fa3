"""Reads a part of pipelines.yaml into the types that say what it may hold, or says in one line what is wrong, and at which key."""

from __future__ import annotations

import dataclasses
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.errors import BadInput

FILE = Path("pipelines.yaml")
Kind = TypeVar("Kind")
Keys = tuple[str | int, ...]


def read_yaml(file: Path = FILE) -> Any:
    """Reads the file by the library that DVC reads it with. Raises BadInput with the line if it is missing or not YAML."""
    try:
        return YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{file}: not there; run this from the project's root") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise BadInput(f"{file}: not YAML{place}: {getattr(error, 'problem', None) or error}") from error


def parse(kind: type[Kind], value: Any, at: Keys = (), file: Path = FILE) -> Kind:
    """Reads `value` as `kind`. Raises BadInput with the path of the first wrong key, what was expected, and the nearest valid name."""
    try:
        return TypeAdapter(kind).validate_python({} if value is None and _has_fields(kind) else value)
    except ValidationError as error:
        # A misspelt key often causes another error (a missing one); the misspelling is the one to tell.
        first = min(error.errors(), key=lambda detail: detail["type"] not in ("extra_forbidden", "unexpected_keyword_argument"))
        raise BadInput(f"{file}: {_told(first, kind, at)}") from error


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """Gives `; did you mean 'x'?`, or the valid names if none is near, or nothing if there is none at all."""
    names = [str(item) for item in valid]
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(repr(item) for item in names)}" if names else ""


def dotted(keys: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _told(detail: ErrorDetails, kind: Any, at: Keys) -> str:
    place = tuple(key for key in detail["loc"] if key != "[key]")
    path = dotted((*at, *place))
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: unknown key{nearest(str(place[-1]), _names(kind, place[:-1]))}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{path}: missing"
    if detail["type"] == "literal_error":
        expected, given = str(detail["ctx"]["expected"]), detail["input"]
        choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
        near = get_close_matches(str(given), choices, n=1)
        return f"{path}: expected {expected}, not {given!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        inner, _, rest = expected.partition(": ")
        return f"{path}.{inner}: expected {rest}" if rest and inner.isidentifier() else f"{path}: expected {expected}"
    return f"{path}: expected {expected}, not {detail['input']!r}"


def _has_fields(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)) or typing.is_typeddict(kind)


def _names(kind: Any, place: Keys) -> list[str]:
    """Lists the keys that are valid at `place` within `kind`."""
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
