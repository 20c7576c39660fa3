"""Define the settings of sampling, and the datasets that a pipeline uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from changepair.tasks.common.bounds import MOST, STRICT, Between, FileName, NonEmpty

Protocol = Literal["class-specific", "class-agnostic", "one-vs-all", "multi-class"]
# Protocols with pixel labels from masks. In the others a whole picture of another class is anomalous.
BY_PIXEL: tuple[Protocol, ...] = ("class-specific", "class-agnostic")


@dataclass(frozen=True)
class SamplingSettings:
    __pydantic_config__ = STRICT

    shots: Annotated[tuple[int, ...], Between(0, 1024), NonEmpty()] = (1, 2, 4, 8)
    """How many normal pictures of a category prompt an episode; at 0 only detectors that need none are measured, once."""
    seeds: Annotated[tuple[int, ...], Between(0, MOST), NonEmpty()] = (0, 1, 2, 3, 4)
    """One draw of prompts a seed; metrics are mean and deviation over them."""
    protocols: Annotated[tuple[Protocol, ...], NonEmpty()] = ("class-specific", "class-agnostic")
    """class-specific: k prompts of the query's own category, drawn at random. class-agnostic: a pool of all categories' prompts, k of
    each, from which the detector takes the k most similar to the query. one-vs-all: one class normal, every other anomalous, for each
    class. multi-class: the classes of `normal_classes` normal, every other anomalous."""
    target_protocols: dict[str, Annotated[tuple[Protocol, ...], NonEmpty()]] = field(default_factory=dict)
    """For targets that need others, by their names."""
    normal_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For multi-class: a target's categories that are normal."""
    prompts: Annotated[str, FileName()] | None = None
    """A JSON file of prompts to use instead of drawing them: {target: {category: [paths]}}, or the MetaUAS authors' one-prompt
    or top-k lists."""

    to_train: Annotated[float, Between(0, 0.9)] = 0.0
    """Of a dataset that is both a source (or a texture) and a target: the share of each category's normal training pictures that is trained
    on, the others being those that prompt; test pictures are never trained on. 0 refuses such a dataset. Its metrics are then of a detector
    that has seen what is normal there."""

    def protocols_of(self, target: str) -> tuple[Protocol, ...]:
        return self.target_protocols.get(target, self.protocols)


@dataclass(frozen=True)
class Use:
    """The names of the datasets that a pipeline uses."""

    sources: tuple[str, ...]  # photographs to make pairs from; none if no pairs are made
    targets: tuple[str, ...]  # to measure on, never to train on
    textures: tuple[str, ...] = ()  # to cut DRAEM's textures from; none for the sources themselves
    auxiliary: tuple[str, ...] = ()  # with labelled anomalies to train on
