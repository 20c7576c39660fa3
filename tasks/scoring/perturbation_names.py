"""Name perturbations of pictures, such as `jpeg-50`: a kind and its strength. perturbations.py applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from changepair.tasks.common.bounds import Between, Bound


class Strengths(NamedTuple):
    """The strengths of a kind of perturbation."""

    allowed: Between
    mild: Between
    """Strengths that may occur although camera, light and fixture have no fault."""
    whole: bool = False
    """Whether only whole numbers are allowed."""


KINDS = {
    "jpeg": Strengths(Between(1, 95), Between(50, 95), whole=True),  # quality of Pillow's encoder
    "blur": Strengths(Between(0.1, 32), Between(0, 1)),  # sigma in pixels of a 256-pixel side
    "noise": Strengths(Between(0.5, 128), Between(0, 15)),  # standard deviation in grey levels
    "gain": Strengths(Between(0.1, 4), Between(0.8, 1.2)),  # factor of all values
    "gamma": Strengths(Between(0.1, 4), Between(0.8, 1.25)),  # exponent of all values, in [0, 1]
    "side-light": Strengths(Between(0.05, 1), Between(0, 0.3)),  # gain minus 1 at the brightest edge
    "shift": Strengths(Between(0.1, 128), Between(0, 4)),  # pixels of a 256-pixel side
    "rotation": Strengths(Between(0.1, 180), Between(0, 5)),  # degrees
    "resolution": Strengths(Between(0.05, 0.95), Between(0.5, 1)),  # share of the pixels a side that remain
    "crop": Strengths(Between(0.1, 0.99), Between(0.9, 1)),  # share of each side that remains
}
"""Kinds of perturbations. Comments state what the strength is."""
MILD = ("jpeg-50", "blur-1", "noise-15", "gain-0.8", "gain-1.2")
"""Mild perturbations to begin with."""


@dataclass(frozen=True)
class Perturbation:
    """A kind of perturbation with its strength."""

    kind: str
    strength: float

    def __str__(self) -> str:
        return f"{self.kind}-{self.strength:g}"


def perturbation_of(name: str) -> Perturbation:
    """Parse a name. Raises ValueError if the kind is unknown, or the strength is out of bounds.

    >>> perturbation_of("side-light-0.30")
    Perturbation(kind='side-light', strength=0.3)
    """
    kind, _, number = name.rpartition("-")
    if kind not in KINDS:
        raise ValueError(f"a kind and a strength, such as jpeg-50 (kinds: {', '.join(KINDS)}), not {name!r}")
    strengths = KINDS[kind]
    try:
        strength = strengths.allowed.check(float(number))
        if strengths.whole and strength % 1:
            raise ValueError("no whole number")
    except ValueError as error:
        raise ValueError(f"{kind} with a {'whole ' * strengths.whole}strength {strengths.allowed}, not {name!r}") from error
    return Perturbation(kind, strength)


def is_mild(name: str) -> bool:
    """Return whether a perturbation is mild, so that a detector should withstand it. Return False for an unknown name.

    >>> is_mild("jpeg-50"), is_mild("jpeg-40")
    (True, False)
    """
    try:
        perturbation = perturbation_of(name)
        KINDS[perturbation.kind].mild.check(perturbation.strength)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Perturbations(Bound):
    """A list of names of different perturbations. They are read in their shortest form: `gain-0.80` as `gain-0.8`."""

    def __str__(self) -> str:
        return "names such as jpeg-50, no duplicates"

    def check(self, value: Any) -> Any:
        names = tuple(str(perturbation_of(name)) for name in value)
        if len(set(names)) < len(names):
            raise ValueError(f"no duplicates, not {list(value)}")
        return names
