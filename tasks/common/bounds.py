"""Bound the values of settings.

Settings are plain dataclasses, so that tasks run where pydantic is not installed. The flows validate pipelines.yaml against them with
pydantic, which reads `STRICT` and the bounds.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

STRICT: dict[str, Any] = {"extra": "forbid", "strict": False}
FINITE: dict[str, Any] = {"allow_inf_nan": False}  # for records whose numbers are compared: with NaN no picture would be anomalous
MOST = 2**31 - 1  # largest whole number in a settings file, because tables store 32 bits


class Bound(ABC):
    """A bound that pydantic reads from an annotation."""

    @abstractmethod
    def check(self, value: Any) -> Any:
        """Return the value. Raises ValueError if it is out of bounds."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))


@dataclass(frozen=True)
class NonEmpty(Bound):
    """A list or section that is not empty and has no duplicates, or a text that is not blank: `Annotated[str, NonEmpty()]`."""

    def __str__(self) -> str:
        return "at least one entry, no duplicates"

    def check(self, value: Any) -> Any:
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"a name or a path, not {value!r}")
        elif not len(value) or len(set(value)) < len(value):
            raise ValueError(f"{self}, not {list(value)}")
        return value


@dataclass(frozen=True)
class FileName(NonEmpty):
    """A text that may name a file or a folder. `~` expands to the user's folder: `Annotated[str, FileName()]`."""

    def check(self, value: Any) -> Any:
        return os.path.expanduser(super().check(value))


@dataclass(frozen=True)
class Unique(Bound):
    """A list without duplicates."""

    def __str__(self) -> str:
        return "no duplicates"

    def check(self, value: Any) -> Any:
        if len(set(value)) < len(value):
            raise ValueError(f"no duplicates, not {list(value)}")
        return value


@dataclass(frozen=True)
class Rising(Bound):
    """A pair of finite numbers, the smaller one first: `Annotated[tuple[float, float], Rising()]`."""

    def __str__(self) -> str:
        return "ascending numbers"

    def check(self, value: Any) -> Any:
        low, high = value
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"{self}, not {list(value)}")
        return value


@dataclass(frozen=True)
class Between(Bound):
    """A number, or every number of a list, between two bounds, both included: `Annotated[int, Between(1, 8)]`."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        low, high = (None if bound is None else _in_full(bound) for bound in (self.low, self.high))
        if low is None:
            return f"at most {high}"
        return f"at least {low}" if high is None else f"between {low} and {high}"

    def check(self, value: Any) -> Any:
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if not ((self.low is None or number >= self.low) and (self.high is None or number <= self.high)):  # NaN is out of bounds, too
                raise ValueError(f"{self}, not {_in_full(number)}")
        return value


def _in_full(number: float) -> str:
    """Format a number; whole numbers keep all their digits."""
    return f"{number:g}" if isinstance(number, float) else str(number)
