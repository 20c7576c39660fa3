"""Define the settings of sampling, and the datasets that a pipeline uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from changepair.tasks.common.bounds import MOST, STRICT, Between, FileName, NonEmpty

Protocol = Literal["class-specific", "class-agnostic", "one-vs-all", "multi-class"]
PREFERRED: Protocol = "class-specific"  # protocol of recommendations: users prompt with pictures of the part that they inspect
# Protocols whose pixel labels come from masks. In the others a whole picture of another class is anomalous.
BY_PIXEL: tuple[Protocol, ...] = ("class-specific", "class-agnostic")


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the episodes: which normal pictures prompt which queries."""

    __pydantic_config__ = STRICT

    shots: Annotated[tuple[int, ...], Between(0, 1024), NonEmpty()] = (1, 2, 4, 8)
    """Numbers of normal prompts for each category; each is evaluated. `0` evaluates only detectors that need no prompt, once."""
    seeds: Annotated[tuple[int, ...], Between(0, MOST), NonEmpty()] = (0, 1, 2, 3, 4)
    """Seeds of the draws of prompts. Metrics are the mean and standard deviation over them."""
    protocols: Annotated[tuple[Protocol, ...], NonEmpty()] = ("class-specific", "class-agnostic")
    """Evaluation protocols. `class-specific` draws k prompts from the query's own category. `class-agnostic` pools k prompts of every
    category, and the detector selects the k most similar to the query. `one-vs-all` takes each class as normal in turn and all others as
    anomalous. `multi-class` takes the classes of `normal_classes` as normal and all others as anomalous."""
    target_protocols: dict[str, Annotated[tuple[Protocol, ...], NonEmpty()]] = field(default_factory=dict)
    """Protocols of single targets, by the target's name. They replace `protocols` for that target."""
    normal_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Normal categories of a target, by the target's name, for the protocol `multi-class`."""
    prompts: Annotated[str, FileName()] | None = None
    """JSON file of prompts to use instead of random draws: {target: {category: [paths]}}, or the MetaUAS authors' one-prompt or top-k
    lists. `null` draws them."""

    to_train: Annotated[float, Between(0, 0.9)] = 0.0
    """Share of each category's normal training pictures to train on, for a dataset that is both a source or texture and a target. The
    others serve as prompts, and test pictures are never trained on. With 0 such a dataset is refused. Its metrics then describe a detector
    that has seen the normal pictures of this domain."""

    def protocols_of(self, target: str) -> tuple[Protocol, ...]:
        return self.target_protocols.get(target, self.protocols)


@dataclass(frozen=True)
class Use:
    """Name the datasets that a pipeline uses."""

    sources: tuple[str, ...]  # photographs to make pairs from; empty if no pairs are made
    targets: tuple[str, ...]  # datasets to evaluate on, never to train on
    textures: tuple[str, ...] = ()  # datasets to cut DRAEM's textures from; empty to use the sources
    auxiliary: tuple[str, ...] = ()  # datasets with labelled anomalies to train on
