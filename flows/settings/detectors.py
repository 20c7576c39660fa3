"""Parse the detectors of a pipeline and their training settings. A detector's kind determines its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, cast

from pydantic import PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from changepair.flows.settings.reader import IN_FULL, UNKNOWN_KEYS, names_at, nearest
from changepair.tasks.common.bounds import NonEmpty
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.registry import BUILT_IN, DETECTORS, KIND, NAME, Kind, kind_of, resolved
from changepair.tasks.encoders.presets import expanded

SECTIONS: TypeAdapter[dict[str, dict[str, Any]]] = TypeAdapter(dict[str, dict[str, Any]])
TRAINED = [name for name, kind in BUILT_IN.items() if kind.training is not None]


def parse_detectors(value: Any) -> dict[str, Any]:
    """Parse {name: {kind: ..., <settings>}} into each detector's settings. The kind defaults to the name. Raises ValidationError."""
    read: dict[str, Any] = {}
    wrong: list[InitErrorDetails] = []
    for name, section in SECTIONS.validate_python(value).items():
        with _errors_at(name, wrong):
            read[name] = _detector(name, section)
    if wrong:
        raise ValidationError.from_exception_data("detectors", wrong)
    return read


def parse_trainings(value: Any, detectors: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the training settings of detectors, by their names. detectors: their settings. Raises ValidationError."""
    read: dict[str, Any] = {}
    wrong: list[InitErrorDetails] = []
    for name, section in SECTIONS.validate_python(value).items():
        with _errors_at(name, wrong):
            kind = kind_of(detectors[name]) if name in detectors else resolved(name, {})[0]
            if kind not in DETECTORS:
                raise _error(f"unknown key{nearest(name, dict.fromkeys([*detectors, *TRAINED]))}")
            training = _kind(kind).training
            if training is None:
                raise _error(f"a {kind} detector is not trained; remove this section")
            read[name] = _parsed(training.settings, section)
    if wrong:
        raise ValidationError.from_exception_data("training", wrong)
    return read


Detectors = Annotated[dict[str, Any], PlainValidator(parse_detectors), NonEmpty()]


def _detector(name: str, section: Mapping[str, Any]) -> Any:
    kind, section = resolved(str(section.get(KIND, name)), section)
    if kind not in DETECTORS and KIND in section:
        raise _error(f"expected a detector kind, not {kind!r}{nearest(kind, DETECTORS)}", KIND)
    if kind not in DETECTORS:
        raise _error(f"not a detector kind, and {KIND} is not set{nearest(kind, DETECTORS)}")
    if name != kind and name in DETECTORS:
        raise _error(f"{name} is the name of another detector kind; choose another name for this {kind} detector")
    if name != kind and not NAME.fullmatch(name):
        raise _error("a detector name must have at most 64 lowercase letters, digits and dashes")
    settings = _kind(kind).settings
    try:
        section = expanded(kind, frozenset(field.name for field in fields(settings)), section)
    except BadInput as error:
        key, _, message = str(error).partition(": ")
        raise _error(message, key) from error
    return _parsed(settings, {key: one for key, one in section.items() if key != KIND})


def _kind(name: str) -> Kind:
    """Look up a detector kind. Raises ValidationError if another package registers it and its code cannot be loaded."""
    try:
        return DETECTORS[name]
    except BadInput as error:
        raise _error(str(error)) from error


@cache
def _adapter(settings: Any) -> TypeAdapter[Any]:
    return TypeAdapter(settings)


def _parsed(settings: type[Any], section: Mapping[str, Any]) -> Any:
    """Parse a section as a type. An error for an unknown key names the nearest valid one, because only this function knows the type."""
    try:
        return _adapter(cast(Any, settings)).validate_python(section)
    except ValidationError as error:
        details = [_with_nearest(detail, settings) for detail in error.errors()]
        raise ValidationError.from_exception_data(settings.__name__, details) from error


def _with_nearest(detail: Any, settings: type[Any]) -> InitErrorDetails:
    if detail["type"] in UNKNOWN_KEYS:
        *place, key = detail["loc"]
        message = f"unknown key{nearest(str(key), names_at(settings, tuple(place)))}"
        return InitErrorDetails(type=_complete(message), loc=detail["loc"], input=detail["input"])
    return InitErrorDetails(type=detail["type"], loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {}))


def _error(message: str, *place: str) -> ValidationError:
    detail = InitErrorDetails(type=_complete(message), loc=place, input=None)
    return ValidationError.from_exception_data("detector", [detail])


def _complete(message: str) -> PydanticCustomError:
    return PydanticCustomError(IN_FULL, "{message}", {"message": message})


@contextmanager
def _errors_at(name: str, wrong: list[InitErrorDetails]) -> Iterator[None]:
    """Collect the block's errors, with a name in front of their paths."""
    try:
        yield
    except ValidationError as error:
        for detail in error.errors():
            kind: Any = _complete(detail["msg"]) if detail["type"] == IN_FULL else detail["type"]
            place = (name, *detail["loc"])
            wrong.append(InitErrorDetails(type=kind, loc=place, input=detail["input"], ctx=detail.get("ctx", {})))
