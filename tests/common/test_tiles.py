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

from changepair.tasks.common.tiles import WHOLE, Grid, boxes, grid_for, grid_of, joined
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


def test_a_small_defect_of_a_large_picture_is_found_in_tiles_where_the_whole_shows_little() -> None:
    predictor = Predictor.load("multi-scale-residual")  # the default, with smaller patches, shows it in the whole too
    photo = np.asarray(Image.fromarray(skimage.data.brick()).resize((2112, 1408), Image.Resampling.BICUBIC))
    normal, moved = photo[:-8, :-8], photo[8:, 8:]
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
