"""Defects: the mask is exact, size and contrast are graded, and bytes depend on the seed alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import skimage.data
from conftest import make_inpainter, make_inputs
from instruction_sets import OLDEST
from PIL import Image
from scipy import ndimage

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture
from changepair.tasks.synthesis.changes import RECIPES
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.defects.drawing import FAINT, LEAST_VISIBLE, Severity, laid
from changepair.tasks.synthesis.defects.registry import DEFECTS
from changepair.tasks.synthesis.objects import Dropped
from changepair.tasks.synthesis.pair import recipe
from changepair.tasks.synthesis.settings import GROUPS, DefectSettings, GlobalKind, LocalKind, SynthesisSettings
from changepair.tasks.synthesis.shards import read_index
from changepair.tasks.synthesis.synthesize import Inputs, finish, make_shard, maker, start

SIDE = 128
LOCAL, GLOBAL = get_args(LocalKind), get_args(GlobalKind)
GRADED = [kind for kind in LOCAL if kind not in ("local.burr", "local.chip", "local.missing-print", "local.shifted-print")]
"""Kinds whose contrast is a difference of levels. The others move what is in the picture."""
SCALED = [kind for kind in LOCAL if kind not in ("local.pit", "local.dust")]
"""Kinds whose area grows with the size. The others are scattered over a larger region."""


def square(picture: Picture, top: int, left: int, side: int = SIDE) -> Picture:
    cut = picture[top : top + side, left : left + side]
    coloured = cut if cut.ndim == 3 else np.repeat(cut[..., None], 3, axis=2)
    return np.asarray(Image.fromarray(coloured).resize((SIDE, SIDE)))


PICTURES = [
    square(skimage.data.brick(), 0, 0),
    square(skimage.data.gravel(), 100, 100),
    square(skimage.data.astronaut(), 0, 128, 256),
    square(skimage.data.page(), 0, 0, 190),
    square(skimage.data.coins(), 20, 50, 256),
]


def drawn(kind: str, size: float, contrast: float, count: int = 10, first: int = 0) -> list[tuple[Picture, Picture, np.ndarray]]:
    """Draw a defect into the pictures in turn: pairs of the picture before and after, and the mask."""
    found: list[tuple[Picture, Picture, np.ndarray]] = []
    for number in range(first, first + 10 * count):
        before = PICTURES[number % len(PICTURES)]
        try:
            after, mask = DEFECTS[kind](before, Severity(size, contrast), np.random.default_rng(number))
        except Dropped:
            continue
        found.append((before, after, mask))
        if len(found) == count:
            return found
    raise AssertionError(f"{kind}: too many draws were dropped")


def test_every_kind_of_the_settings_has_a_defect_and_a_recipe() -> None:
    assert list(DEFECTS) == [*LOCAL, *GLOBAL]
    assert {one.kind for one in RECIPES if one.method == "drawn"} == set(DEFECTS)


@pytest.mark.parametrize("size", [0.06, 0.5])
@pytest.mark.parametrize("kind", LOCAL)
def test_nothing_outside_the_mask_changes_and_the_change_inside_is_visible(kind: str, size: float) -> None:
    for before, after, mask in drawn(kind, size, 0.3):
        assert after.shape == before.shape and after.dtype == np.uint8 and mask.dtype == bool and mask.any()
        difference = np.abs(after.astype(int) - before).max(axis=2)
        assert not difference[~mask].any()
        assert difference[mask].mean() >= LEAST_VISIBLE - 0.5


@pytest.mark.parametrize("kind", LOCAL)
def test_a_defect_leaves_its_picture_and_depends_on_the_seed_alone(kind: str) -> None:
    copies = [picture.copy() for picture in PICTURES]
    one, same, other = drawn(kind, 0.3, 0.4), drawn(kind, 0.3, 0.4), drawn(kind, 0.3, 0.4, first=100)
    assert all((a[1] == b[1]).all() and (a[2] == b[2]).all() for a, b in zip(one, same, strict=True))
    assert any((a[2] != b[2]).any() for a, b in zip(one, other, strict=True))
    assert all((picture == copy).all() for picture, copy in zip(PICTURES, copies, strict=True))


@pytest.mark.parametrize("kind", GRADED)
def test_contrast_grades_the_difference(kind: str) -> None:
    means = [
        np.mean([np.abs(after.astype(int) - before)[mask].mean() for before, after, mask in drawn(kind, 0.4, contrast, 20)])
        for contrast in (0.2, 0.6)
    ]
    assert means[1] > 1.15 * means[0]


@pytest.mark.parametrize("kind", SCALED)
def test_size_grades_the_area(kind: str) -> None:
    areas = [np.median([mask.mean() for _before, _after, mask in drawn(kind, size, 0.4, 20)]) for size in (0.1, 0.4)]
    assert areas[1] > 1.5 * areas[0]


@pytest.mark.parametrize("kind", LOCAL)
def test_a_defect_is_within_its_extent(kind: str) -> None:
    """No defect is wider or higher than its size, with some room for splashes, branches and shifts."""
    for _before, _after, mask in drawn(kind, 0.2, 0.3):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) <= 0.2 * SIDE * 1.7 + 8


def test_defocus_is_a_gaussian_blur() -> None:
    for before, after, mask in drawn("local.defocus", 0.5, 0.3):
        blurred = np.stack([ndimage.gaussian_filter(plane.astype(float), (1 + 8 * 0.3) / 2, mode="mirror") for plane in before.T], axis=2)
        core = ndimage.binary_erosion(mask, iterations=14)
        assert not core.any() or np.abs(after - blurred.transpose(1, 0, 2))[core].mean() < 2


def test_missing_print_shows_the_ground_of_a_page() -> None:
    page, dark = np.full((SIDE, SIDE, 3), 230, dtype=np.uint8), np.zeros((SIDE, SIDE), dtype=bool)
    for line in range(10, 120, 12):
        dark[line : line + 2, 10:118] = True
    page[dark] = 20
    after, mask = DEFECTS["local.missing-print"](page, Severity(0.5, 0.3), np.random.default_rng(3))
    assert (after[mask] == 230).all() and (dark & mask).sum() > 40
    assert ((after == 20).all(axis=2) == (dark & ~mask)).all()


def test_shifted_print_moves_it_and_keeps_its_colour() -> None:
    page = np.full((SIDE, SIDE, 3), 200, dtype=np.uint8)
    page[60:64, 40:88] = (10, 20, 30)
    after, mask = DEFECTS["local.shifted-print"](page, Severity(1.0, 0.5), np.random.default_rng(1))
    moved = (after == (10, 20, 30)).all(axis=2)
    assert moved.sum() == 4 * 48 and not (after == page).all() and mask[60:64, 40:88].all() and mask[moved].all()


def test_a_burr_extends_the_part_and_a_chip_removes_some_of_it() -> None:
    ground, part = (40, 40, 40), (200, 180, 160)
    picture = np.full((SIDE, SIDE, 3), ground, dtype=np.uint8)
    picture[32:96, 32:96] = part
    for kind, grows in (("local.burr", True), ("local.chip", False)):
        for seed in range(10):
            after, _mask = DEFECTS[kind](picture, Severity(0.4, 0.4), np.random.default_rng(seed))
            area = int((after[..., 0] > 120).sum())
            assert (area > 64 * 64) if grows else (area < 64 * 64)
    with pytest.raises(Dropped, match="no edge"):
        DEFECTS["local.burr"](np.full((SIDE, SIDE, 3), 90, dtype=np.uint8), Severity(0.4, 0.4), np.random.default_rng(0))


def test_threads_follow_the_pattern() -> None:
    """On vertical stripes, a missing thread is vertical or horizontal."""
    stripes = np.repeat((np.arange(SIDE) // 4 % 2 * 100 + 70).astype(np.uint8)[None, :, None], SIDE, axis=0).repeat(3, axis=2)
    for seed in range(10):
        _after, mask = DEFECTS["local.missing-thread"](stripes, Severity(0.5, 0.5), np.random.default_rng(seed))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert min(np.ptp(rows), np.ptp(columns)) <= 4 < 30 < max(np.ptp(rows), np.ptp(columns))


@pytest.mark.parametrize("kind", GLOBAL)
def test_a_whole_picture_change_has_no_mask_and_is_stronger_than_light_between_pictures(kind: str) -> None:
    for before, after, mask in drawn(kind, 0.3, 0.05):
        assert not mask.any() and np.abs(after.astype(int) - before).mean() >= LEAST_VISIBLE / 3
    difference = [np.mean([np.abs(b.astype(int) - a).mean() for a, b, _ in drawn(kind, 0.3, one)]) for one in (0.05, 0.6)]
    assert difference[1] > 1.1 * difference[0]


@pytest.mark.parametrize("kind", DEFECTS)
def test_an_invisible_defect_is_dropped(kind: str) -> None:
    flat = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    if kind in ("local.defocus", "local.smear", "local.missing-print", "local.shifted-print", "local.burr", "local.chip", *GLOBAL[1:]):
        with pytest.raises(Dropped):  # nothing there to blur, to move or to stretch
            DEFECTS[kind](flat, Severity(0.3, 0.4), np.random.default_rng(0))
    else:
        after, _mask = DEFECTS[kind](flat, Severity(0.3, 0.4), np.random.default_rng(0))
        assert (after != flat).any()


HASHES = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import cv2
cv2.setUseOptimized(False)
from test_defects import digest
print(digest())
"""


def digest() -> str:
    found = hashlib.sha256()
    for kind in DEFECTS:
        for _before, after, mask in drawn(kind, 0.3, 0.4, 6):
            found.update(after.tobytes() + mask.tobytes())
    return found.hexdigest()


SWITCHED = """
import cv2, numpy, torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
print([name for name in __cpu_dispatch__ if __cpu_features__[name]], torch.backends.cpu.get_cpu_capability(), cv2.getCPUFeaturesLine())
"""


def test_the_variables_switch_off_the_instructions_of_each_library() -> None:
    answer = subprocess.check_output([sys.executable, "-c", SWITCHED], env={**os.environ, **OLDEST}, text=True)
    assert answer.startswith("[] DEFAULT ")
    dispatched = [word for word in answer.split() if word.startswith("*")]  # OpenCV's; a question mark follows those that are off
    assert [word for word in dispatched if not word.endswith("?")] == ["*SSE4.1", "*SSE4.2"]


def test_bytes_are_the_same_with_another_instruction_set() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parent / "support"), os.environ.get("PYTHONPATH", "")])
    hashes = [
        subprocess.check_output([sys.executable, "-c", HASHES, str(here)], env={**os.environ, "PYTHONPATH": path, **changed}, text=True)
        for changed in ({}, OLDEST)
    ]
    assert hashes[0] == hashes[1]


# In the stage


@pytest.fixture
def inputs(layout: Path) -> Inputs:
    return make_inputs(layout, make_inpainter(layout.parent / "inpainter"))


def small(**changed: object) -> SynthesisSettings:
    return SynthesisSettings(**{"pairs": 24, "pairs_per_shard": 8, "resolution": 64, "held_out": 0.0, **changed})  # type: ignore[arg-type]


def made(chosen: SynthesisSettings, inputs: Inputs, folder: Path) -> Path:
    work, missing = start(chosen, inputs, folder / "work")
    for number in missing:
        make_shard(chosen, inputs, number, work)
    finish(chosen, work, folder / "pairs")
    return folder / "pairs"


def test_a_group_divides_its_share_among_its_kinds() -> None:
    chosen = SynthesisSettings(kinds={"local": 0.5, "local.scratch": 0.2, "global": 0.2, "none": 0.1})
    counts = Counter(recipe(chosen, number).kind for number in range(4000))
    assert set(counts) == {*LOCAL, *GLOBAL, "none"} and chosen.repaints == []
    assert counts["local.scratch"] / 4000 == pytest.approx(0.2 + 0.5 / len(LOCAL), abs=0.02)
    assert sum(counts[kind] for kind in GLOBAL) / 4000 == pytest.approx(0.2, abs=0.02)
    assert set(GROUPS) == {"object", "local", "global"}


def test_a_range_of_severity_is_checked() -> None:
    with pytest.raises(ValueError, match=r"defects\.contrast: the smaller one first"):
        SynthesisSettings(defects=DefectSettings(contrast=(0.5, 0.2)))


def test_whole_picture_changes_are_labelled_and_left_out_of_training_on_masks(inputs: Inputs, tmp_path: Path) -> None:
    chosen = small(kinds={"global": 0.5, "local.stain": 0.25, "none": 0.25})
    folder = made(chosen, inputs, tmp_path)
    rows = read_index(folder)
    for row in rows:
        assert row.changed == (row.kind != "none") and (row.changed_area > 0) == row.kind.startswith("local")
    masked = ChangePairs(folder, masked=True)
    assert {row.kind for row in masked.rows} == {"local.stain", "none"} < {row.kind for row in ChangePairs(folder).rows}


def test_a_pair_that_cannot_be_made_is_made_by_another_kind_and_counted(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = 0

    def fails(materials: object, rng: np.random.Generator) -> object:
        nonlocal hopeless
        hopeless += 1
        raise Dropped("no place")

    chosen = small(kinds={"local.stain": 0.8, "none": 0.2})
    normal = {pair.index: pair for pair in maker(chosen, inputs.files).make(range(24))}
    with_scratch = replace(chosen, kinds={"local.stain": 0.6, "none": 0.2, "local.scratch": 0.2})
    scratch = next(one for one in RECIPES if one.kind == "local.scratch")
    broken = tuple(replace(one, way=fails) if one is scratch else one for one in RECIPES)
    monkeypatch.setattr("changepair.tasks.synthesis.pair.RECIPES", broken)
    one = maker(with_scratch, inputs.files)
    pairs = list(one.make(range(24)))
    given_up = sum(one.given_up.values())
    assert [pair.index for pair in pairs] == list(range(24)) and given_up > 0 and hopeless == 50 * given_up
    assert {pair.kind for pair in pairs} <= {"local.stain", "none"} and len(normal) == 24
    assert sum(count for drop, count in one.drops.items() if drop.reason == "no place") == hopeless
    again = list(maker(with_scratch, inputs.files).make(range(12, 24)))  # as in another shard
    assert all((a.query == b.query).all() for a, b in zip(pairs[12:], again, strict=True))
    work, _missing = start(with_scratch, inputs, tmp_path / "work")
    with pytest.raises(BadInput, match=r"kind 'local.scratch' failed: no place \(\d+\)"):
        make_shard(replace(with_scratch, pairs_per_shard=24), inputs, 0, work)


def test_faint_opacities_are_left_out() -> None:
    picture = np.full((4, 4, 3), 100, dtype=np.uint8)
    opacity = np.full((4, 4), FAINT / 2, dtype=np.float32)
    opacity[0, 0] = 1.0
    changed, mask = laid(picture, np.full((4, 4, 3), 200.0), opacity)
    assert mask.sum() == 1 and (changed[0, 0] == 200).all() and (changed[1:] == 100).all()
