"""UniADet: the paper's formulas, what a pair teaches it, and that it finds artefacts without a prompt."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_pairs
from torch import Tensor

from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.detectors.store import create_detector, load_model
from changepair.tasks.detectors.train import train
from changepair.tasks.detectors.uniadet.model import UniADet
from changepair.tasks.detectors.uniadet.settings import UniADetSettings
from changepair.tasks.detectors.uniadet.train import (
    IN_NEITHER,
    IN_PROMPT,
    IN_QUERY,
    UNKNOWN,
    PairsWithPlace,
    dice_loss,
    focal_loss,
    ranking_loss,
)
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.settings import AugmentationSettings, SynthesisSettings
from changepair.tasks.training.loop import Examples, TrainingFolders
from changepair.tasks.training.settings import PairTrainingSettings

STILL = AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0)
SYNTHESIS = SynthesisSettings(
    pairs=40, pairs_per_shard=40, resolution=64, kinds={"local-region": 0.7, "distractor": 0.1, "none": 0.2}, apart=0.3, held_out=0.2
)
LEAST = 0.75  # share of held-out pairs whose picture with the artefact scores above the other, after a minute of training


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return build_encoder(EncoderSettings(), 64)


@pytest.fixture
def detector(encoder: FrozenEncoder) -> UniADet:
    torch.manual_seed(3)
    return UniADet(encoder, learned=0.5).eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def probability(feature: np.ndarray, weights: np.ndarray) -> float:
    """The softmax over two cosines at temperature 0.07, written out for one vector."""
    normal, anomalous = (
        math.exp(float(feature @ one) / float(np.linalg.norm(feature) * np.linalg.norm(one)) / 0.07) for one in weights.astype(np.float64)
    )
    return anomalous / (normal + anomalous)


@torch.inference_mode()
def test_score_and_map_are_the_papers_formulas(detector: UniADet) -> None:
    query, prompts = pictures(1), pictures(2, 1)
    stages, banks = ([part.double().numpy() for part in detector.encoder(some)[2:]] for some in (query, prompts))
    of_picture, found, distances = [], torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    for stage, bank, of_class, of_mask in zip(stages, banks, detector.class_weights, detector.mask_weights, strict=True):
        patches = np.moveaxis(stage[0], 0, -1)
        units = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
        of_picture.append(probability(units.mean(axis=(0, 1)), of_class.numpy()))
        map_ = torch.tensor([[probability(patch, of_mask.numpy()) for patch in row] for row in patches])
        offered = np.moveaxis(bank, 1, -1).reshape(-1, bank.shape[1])
        offered = offered / np.linalg.norm(offered, axis=-1, keepdims=True)
        distance = torch.tensor(1.0 - (units @ offered.T).max(axis=-1))
        for total, one in ((found, map_), (distances, distance)):
            total += F.interpolate(one[None, None].float(), size=(8, 8), mode="bilinear") / 3
    zero, few = detector.score(query, []), detector.score(query, prompts)
    assert torch.allclose(zero[1], F.interpolate(found, size=(64, 64), mode="bilinear")[0], atol=1e-4)
    assert zero[0].item() == pytest.approx(0.5 * np.mean(of_picture) + 0.5 * found.max().item(), abs=1e-4)
    both = (distances + 0.5 * found) / 1.5
    assert torch.allclose(few[1], F.interpolate(both, size=(64, 64), mode="bilinear")[0], atol=1e-4)
    # ½·class + ½·maximum of the sum if the weight is 1, else the class and the map in the share that the learned parts have
    assert few[0].item() == pytest.approx((0.5 * np.mean(of_picture) + 1.5 * both.max().item()) / 2.0, abs=1e-4)


@torch.inference_mode()
def test_without_the_learned_parts_it_is_the_patch_residual(detector: UniADet, encoder: FrozenEncoder) -> None:
    queries, prompts = pictures(3), pictures(2, 1)
    detector.learned = 0.0
    (scores, maps), (expected, residuals) = (one.score(queries, prompts) for one in (detector, PatchResidual(encoder)))
    assert torch.allclose(scores, 2 * expected, atol=1e-6) and torch.allclose(maps, 2 * residuals, atol=1e-6)


@torch.inference_mode()
def test_pictures_and_patches_have_weights_of_their_own(detector: UniADet) -> None:
    scores, maps = detector.score(pictures(2), [])
    detector.class_weights[1].data.neg_()
    turned, same = detector.score(pictures(2), [])
    assert torch.equal(maps, same) and not torch.allclose(scores, turned)


def pairs_of(layout: Path, folder: str, **changes: object) -> Path:
    return make_pairs(layout, replace(SYNTHESIS, augmentation=STILL, **changes), layout.parent / folder)  # type: ignore[arg-type]


def every(folder: Path, held_out: bool | None = None) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    pairs = PairsWithPlace(ChangePairs(folder, held_out=held_out))
    return [pairs[index] for index in range(len(pairs))]


def test_a_pair_says_which_of_its_pictures_has_the_artefact(layout: Path) -> None:
    """The same pairs with the roles never and always exchanged: the picture with the artefact is the same one."""
    kept, exchanged = (every(pairs_of(layout, str(share), swapped=share, apart=0.0)) for share in (0.0, 1.0))
    places = [(one[3], other[3]) for one, other in zip(kept, exchanged, strict=True)]
    assert set(places) == {(IN_QUERY, IN_PROMPT), (IN_NEITHER, IN_NEITHER), (UNKNOWN, UNKNOWN)}
    for one, other in zip(kept, exchanged, strict=True):
        if one[3] == IN_QUERY:
            assert torch.equal(one[0], other[1]) and torch.equal(one[1], other[0]) and torch.equal(one[2], other[2])
            assert torch.equal(one[0][:, one[2] == 0], one[1][:, one[2] == 0]) and not torch.equal(one[0], one[1])


def test_the_ranking_compares_the_pictures_of_a_pair_with_each_other_only() -> None:
    queries, prompts = torch.tensor([[2.0, 0.0], [2.0, 0.0], [9.0, 9.0], [9.0, 9.0]]), torch.tensor([[1.0, 1.0]] * 2 + [[0.0, 0.0]] * 2)
    found = ranking_loss(queries, prompts, torch.tensor([IN_QUERY, IN_PROMPT, IN_NEITHER, UNKNOWN]))
    up, down = math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))
    assert found.tolist() == pytest.approx([(up + down) / 2, (down + up) / 2, 0.0, 0.0], abs=1e-6)
    assert ranking_loss(queries[:1, :1], prompts[:1, :1], torch.tensor([IN_QUERY])).item() == pytest.approx(up, abs=1e-6)


def test_focal_and_dice_loss_are_the_formulas() -> None:
    p, m = np.array([[0.9, 0.2], [0.6, 0.5]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    right = np.where(m > 0, p, 1 - p)
    logits, masks = torch.tensor(np.log(p / (1 - p)))[None], torch.tensor(m)[None]
    assert focal_loss(logits, masks).tolist() == pytest.approx([float((-((1 - right) ** 2) * np.log(right)).mean())])
    assert dice_loss(torch.tensor(p)[None], masks).tolist() == pytest.approx([1 - (2 * (0.9 + 0.5) + 1) / (2.2 + 2 + 1)])


def trained(pairs: Path, epochs: int) -> UniADet:
    detector = UniADetSettings(resolution=64)
    torch.set_num_threads(1)
    settings = PairTrainingSettings(epochs=epochs, batch_size=8, learning_rate=0.01, schedule="cosine", precision="no")
    places = TrainingFolders(pairs.parent / "model", pairs.parent / "checkpoints")
    train(detector, settings, examples=Examples(pairs, STILL), places=places, workers=0)
    model = create_detector(detector)
    load_model(places.model_folder, model)
    assert isinstance(model, UniADet)
    return model.eval()


def test_trained_it_finds_artefacts_without_a_prompt(layout: Path) -> None:
    pairs = make_pairs(layout, replace(SYNTHESIS, pairs=240), layout.parent / "pairs")
    model = trained(pairs, 3)
    held_out = [pair for pair in every(pairs, held_out=True) if pair[3] in (IN_QUERY, IN_PROMPT)]
    query, prompt = (torch.stack(some) for some in list(zip(*held_out, strict=True))[:2])
    with torch.inference_mode():
        found, other = (model.score(pictures, [])[0] for pictures in (query, prompt))
    higher = (found > other) == torch.tensor([pair[3] == IN_QUERY for pair in held_out])
    assert len(held_out) > 20 and higher.float().mean() >= LEAST


def test_the_mask_of_a_pair_with_changed_roles_is_not_that_of_its_query(layout: Path) -> None:
    """And a distractor teaches nothing: one in both pictures has no mask."""
    from changepair.tasks.detectors.uniadet.train import OddityTask

    pairs = ChangePairs(pairs_of(layout, "pairs"))
    task = OddityTask("uniadet", create_detector(UniADetSettings(resolution=64)), None, PairTrainingSettings(), pairs, pairs)  # type: ignore[arg-type]
    query, prompt, mask, place = task.collate([task.examples(0)[index] for index in range(8)])

    def loss(at: int, masks: Tensor = mask) -> float:
        return float(task.loss(task.model, (query, prompt, masks, torch.full_like(place, at))).detach())

    none = torch.zeros_like(mask)
    assert loss(IN_PROMPT) == loss(IN_PROMPT, none) and loss(IN_NEITHER) == loss(IN_NEITHER, none)
    assert loss(IN_QUERY) != loss(IN_QUERY, none) and loss(UNKNOWN) == 0.0
