"""Development sets: exact masks, the same bytes every time, and the layout that ingestion reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from changepair.tasks.common.files import sha256
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.ingestion.development import cells, labels, parts, rendering, sheets, surfaces
from changepair.tasks.ingestion.development.rendering import GOOD, Scenes, write_scenes
from changepair.tasks.ingestion.texture_defects import SEED, SIZE

SETS = {
    "surfaces": surfaces.CATEGORIES,
    "parts": parts.CATEGORIES,
    "labels": labels.CATEGORIES,
    "sheets": sheets.CATEGORIES,
    "cells": cells.CATEGORIES,
}
EACH = pytest.mark.parametrize(("name", "category"), [(name, each[name]) for each in SETS.values() for name in each])


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in ("TRAIN_GOOD", "TEST_GOOD", "TEST_DEFECTIVE"):
        monkeypatch.setattr(rendering, count, 1)


@EACH
def test_a_mask_covers_exactly_what_the_defect_changed(tmp_path: Path, name: str, category: Scenes) -> None:
    write_scenes(tmp_path, {name: category})
    for defect in category.defects:
        shown = read_picture(tmp_path / name / "test" / defect / "000.png").astype(int)
        mask = read_picture(tmp_path / name / "ground_truth" / defect / "000_mask.png")[..., 0]
        item = (name, "test", defect, 0)
        without = np.rint(category.draw(generator(SEED, *item), GOOD, generator(SEED, *item))).astype(int)
        visible = np.abs(shown - without).max(axis=2) >= 8
        assert shown.shape == (SIZE, SIZE, 3)
        assert set(np.unique(mask)) <= {0, 255}
        assert not visible[mask == 0].any()
        if defect in category.whole:
            assert mask.all()
        else:
            assert visible[mask > 0].mean() > 0.4  # the rest fills gaps between changed pixels
            assert 60 <= (mask > 0).sum() < 0.3 * mask.size


@EACH
def test_a_category_has_the_same_bytes_whatever_was_drawn_before(tmp_path: Path, name: str, category: Scenes) -> None:
    write_scenes(tmp_path / "first", {name: category})
    rendering._field.cache_clear()
    write_scenes(tmp_path / "second", {"before": sheets.CATEGORIES["grille"], name: category})
    files = sorted(file.relative_to(tmp_path / "first") for file in (tmp_path / "first").rglob("*.png"))
    assert len(files) == 2 + 2 * len(category.defects)
    assert [sha256(tmp_path / "first" / file) for file in files] == [sha256(tmp_path / "second" / file) for file in files]


@EACH
def test_no_two_pictures_are_the_same(tmp_path: Path, name: str, category: Scenes) -> None:
    write_scenes(tmp_path, {name: category})
    pictures = [file for file in tmp_path.rglob("*.png") if not file.stem.endswith("_mask")]
    assert len({sha256(file) for file in pictures}) == len(pictures) == 2 + len(category.defects)


def test_a_defect_that_changes_nothing_visible_is_an_error(tmp_path: Path) -> None:
    def draw(rng: np.random.Generator, _kind: str, _other: np.random.Generator) -> rendering.Colour:
        return rng.uniform(0, 255, (SIZE, SIZE, 3))

    with pytest.raises(AssertionError, match="no draw shows the defect"):
        write_scenes(tmp_path, {"blank": Scenes(draw, ("nothing",))})


def test_slopes_and_shadows_follow_the_light() -> None:
    ramp = np.tile(np.arange(SIZE, dtype=np.float32), (SIZE, 1))
    assert np.allclose(rendering.slope(ramp, 0.0), 1)
    assert np.allclose(rendering.slope(ramp, np.pi / 2), 0, atol=1e-6)
    cover = np.zeros((SIZE, SIZE), np.float32)
    cover[100:150, 100:150] = 1
    drawn = rendering.put(np.full((SIZE, SIZE, 3), 200, np.float32), cover, (120, 120, 120), light=np.pi, shadow=5)
    assert drawn[125, 153, 0] < 150  # light from the left: shadow to the right
    assert drawn[125, 96, 0] > 190
    assert np.allclose(drawn[125, 125], 120)
