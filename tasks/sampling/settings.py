"""Which normal pictures prompt which queries, as pipelines.yaml asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tasks.settings import STRICT, Between

Protocol = Literal["class-specific", "class-agnostic"]


@dataclass(frozen=True)
class SamplingSettings:
    __pydantic_config__ = STRICT

    shots: Annotated[tuple[int, ...], Between(0, None)] = (1, 2, 4, 8)
    """How many normal pictures of a category prompt an episode; at 0 only detectors that need none are measured, once."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One draw of prompts a seed; figures are mean and deviation over them."""
    protocols: tuple[Protocol, ...] = ("class-specific", "class-agnostic")
    """class-specific: prompts of the query's own category. class-agnostic: a pool of all categories' prompts, from which
    the detector takes the one most similar to the query."""


@dataclass(frozen=True)
class Use:
    """What a pipeline uses which datasets for, by their names."""

    sources: tuple[str, ...]
    """Photographs to make pairs from; none where no pairs are made."""
    targets: tuple[str, ...]
    """To be measured on; never trained on."""
    textures: tuple[str, ...] = ()
    """Pictures to cut DRAEM's textures from; none for the sources themselves."""
    auxiliary: tuple[str, ...] = ()
    """Datasets with labelled anomalies to train on."""
