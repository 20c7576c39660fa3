"""Holds what the courses of all detectors share: batches of examples in an order of the epoch's own, held-out examples, a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from changepair.tasks.common.errors import BadInput
from changepair.tasks.training.settings import TrainingSettings
from changepair.tasks.training.step import Batch


class Blueprint(Protocol):
    """What is to be trained, before it is built: every process builds its own, once it is seeded."""

    @property
    def settings(self) -> Any:
        """Its settings, which have an encoder and a resolution."""
        ...

    def build(self, init: str | None) -> tuple[nn.Module, Mapping[str, Any]]:
        """Build the network, filled with the weights that `init` names, if any. Return it with all that it depends on, for checkpoints."""
        ...

    def save(self, folder: Path, model: nn.Module, **about: Any) -> None:
        """Write a model folder. about: how the model was trained."""
        ...


class DetectorTask:
    """A detector that learns from examples. What it learns from, and what is wrong with it, is for those who inherit to say."""

    def __init__(self, name: str, detector: nn.Module, blueprint: Blueprint, settings: TrainingSettings) -> None:
        """name: the detector's, for messages. detector: as the blueprint has built it."""
        self.name = name
        self.model = detector
        self.blueprint = blueprint
        self.settings = settings

    def order(self, epoch: int) -> list[int]:
        """Gives the order in which an epoch takes its examples; drawn from the seed and the epoch alone."""
        raise NotImplementedError

    def examples(self, epoch: int) -> Dataset[Any]:
        raise NotImplementedError

    def example(self, place: int) -> str:
        """Names an example."""
        raise NotImplementedError

    def held_out(self) -> Dataset[Any] | None:
        """Gives the examples that are never trained on."""
        raise NotImplementedError

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        raise NotImplementedError

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """Lists the full batches. Raises BadInput if there is none."""
        order, size = self.order(epoch), self.settings.batch_size
        if len(order) < size:
            raise BadInput(
                f"training.{self.name}: {len(order)} examples do not fill one batch of {size}; raise synthesis.pairs, add pictures, or "
                "lower its batch_size in pipelines.yaml"
            )
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def collate(self, examples: list[Any]) -> Batch:
        return tuple(default_collate(examples))

    def save(self, folder: Path, model: nn.Module) -> None:
        """Writes model.safetensors, and config.json: the detector's settings and how it was trained."""
        self.blueprint.save(folder, model, training=asdict(self.settings), examples=len(self.order(0)))
