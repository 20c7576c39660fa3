"""Bounds the numbers in settings, which are frozen dataclasses in every stage.

Each stage's settings are plain dataclasses, so that the work runs where pydantic is not installed; the flows
validate pipelines.yaml against them with pydantic, which reads `STRICT` and `Between`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STRICT: dict[str, Any] = {"extra": "forbid", "strict": False}


@dataclass(frozen=True)
class Between:
    """A bound on a number, or on every number of a list: `Annotated[int, Between(1, 8)]`, both ends included."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None:
            return f"at most {self.high:g}"
        if self.high is None:
            return f"at least {self.low:g}"
        return f"between {self.low:g} and {self.high:g}"

    def check(self, value: Any) -> Any:
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                raise ValueError(f"{self}, not {number:g}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))
