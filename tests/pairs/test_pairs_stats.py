"""Measurements of pairs agree with other libraries and with pictures whose answer is evident."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import dilation, disk

from changepair import Predictor
from changepair.flows.cli import main
from changepair.flows.cli.pairs import local
from changepair.tasks.pairs.reading import PairsFolder
from changepair.tasks.pairs.stats import CELLS, QUANTILES, Seen, look_at, measure, ring_around


def square(side: int, top: int, left: int, width: int) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[top : top + width, left : left + width] = True
    return mask


def test_contrast_compares_the_change_with_its_ring() -> None:
    mask = square(100, 40, 40, 20)
    query = np.full((100, 100, 3), 100, dtype=np.uint8)
    query[mask] = (160, 100, 70)  # differs by 60, 0 and 30
    query[:20] = 255  # far from the change
    assert look_at(query, query, mask).contrast == pytest.approx(30)
    striped = np.full((100, 100, 3), 100, dtype=np.uint8)
    striped[40:60, 40:60] = 60
    striped[40:60:2, 40:60] = 140  # another texture of the same mean
    assert look_at(striped, striped, mask).contrast == pytest.approx(0)
    assert look_at(query, query, np.ones((100, 100), dtype=bool)).contrast is None


def test_the_ring_is_a_dilation_without_the_mask() -> None:
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(128, 128)), 6) > 0.05
    assert 0 < mask.mean() < 0.5
    assert np.array_equal(ring_around(mask), dilation(mask, disk(4)) & ~mask)  # 3 % of 128 pixels


@pytest.mark.parametrize(("top", "left", "cell"), [(0, 0, 0), (0, 80, 2), (45, 45, 4), (85, 10, 6), (85, 85, 8)])
def test_the_cell_is_that_of_the_centre(top: int, left: int, cell: int) -> None:
    picture = np.zeros((96, 96, 3), dtype=np.uint8)
    assert look_at(picture, picture, square(96, top, left, 8)).cell == cell


def test_counts_areas_and_positions_are_those_of_the_pictures(small_pairs: Path) -> None:
    pairs = PairsFolder(small_pairs)
    measured = {(one.kind, one.method): one for one in measure(pairs, residuals=lambda pair: (0.25, 0.5))}
    counts = Counter((row.kind, row.method) for row in pairs.rows)
    assert {group: one.pairs for group, one in measured.items() if group != ("all", "all")} == counts
    masks = [pair.arrays[2] for pair in pairs.read() if pair.row.kind == "local-region"]
    region = measured["local-region", "perlin"]
    assert region.changed_area == pytest.approx(tuple(np.quantile([mask.mean() for mask in masks], QUANTILES)))
    cells = np.zeros((CELLS, CELLS))
    for mask in masks:
        row, column = ndimage.center_of_mass(mask)
        cells[int((row + 0.5) / 64 * CELLS), int((column + 0.5) / 64 * CELLS)] += 1 / len(masks)
    assert region.position == pytest.approx(tuple(cells.ravel()))
    bands = [[(index * 3) // 64 == band for index in range(64)] for band in range(CELLS)]
    coverage = [np.mean([mask[rows][:, columns].sum() / mask.sum() for mask in masks]) for rows in bands for columns in bands]
    assert region.coverage == pytest.approx(tuple(coverage))
    assert (region.residual_inside, region.residual_outside, region.seen) == (0.25, 0.5, 0.0)
    none = measured["none", "unchanged"]
    assert none.pairs and none.masked == none.sampled == none.scored == 0
    assert none.changed_area is none.position is none.contrast is none.seen is None
    every = measured["all", "all"]
    assert (every.pairs, every.held_out, every.masked) == (22, 5, len(masks))


def test_no_more_pairs_are_read_than_stated(small_pairs: Path) -> None:
    seen = []

    def residuals(pair: object) -> tuple[float, float]:
        seen.append(pair)
        return 1.0, 0.0

    every = measure(PairsFolder(small_pairs), sample=5, scored=3, residuals=residuals)[-1]
    assert (every.sampled, every.scored, len(seen), every.seen) == (5, 3, 3, 1.0)


def test_residuals_are_those_of_the_predictor(small_pairs: Path) -> None:
    pairs = PairsFolder(small_pairs)
    pair = next(pair for pair in pairs.read() if pair.row.changed_area > 0)
    query, prompt, mask = pair.arrays
    _scores, maps = Predictor.load("patch-residual").prompt(prompt)(query)
    found = Seen()(pair)
    assert found == pytest.approx((maps[0][mask].mean(), maps[0][~mask].mean()), abs=0.01)
    assert found is not None and found[0] > found[1]
    unchanged = replace(pair, mask=next(pair.mask for pair in pairs.read() if pair.row.kind == "none"))
    assert Seen()(unchanged) is None


def test_the_command_prints_a_table_and_writes_the_same_numbers(
    small_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--scored", "0", "--json", str(tmp_path / "stats.json"), "--csv", str(tmp_path / "stats.csv")]
    monkeypatch.setattr(sys, "argv", ["changepair", "pairs", "stats", str(small_pairs), *words])
    main()
    told = capsys.readouterr().out
    content = json.loads((tmp_path / "stats.json").read_text(encoding="utf-8"))
    lines = [*csv.DictReader((tmp_path / "stats.csv").open(encoding="utf-8"))]
    assert [one["kind"] for one in content["kinds"]] == [line["kind"] for line in lines]
    for one, line in zip(content["kinds"], lines, strict=True):
        assert str(one["pairs"]) == line["pairs"] and one["seen"] is None
        assert (one["changed_area"] is None) == (line["area_50"] == "")
        if one["changed_area"] is not None:
            assert f"{one['changed_area'][2]:.4f}" == line["area_50"] and f"{one['changed_area'][2]:.1%}" in told
            assert f"{one['contrast'][2]:.1f}" == line["contrast_50"] and line["contrast_50"] in told
    assert set(content["definitions"]) == {"changed_area", "position", "coverage", "contrast", "difficulty"}


@pytest.mark.parametrize("place", ["/dev/null", "s3://bucket/file", "~nobody-of-that-name/x", "x" * 5000], ids=lambda place: place[:9])
def test_a_place_that_is_no_file_is_refused(place: str) -> None:
    """A file is replaced at the end, so that a device would be replaced, too."""
    with pytest.raises(argparse.ArgumentTypeError):
        local(place)
