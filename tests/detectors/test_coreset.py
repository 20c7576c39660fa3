"""A bounded memory keeps the patches that the algorithm of PatchCore keeps, and a memory that is large enough changes no byte."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from conftest import SMALL, write_pipelines
from scipy.spatial.distance import cdist
from torch import Tensor

from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.residual import coreset as selection
from changepair.tasks.detectors.residual.coreset import bounded, coreset
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.detectors.residual.settings import MetricResidualSettings, PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.encoders.settings import EncoderSettings

SIDE = 64


def plain(patches: Tensor, size: int) -> list[int]:
    """Algorithm 1 of PatchCore in float64, one patch at a time, by Euclidean distance. It starts with the patch farthest from the mean."""
    points = patches.double().numpy()
    cosines = points @ points.mean(axis=0)
    order = [int(np.flatnonzero(cosines <= cosines.min() + 1e-6)[0])]
    while len(order) < size:
        far = cdist(points, points[order]).min(axis=1)
        far[order] = -1.0
        order.append(int(far.argmax()))
    return order


def units(*size: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*size, generator=torch.Generator().manual_seed(seed)), dim=-1)


def crops(count: int) -> Tensor:
    """Crops of a real texture and a different one, (count, 3, SIDE, SIDE) in [0, 1]."""
    textures = [skimage.data.gravel(), skimage.data.brick()]
    cut = [textures[number % 2][30 * number :][:SIDE, 100 : 100 + SIDE] for number in range(count)]
    return torch.stack([torch.from_numpy(pixels.copy()).expand(3, -1, -1) / 255 for pixels in cut])


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return build_encoder(EncoderSettings(), SIDE)


@pytest.mark.parametrize("candidates", [1, 7, 512])
@pytest.mark.parametrize(("count", "channels", "size"), [(2, 3, 1), (60, 8, 59), (700, 40, 300)])
def test_the_selection_is_the_published_algorithm(
    candidates: int, count: int, channels: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "CANDIDATES", candidates)
    patches = units(count, channels)
    assert coreset(patches, size).tolist() == plain(patches, size)


@pytest.mark.parametrize("candidates", [1, 7, 512])
def test_the_first_of_equal_patches_is_selected(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cosines of vectors of ±½ are exact, so that many are equal, and all 16 vectors occur several times."""
    monkeypatch.setattr(selection, "CANDIDATES", candidates)
    patches = torch.randint(2, (128, 4), generator=torch.Generator().manual_seed(1)) - 0.5
    order = coreset(patches, 100).tolist()
    assert order == plain(patches, 100) and len(set(order)) == 100
    assert len(patches[order[:16]].unique(dim=0)) == 16


def test_real_patches_are_covered_as_by_the_published_algorithm(encoder: FrozenEncoder) -> None:
    """Real patches are close together, so a last digit may change which of two alike is selected, but not how well it covers."""
    for stage in PatchResidual(encoder).remember(encoder(crops(12))):
        patches = stage.movedim(1, -1).flatten(0, 2)
        size = len(patches) // 4
        own, expected = coreset(patches, size).tolist(), plain(patches, size)
        assert len(set(own) & set(expected)) >= 0.99 * size
        assert radius(patches, own) == pytest.approx(radius(patches, expected), rel=1e-3)


def radius(patches: Tensor, order: Any) -> float:
    """Return the largest distance of a patch from the nearest selected one."""
    points = patches.double().numpy()
    return float(cdist(points, points[order]).min(axis=1).max())


def test_a_larger_memory_covers_better_and_better_than_chance(encoder: FrozenEncoder) -> None:
    patches = PatchResidual(encoder).remember(encoder(crops(12)))[0].movedim(1, -1).flatten(0, 2)
    sizes = [len(patches) // part for part in (16, 8, 4, 2)]
    far = [radius(patches, coreset(patches, size)) for size in sizes]
    assert all(later < earlier for earlier, later in pairwise(far))
    for size, own in zip(sizes, far, strict=True):
        chance = [radius(patches, np.random.default_rng(seed).choice(len(patches), size, replace=False)) for seed in range(5)]
        assert own < min(chance)


def test_a_stage_within_the_bound_is_kept_as_it_is() -> None:
    fine, coarse = units(3, 8, 8, 5).movedim(-1, 1), units(3, 4, 4, 5, seed=1).movedim(-1, 1)
    kept = bounded([fine, coarse], 48)
    assert kept[0].shape == (1, 5, 1, 48) and kept[1] is coarse
    memory = [fine, coarse]
    assert bounded(memory, 192) is memory and bounded(memory, 191)[0].shape == (1, 5, 1, 191)


@pytest.mark.parametrize("kind", [PatchResidualSettings, MetricResidualSettings])
@torch.inference_mode()
def test_a_memory_of_all_patches_changes_no_byte(kind: Any, encoder: FrozenEncoder) -> None:
    settings = kind(resolution=SIDE, self_residual=0.6, rotations=2)
    pictures = crops(7)
    most = 2 * 4 * 64  # views, prompts, and patches of the finest stage
    exact, *others = (
        create_detector(replace(settings, memory=memory), encoder).eval().score(pictures[4:], pictures[:4])
        for memory in (0, most, most + 1, most // 8)
    )
    for other in others[:2]:
        assert all(torch.equal(*pair) for pair in zip(exact, other, strict=True))
    assert not torch.equal(exact[1], others[2][1])


@torch.inference_mode()
def test_prompts_of_few_different_patches_lose_nothing(encoder: FrozenEncoder) -> None:
    """The same prompt eight times has no more different patches than once."""
    prompt, queries = crops(1), crops(5)[1:]
    exact = PatchResidual(encoder).score(queries, prompt)
    found = PatchResidual(encoder, memory=64).score(queries, prompt.repeat(8, 1, 1, 1))
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(exact, found, strict=True))


@torch.inference_mode()
def test_a_query_is_compared_with_the_kept_patches_of_all_prompts(encoder: FrozenEncoder) -> None:
    """Selected and compared by scipy."""
    detector, pictures = PatchResidual(encoder, memory=40), crops(9)
    queries, prompts = pictures[6:], pictures[:6]
    maps = []
    for asked, offered in zip(encoder(queries)[2:], encoder(prompts)[2:], strict=True):
        points = F.normalize(offered.movedim(1, -1).flatten(0, 2), dim=1)
        kept = points if len(points) <= 40 else points[plain(points, 40)]
        own = asked.movedim(1, -1).flatten(0, 2).numpy()
        residual = cdist(own, kept.numpy(), "cosine").min(axis=1) / 2
        maps.append(F.interpolate(torch.from_numpy(residual).view(len(queries), 1, *asked.shape[2:]), size=(8, 8), mode="bilinear"))
    expected = torch.stack(maps).mean(dim=0)
    assert torch.allclose(detector.score(queries, prompts)[0].double(), expected.flatten(1).amax(dim=1), atol=1e-5)


def test_the_number_of_patches_is_read_from_a_file_and_at_least_0(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    own = content["pipelines"]["small"]
    own["detectors"] |= {"patch-residual": {"memory": 4096}, "metric-residual": {"model": "packaged", "memory": 256}}
    read = read_pipelines(write_pipelines(tmp_path, content)).pipelines["small"].detectors
    assert [create_detector(read[name]).memory for name in ("patch-residual", "metric-residual")] == [4096, 256]
    own["detectors"]["patch-residual"] = {"memory": -1}
    with pytest.raises(BadInput, match=r"patch-residual\.memory: expected between 0 and"):
        read_pipelines(write_pipelines(tmp_path, content))
