"""Train a detector on examples. Subclasses of DetectorTask and PairTask define the examples and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import Dataset, default_collate

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.randomness import generator
from changepair.tasks.synthesis.dataset import ChangePairs, hashes
from changepair.tasks.training.features import EncodedPairs
from changepair.tasks.training.loop import Examples, Task, Trained, TrainingFolders, fit
from changepair.tasks.training.settings import PairTrainingSettings, TrainingSettings
from changepair.tasks.training.step import Batch


class Blueprint(Protocol):
    """Describe how to build a detector. Every process builds its own after it is seeded."""

    @property
    def settings(self) -> Any:
        """The detector's settings, with `encoder` and `resolution`."""
        ...

    def build(self, init: str | None) -> tuple[nn.Module, Mapping[str, Any]]:
        """Build the network and load the weights that `init` names. Return it with everything that it depends on, for checkpoints."""
        ...

    def save(self, folder: Path, model: nn.Module, **about: Any) -> None:
        """Write a model folder. about: how the model was trained."""
        ...


class DetectorTask(Task):
    """Train a detector on examples, in an order that depends only on the seed and the epoch."""

    def __init__(self, name: str, detector: nn.Module, blueprint: Blueprint, settings: TrainingSettings) -> None:
        self.name, self.model, self.blueprint, self.settings = name, detector, blueprint, settings

    def order(self, epoch: int) -> list[int]:
        """Return the indices of all examples in the order of an epoch."""
        raise NotImplementedError

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """List the full batches. Raises BadInput without one."""
        order, size = self.order(epoch), self.settings.batch_size
        if len(order) < size:
            raise BadInput(
                f"training.{self.name}.batch_size: {len(order)} examples do not fill a batch of {size}; lower it in pipelines.yaml, raise "
                "synthesis.pairs, or add pictures"
            )
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def collate(self, examples: Any) -> Batch:
        return examples if isinstance(examples, tuple) else tuple(default_collate(examples))

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write model.safetensors and config.json. The latter has the detector's settings and how it was trained."""
        self.blueprint.save(folder, model, training=asdict(self.settings), examples=len(self.order(0)))


class PairTask(DetectorTask):
    """Train on change pairs. An example is a query, its prompt and the mask of the change. Subclasses define the loss."""

    def __init__(
        self,
        name: str,
        detector: nn.Module,
        blueprint: Blueprint,
        settings: PairTrainingSettings,
        training: ChangePairs,
        measured: ChangePairs,
        encoded: Sequence[EncodedPairs] = (),
    ) -> None:
        """Set up the task. `encoded` are the maps of `training` and `measured`, for a detector that accepts maps."""
        super().__init__(name, detector, blueprint, settings)
        self.training, self.measured = training, measured
        self.sides: Sequence[Dataset[Any]] = encoded or (training, measured)

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.sides[0]

    def order(self, epoch: int) -> list[int]:
        return generator(self.settings.seed, "epoch", epoch).permutation(len(self.training)).tolist()

    def example(self, place: int) -> str:
        return f"pair {self.training.rows[place].key}"

    def held_out(self) -> Dataset[Any] | None:
        return self.sides[1] if len(self.measured) else None


def train_on_pairs(
    task: type[PairTask],
    blueprint: Blueprint,
    settings: PairTrainingSettings,
    *,
    examples: Examples,
    places: TrainingFolders,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Train on change pairs. See tasks/training/loop.py::fit."""
    resolution = settings.resolution or blueprint.settings.resolution
    training, measured = (ChangePairs(examples.path, resolution, held_out=held_out, masked=True) for held_out in (False, True))
    if not len(training):
        raise BadInput(f"{examples.path}: no pair has a mask to train on; give synthesis.kinds kinds outside of the group global")
    set_seed(settings.seed)
    model, identity = blueprint.build(settings.init)
    encoded = _encoded((training, measured), model, places.checkpoints, places.room if settings.epochs > 1 else 0)
    own = task(places.model_folder.name, model, blueprint, settings, training, measured, encoded)
    inputs = {"training": asdict(settings), **identity, **hashes(examples.path)}
    return fit(own, settings, places, inputs=inputs, workers=workers, report=report)


def _encoded(sides: Sequence[ChangePairs], model: nn.Module, folder: Path, room: int) -> Sequence[EncodedPairs]:
    """Return the maps of pairs if the model accepts maps. On a GPU, it encodes pictures itself. The sides share the room by their size."""
    encode = getattr(model, "encode_pairs", None)
    if encode is None or best_device().type != "cpu":
        return ()
    each = room // max(1, sum(map(len, sides)))
    return [EncodedPairs(pairs, encode, folder, each * len(pairs)) for pairs in sides]
