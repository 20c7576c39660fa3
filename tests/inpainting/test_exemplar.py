"""The exemplar fill: it copies from outside of the hole, and its bytes are the same everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from conftest import ROOT, make_inputs
from inpaintings import asked
from instruction_sets import OLDEST
from scipy.spatial.distance import cdist

from changepair.flows.inpainter import declare
from changepair.flows.settings import missing
from changepair.flows.settings.pipelines import Datasets, read_pipelines
from changepair.tasks.common.files import sha256
from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.inpainting import exemplar
from changepair.tasks.inpainting.exemplar import Exemplar, filled_hole
from changepair.tasks.inpainting.inpainter import load_inpainter, write_choice
from changepair.tasks.inpainting.residual import hole
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.synthesize import make_shard, start


def astronaut(size: int) -> tuple[Picture, Mask]:
    return np.ascontiguousarray(skimage.data.astronaut()[:size, 90 : 90 + size]), hole(size, generator(3, "hole"))


def test_it_paints_behind_the_same_interface_and_needs_no_weights(tmp_path: Path) -> None:
    write_choice(tmp_path, InpainterSettings(model="exemplar"))
    assert [file.name for file in tmp_path.iterdir()] == ["inpainter.json"]
    assert json.loads((tmp_path / "inpainter.json").read_text(encoding="utf-8")) == {"model": "exemplar", "revision": None}
    paint = load_inpainter(tmp_path, RepaintingSettings())
    images, masks, texts, seeds = asked()
    painted = paint(images, masks, texts, seeds)
    inside = masks.expand_as(images) > 0
    assert painted.shape == images.shape and painted.dtype == torch.float32 and painted.min() >= 0 and painted.max() <= 1
    assert torch.equal(painted[~inside], images[~inside]) and (painted[inside] != images[inside]).float().mean() > 0.8
    for number in range(len(images)):
        part = slice(number, number + 1)
        assert torch.equal(paint(images[part], masks[part], texts[part], seeds[part])[0], painted[number])


def test_a_pattern_is_continued_and_telea_smears_it() -> None:
    """Every patch of the pattern has an exact match outside of the hole."""
    tile = np.random.default_rng(0).integers(40, 216, (12, 12, 3), dtype=np.uint8)
    picture = np.tile(cv2.GaussianBlur(np.tile(tile, (3, 3, 1)), (0, 0), 1.2)[12:24, 12:24], (8, 8, 1))
    mask = np.zeros(picture.shape[:2], dtype=bool)
    mask[30:58, 36:70] = True
    error = np.abs(filled_hole(picture, mask).astype(int) - picture)[mask]
    smeared = np.abs(cv2.inpaint(picture, mask.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(int) - picture)[mask]
    assert error.mean() < 1 < 10 * error.mean() + 5 < smeared.mean()


def test_colours_are_adapted_to_the_rim() -> None:
    """No patch of a slope is like another, so a fill of unchanged patches has steps at its rim."""
    slope = np.clip(np.add.outer(np.arange(96), np.arange(96)) + np.random.default_rng(0).integers(-3, 4, (96, 96)), 0, 255)
    picture, mask = np.repeat(slope[..., None], 3, axis=2).astype(np.uint8), np.zeros((96, 96), dtype=bool)
    mask[30:60, 40:64] = True
    assert np.abs(filled_hole(picture, mask).astype(int) - picture)[mask].mean() < 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 5), (7, 7), (33, 31), (128, 70)], ids=str)
def test_any_hole_in_any_picture_is_filled_from_outside_alone(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    scattered, half, border, all_but_one = (np.zeros(shape, dtype=bool) for _ in range(4))
    scattered[rng.random(shape) < 0.3] = half[:, shape[1] // 2 :] = border[0] = all_but_one[:] = True
    all_but_one[-1, -1] = False
    for mask in (scattered, half, border, all_but_one):
        filled = filled_hole(picture, mask)
        assert (filled[~mask] == picture[~mask]).all()
        if not mask.all():
            assert (
                filled == filled_hole(np.where(mask[..., None], rng.integers(0, 256, picture.shape, dtype=np.uint8), picture), mask)
            ).all()
    if picture[:, :, 0].size > 1:
        assert (filled_hole(picture, all_but_one) == picture[-1, -1]).all()


def test_without_a_hole_or_without_surroundings_nothing_is_painted() -> None:
    images, masks, texts, seeds = asked()
    for mask in (torch.zeros_like(masks), torch.ones_like(masks)):
        assert torch.equal((Exemplar()(images, mask, texts, seeds) * 255).round(), (images * 255).round())


@pytest.fixture
def patches() -> exemplar._Patches:
    picture, mask = astronaut(96)
    level = exemplar._Level(picture.copy(), mask)
    exemplar._peeled(level)
    return exemplar._Patches(level, generator(0, "search"))


def distances(patches: exemplar._Patches) -> np.ndarray:
    return patches._distances(patches._wanted(), patches.matches)


def test_a_complete_search_finds_the_nearest_patches(patches: exemplar._Patches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplar, "PAIRS", 10**9)
    patches.search(8)
    nearest = cdist(patches._wanted()[::20], patches.bank[patches.sources].astype(float), "sqeuclidean").min(axis=1)
    assert len(nearest) > 20 and np.array_equal(distances(patches)[::20], nearest)
    assert patches.usable[patches.matches].all()


def test_patchmatch_comes_near_a_complete_search(patches: exemplar._Patches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplar, "PAIRS", 0)
    drawn = distances(patches).mean()
    for _turn in range(3):
        patches.search(48)
    found = distances(patches).mean()
    assert patches.usable[patches.matches].all()
    monkeypatch.setattr(exemplar, "PAIRS", 10**9)
    patches.search(48)
    best = distances(patches).mean()
    assert best <= found < best + 0.1 * (drawn - best)


BYTES = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from test_exemplar import bytes_of
print(bytes_of())
"""


def bytes_of() -> str:
    """Hash fills that are searched completely, and by PatchMatch."""
    digest = hashlib.sha256()
    for size in (48, 160):
        picture, mask = astronaut(size)
        digest.update(filled_hole(picture, mask, seed=5).tobytes())
    return digest.hexdigest()


def test_the_same_bytes_under_other_instruction_sets_and_numbers_of_threads() -> None:
    places = ":".join(map(str, (ROOT / "tests", ROOT / "tests/support", Path(__file__).parent)))
    command = [sys.executable, "-c", BYTES, places]
    answer = subprocess.run(
        command, check=True, cwd=ROOT, env={**os.environ, **OLDEST, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True
    )
    assert answer.stdout.split()[-1] == bytes_of()
    picture, mask = astronaut(160)
    assert (filled_hole(picture, mask, seed=5) != filled_hole(picture, mask, seed=6)).any()


def test_objects_are_painted_away_without_a_trained_model(layout: Path, tmp_path: Path) -> None:
    write_choice(tmp_path / "model", InpainterSettings(model="exemplar"))
    inputs = make_inputs(layout, tmp_path / "model")
    repainting = RepaintingSettings(least_difference=0.03, least_changed=0.2)  # the pictures are textures, so a fill changes little
    chosen = SynthesisSettings(pairs=6, pairs_per_shard=6, resolution=64, kinds={"disappearance": 1.0}, inpainting=repainting)
    hashes = []
    for batch in (2, 6):
        chosen = replace(chosen, inpainting=replace(repainting, batch_size=batch))
        work, numbers = start(chosen, inputs, tmp_path / f"work-{batch}")
        assert [make_shard(chosen, inputs, number, work) for number in numbers] == [6]
        hashes.append(sha256(work.shard(0)))
    assert hashes[0] == hashes[1]


def test_the_stage_trains_nothing_and_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart = read_pipelines(ROOT / "pipelines.yaml").pipelines["quickstart"]
    pipeline = quickstart.model_copy(update={"inpainter": InpainterSettings(model="exemplar")})
    [stage] = declare("mine", pipeline, Datasets())
    assert stage.sources is None and stage.weights is None
    monkeypatch.setattr(missing, "_cached", set)
    assert not list(missing._inpainter(pipeline)) and not missing.costs(pipeline)
