"""Large pictures: cut into tiles, and joined again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from conftest import save
from PIL import Image

from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.tiles import WHOLE, Grid, boxes, grid_for, grid_of, joined, seams
from changepair.tasks.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The detector that comes with the package, which a test prompts."""
    return Predictor.load()


def test_large_pictures_are_cut_and_others_are_not() -> None:
    assert grid_for(1080, 1920) == grid_for(2048, 2048) == WHOLE
    assert grid_for(3000, 4000) == Grid(3, 4) and grid_for(100, 2049) == Grid(1, 3)


def test_the_largest_side_of_any_prompt_chooses_the_grid() -> None:
    tall, wide, little = (5000, 200), (200, 3000), (480, 640)
    assert grid_of("auto", [tall, little]) == Grid(5, 1) and grid_of("auto", [tall, wide]) == grid_of("auto", [wide, tall]) == Grid(5, 3)
    assert grid_of("auto", [little]) == grid_of("auto", []) == grid_of((1, 1), [tall]) == WHOLE and grid_of((2, 3), []) == Grid(2, 3)


@pytest.mark.parametrize(("height", "width", "grid"), [(96, 130, Grid(3, 4)), (7, 5, Grid(2, 2)), (40, 40, WHOLE)])
def test_tiles_cover_a_picture_and_join_to_it(height: int, width: int, grid: Grid) -> None:
    whole = np.random.default_rng(0).random((height, width)).astype(np.float32)
    places = boxes((height, width), grid)
    parts = [whole[box.top : box.bottom, box.left : box.right] for box in places]
    assert len(places) == grid.tiles and np.allclose(joined(parts, places, height, width), whole, atol=1e-6)
    assert grid == WHOLE or sum(part.size for part in parts) > whole.size  # they overlap


@pytest.mark.parametrize("grid", [WHOLE, Grid(1, 2), Grid(2, 3), Grid(4, 6)])
def test_what_lies_in_a_seam_lies_inside_a_neighbour(grid: Grid) -> None:
    """Every pixel lies in one tile or more without its seams. A square of a twelfth of a tile's share of the side lies in one of them as a
    whole."""
    height, width = 1200, 1800
    small = height // grid.rows // 12, width // grid.columns // 12
    found = np.zeros((height - small[0] + 1, width - small[1] + 1), bool)  # by the upper left corner of the square
    for place, box in enumerate(boxes((height, width), grid)):
        top, left, bottom, right = (round(seam * box.size[number % 2]) for number, seam in enumerate(seams(place, grid, "squash")))
        assert (top > 0, left > 0, bottom > 0, right > 0) == (box.top > 0, box.left > 0, box.bottom < height, box.right < width)
        found[box.top + top : box.bottom - bottom - small[0] + 1, box.left + left : box.right - right - small[1] + 1] = True
        assert seams(place, grid, "crop") == (0, 0, 0, 0)
    assert found.all()


def test_a_defect_in_a_seam_is_scored_by_the_neighbour_alone(predictor: Predictor) -> None:
    """Between two tiles, each extended by 64 of 512 pixels, of which the outer 32 are the seam. As pictures of their own, both show it."""
    normal = np.repeat(skimage.data.brick()[:512, :, None], 2, axis=1).repeat(3, axis=2)
    query = normal.copy()
    query[200:216, 552:568] = 255 - query[200:216, 552:568]
    alone = [float(predictor.prompt(normal[:, part])(query[:, part]).scores[0]) for part in (np.s_[:576], np.s_[448:])]
    predictor.prompt(normal, grid=Grid(1, 2))
    tiles = predictor.cut(query)
    left, right = predictor.conclude(predictor.encode(tiles), tiles)
    print(alone, left.score, right.score)
    assert right.score == pytest.approx(alone[1], abs=1e-6) and left.score < 0.6 * alone[0]
    assert predictor([query]).scores == pytest.approx([right.score], abs=1e-6)


@pytest.fixture(scope="module")
def large() -> tuple[Picture, Picture]:
    """A photograph, and the same moved by 8 pixels along both sides."""
    photo = np.asarray(Image.fromarray(skimage.data.brick()).resize((2112, 1408), Image.Resampling.BICUBIC))
    return photo[:-8, :-8], photo[8:, 8:]


def test_a_small_defect_of_a_large_picture_is_found_in_tiles_where_the_whole_shows_little(large: tuple[Picture, Picture]) -> None:
    predictor = Predictor.load("multi-scale-residual")
    normal, moved = large
    query = moved.copy()
    query[600:630, 1000:1030] = 255 - query[600:630, 1000:1030]
    gaps = {}
    for grid in (WHOLE, Grid(2, 3)):
        scores, maps = predictor.prompt(normal, grid=grid)([moved, query], batch_size=4)
        print(grid, scores)
        gaps[grid] = scores[1] - scores[0]
        row, column = np.unravel_index((maps[1] - maps[0]).argmax(), maps[1].shape)
    assert maps[1].shape == query.shape and 560 <= row <= 670 and 960 <= column <= 1070
    assert gaps[Grid(2, 3)] > 2 * max(gaps[WHOLE], 0.001)


def test_the_default_finds_a_small_defect_of_a_moved_picture_at_any_place_in_tiles(
    large: tuple[Picture, Picture], predictor: Predictor
) -> None:
    """The move shows new content in the seams of every tile. The smallest gap in tiles is held against the mean gap of the whole."""
    normal, moved = large
    queries = [moved]
    for y, x in ((600, 1000), (200, 500), (1000, 1500), (300, 1700)):
        queries.append(moved.copy())
        queries[-1][y : y + 30, x : x + 30] = 255 - moved[y : y + 30, x : x + 30]
    gaps = {}
    for grid in (WHOLE, Grid(2, 3)):
        scores = predictor.prompt(normal, grid=grid)(queries, batch_size=6).scores
        print(grid, scores)
        gaps[grid] = scores[1:] - scores[0]
    assert gaps[Grid(2, 3)].min() > 2 * max(gaps[WHOLE].mean(), 0.001)


def test_a_picture_of_12_million_pixels_takes_less_than_2_gib(tmp_path: Path) -> None:
    """By a process of its own, whose peak is read as it ends: of its memory, for `ru_maxrss` begins with that of who started it."""
    large = np.tile(skimage.data.gravel(), (6, 8))[:3000, :4000]
    prompt, query = save(large, tmp_path / "prompt.png"), save(np.roll(large, 50, axis=0), tmp_path / "query.png")
    program = (
        "import re, sys; from changepair.flows.cli import main\n"
        "try: main()\n"
        "finally: print(int(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]) // 1024, file=sys.stderr)"
    )
    arguments = ["predict", "--prompt", str(prompt), str(query), "--out", str(tmp_path / "out"), "--maps", "png", "--overlays"]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stderr.split()[-1]) < 2048
    with Image.open(tmp_path / "out/maps/query_png.png") as map_:
        assert map_.size == (4000, 3000) and map_.mode.startswith("I;16")
