"""Train InCTRL with focal loss on the final score and on the image score, by AdamW (arXiv 2403.06495, section 4.1).

The encoder is frozen. So the evidence, which is the input of the adapter and the heads, is computed once for each draw of prompts. Pairs
draw once for all epochs, auxiliary pictures once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm import tqdm

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.detectors.inctrl.model import InCTRL, binary_focal_loss
from changepair.tasks.detectors.inctrl.settings import InCTRLSettings, InCTRLTrainingSettings
from changepair.tasks.ingestion.manifest import ANOMALOUS, NORMAL, PictureRow
from changepair.tasks.sampling.episodes import read_pictures
from changepair.tasks.synthesis.augmentation import jitter, small_affine, warp_picture
from changepair.tasks.synthesis.dataset import ChangePairs, hashes
from changepair.tasks.synthesis.settings import AugmentationSettings
from changepair.tasks.synthesis.shards import PairRow, read_index
from changepair.tasks.training.loop import Examples, Trained, TrainingFolders, fit
from changepair.tasks.training.step import Batch
from changepair.tasks.training.task import Blueprint, DetectorTask

ENCODED_AT_ONCE = 32  # pictures
POOL = 32  # normal pictures of a category that an epoch's prompts are drawn from; their features are kept in memory

Evidence = tuple[Tensor, Tensor, Tensor, Tensor]


class PairEvidence:
    """Evidence of change pairs. A query is compared with its prompt, or with several views of it. It is anomalous if anything was changed.

    InCTRL's prompts are normal. If a pair's roles were swapped, so that its prompt has the artefact, they are swapped back.
    """

    def __init__(
        self, folder: Path, rows: Sequence[PairRow], resolution: int, views: Sequence[int] = (1,), apart: AugmentationSettings | None = None
    ) -> None:
        """Open the pairs. Each pair draws its number of views from `views`. `apart` sets how far the views differ."""
        self.labels = [int(row.changed) for row in rows]
        self.swapped = torch.tensor([row.swapped for row in rows])
        self.pairs = ChangePairs(folder, resolution, rows=rows)
        self.views = views
        self.apart = apart or AugmentationSettings()
        self._evidence: list[Evidence] | None = None

    def example(self, place: int) -> str:
        return f"pair {self.pairs.rows[place].key}"

    @torch.no_grad()
    def draw(self, model: InCTRL, epoch: int) -> list[Evidence]:
        """Return batches of evidence in the order of the pairs, the same at every epoch."""
        if self._evidence is None:
            device = best_device()
            self._evidence = []
            batches = tqdm(DataLoader(self.pairs, ENCODED_AT_ONCE), desc="encode pairs", unit="batch", mininterval=5)
            for (one, other, _mask), swapped in zip(batches, self.swapped.split(ENCODED_AT_ONCE), strict=True):
                turned = swapped.view(-1, 1, 1, 1)
                query, prompt = torch.where(turned, other, one), torch.where(turned, one, other)
                features = model.encoder(query.to(device))
                seen = self._views(prompt, len(self._evidence) * ENCODED_AT_ONCE).to(device)  # (B, K, 3, H, W)
                prompts = [stage.unflatten(0, seen.shape[:2]) for stage in model.remember(model.encoder(seen.flatten(0, 1)))]
                self._evidence.append(_held(model.evidence(features, model.relate(features, prompts))))
        return self._evidence

    def _views(self, prompts: Tensor, first: int) -> Tensor:
        """Return the views of prompts (B, 3, H, W): (B, K, 3, H, W). `first` is the number of the first pair.

        A prompt with fewer than K views repeats some. Repetition changes no residual, but it weights the mean of the embeddings.
        """
        most = max(self.views)
        if most == 1:
            return prompts[:, None]
        batch = []
        for place, prompt in enumerate(prompts, start=first):
            rng = generator(self.pairs.rows[place].seed, "views", self.pairs.rows[place].index)
            count = int(rng.choice(self.views))
            picture = (prompt.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            others = [
                jitter(warp_picture(picture, small_affine(len(picture), self.apart, rng)), self.apart, rng) for _view in range(count - 1)
            ]
            seen = [prompt, *(torch.from_numpy(other).permute(2, 0, 1).float() / 255 for other in others)]
            batch.append(torch.stack([seen[view % count] for view in range(most)]))
        return torch.stack(batch)


class AuxiliaryEvidence:
    """Evidence of labelled pictures. Each is compared with normal pictures of its category, drawn again every epoch, and never with
    itself."""

    def __init__(
        self, rows: Sequence[PictureRow], prompts: Sequence[PictureRow], settings: InCTRLTrainingSettings, detector: InCTRLSettings
    ) -> None:
        """Set the queries `rows` and the normal pictures `prompts` of their categories. Raises BadInput if a category has too few."""
        self.settings, self.detector = settings, detector
        self.rows = sorted(rows, key=lambda row: (row.dataset, row.category, row.image))
        self.labels = [int(row.label == ANOMALOUS) for row in self.rows]
        self.prompts = {
            key: [row.image for row in prompts if (row.dataset, row.category) == key]
            for key in dict.fromkeys((row.dataset, row.category) for row in self.rows)
        }
        for (dataset, category), images in self.prompts.items():
            if len(images) <= settings.shots:
                raise BadInput(
                    f"{dataset}: category {category!r} has {len(images)} normal training pictures, too few for "
                    f"{settings.shots} prompts each; lower training.<detector>.shots in pipelines.yaml"
                )

    def example(self, place: int) -> str:
        return self.rows[place].image

    @torch.no_grad()
    def draw(self, model: InCTRL, epoch: int) -> list[Evidence]:
        """Return batches of evidence in the order of `labels`."""
        evidence = []
        for (dataset, category), images in tqdm(self.prompts.items(), desc="encode pictures", unit="category", mininterval=5):
            rng = generator(self.settings.seed, "prompts", epoch, dataset, category)
            pool = [images[index] for index in rng.permutation(len(images))[:POOL]]
            memory = [model.memorise(pictures) for pictures in self._pictures(pool)]
            bank = [torch.cat(stages) for stages in zip(*memory, strict=True)]
            queries = [row.image for row in self.rows if (row.dataset, row.category) == (dataset, category)]
            for start, pictures in enumerate(self._pictures(queries)):
                names = queries[start * ENCODED_AT_ONCE :][: len(pictures)]
                chosen = np.stack([self._prompts(rng, pool, name) for name in names])
                features = model.encoder(pictures)
                relation = model.relate(features, [stage[chosen] for stage in bank])
                evidence.append(_held(model.evidence(features, relation, category)))
        return evidence

    def _prompts(self, rng: np.random.Generator, pool: Sequence[str], query: str) -> np.ndarray:
        others = [place for place, image in enumerate(pool) if image != query]
        return rng.choice(others, self.settings.shots, replace=False)

    def _pictures(self, images: Sequence[str]) -> Iterator[Tensor]:
        for start in range(0, len(images), ENCODED_AT_ONCE):
            some = images[start : start + ENCODED_AT_ONCE]
            yield read_tensors(some, self.detector.resolution, best_device(), self.detector.encoder.resize)


Source = PairEvidence | AuxiliaryEvidence


@dataclass(frozen=True)
class Sides:
    training: Source
    held_out: Source | None = None


class InCTRLTask(DetectorTask):
    """Train on evidence. Half of every batch is anomalous, whichever label is more frequent."""

    model: InCTRL

    def __init__(self, name: str, detector: InCTRL, blueprint: Blueprint, settings: InCTRLTrainingSettings, sides: Sides) -> None:
        super().__init__(name, detector, blueprint, settings)
        self.sides = sides
        self.labels = np.array(sides.training.labels)
        self._measured: Dataset[Any] | None = None

    def examples(self, epoch: int) -> Dataset[Any]:
        return _dataset(self.sides.training, self.model, epoch)

    def example(self, place: int) -> str:
        return self.sides.training.example(place)

    def order(self, epoch: int) -> list[int]:
        rng = generator(self.settings.seed, "epoch", epoch)
        half = -(-len(self.labels) // 2)
        drawn = [np.resize(rng.permutation(np.flatnonzero(self.labels == label)), half) for label in (NORMAL, ANOMALOUS)]
        return np.stack(drawn, axis=1).ravel()[: len(self.labels)].tolist()

    def held_out(self) -> Dataset[Any] | None:
        if self._measured is None and self.sides.held_out is not None:
            self._measured = _dataset(self.sides.held_out, self.model, 0)
        return self._measured

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        *evidence, labels = batch
        final, image = model(*evidence)
        return binary_focal_loss(final.float(), labels) + binary_focal_loss(image.float(), labels)


def train(
    blueprint: Blueprint,
    settings: InCTRLTrainingSettings,
    *,
    examples: Examples,
    places: TrainingFolders,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Train on change pairs or on labelled pictures, as `settings.examples` selects. See tasks/training/loop.py::fit."""
    name = places.model_folder.name
    sides = _sides(blueprint.settings, settings, examples)
    if not sides or len(set(sides[0].labels)) < 2:
        wrong = f"its {settings.examples} need both normal and anomalous pictures, but have one label only"
        raise BadInput(f"training.{name}: {wrong}")
    set_seed(settings.seed)
    built, identity = blueprint.build(settings.init)
    task = InCTRLTask(name, cast(InCTRL, built).to(best_device()), blueprint, settings, Sides(*sides))
    own = hashes(examples.path) if settings.examples == "pairs" else {"auxiliary": sha256(examples.path)}
    inputs = {"training": asdict(settings), **identity, **own}
    return fit(task, settings, places, inputs=inputs, workers=workers, report=report)


def _sides(detector: InCTRLSettings, settings: InCTRLTrainingSettings, examples: Examples) -> Sequence[Source]:
    if settings.examples == "pairs":
        index = read_index(examples.path)
        parts = ([row for row in index if row.held_out == held_out] for held_out in (False, True))
        return [PairEvidence(examples.path, part, detector.resolution, settings.views, examples.augmentation) for part in parts if part]
    rows = read_pictures(examples.path)
    shuffled = [rows[index] for index in generator(settings.seed, "held out").permutation(len(rows))]
    count, normal = int(len(rows) * settings.held_out), [row for row in rows if row.is_normal_training]
    return [AuxiliaryEvidence(part, normal, settings, detector) for part in (shuffled[count:], shuffled[:count]) if part]


def _held(evidence: Evidence) -> Evidence:
    return cast(Evidence, tuple(part.cpu() for part in evidence))


def _dataset(source: Source, model: InCTRL, epoch: int) -> Dataset[Batch]:
    parts = [torch.cat(columns) for columns in zip(*source.draw(model, epoch), strict=True)]
    return TensorDataset(*parts, torch.tensor(source.labels, dtype=torch.float32))
