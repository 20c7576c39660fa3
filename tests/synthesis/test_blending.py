"""Poisson blending: the solution of the paper's equation, an exact region, and the same bytes everywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from conftest import ROOT, make_inputs
from instruction_sets import OLDEST

from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.inpainting.residual import hole
from changepair.tasks.sampling.episodes import read_pictures
from changepair.tasks.synthesis.blending import poisson_blend
from changepair.tasks.synthesis.changes import Materials, pasted
from changepair.tasks.synthesis.objects import ObjectCutout, Objects
from changepair.tasks.synthesis.pair import Maker
from changepair.tasks.synthesis.settings import AugmentationSettings, Blend, ObjectSettings, SynthesisSettings


def two(size: int) -> tuple[Picture, Picture]:
    """Squares of two photographs."""
    return np.ascontiguousarray(skimage.data.astronaut()[:size, 90 : 90 + size]), np.ascontiguousarray(skimage.data.coffee()[:size, :size])


def least_squares(picture: Picture, layer: Picture, region: Mask, *, mixed: bool) -> np.ndarray:
    """Solve equation 3 or 13 of the paper densely: f has the least sum of (f_p - f_q - v_pq)^2 over the pairs that touch the region."""
    number = {tuple(place): at for at, place in enumerate(np.argwhere(region))}
    lines, sides = [], []
    for y, x in np.ndindex(region.shape):
        for other in ((y + 1, x), (y, x + 1)):
            if max(other) >= len(region) or not (region[y, x] or region[other]):
                continue
            step = layer[y, x].astype(float) - layer[other]
            if mixed:
                theirs = picture[y, x].astype(float) - picture[other]
                step = np.where(np.abs(theirs) > np.abs(step), theirs, step)
            line = np.zeros(len(number))
            for place, sign in (((y, x), 1), (other, -1)):
                if region[place]:
                    line[number[place]] = sign
                else:
                    step = step - sign * picture[place].astype(float)
            lines.append(line)
            sides.append(step)
    return np.linalg.lstsq(np.array(lines), np.array(sides), rcond=None)[0]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("place", [(4, 5), (0, 0), (8, 9)], ids=["inside", "corner", "other corner"])
def test_it_solves_the_papers_equation(place: tuple[int, int], mixed: bool) -> None:
    picture, layer = (photo[40:60, 40:60] for photo in two(64))
    region = np.zeros((20, 20), dtype=bool)
    region[place[0] : place[0] + 12, place[1] : place[1] + 11] = True
    region[9, 9] = False
    blended = poisson_blend(picture, layer, region, mixed=mixed)
    assert (blended[~region] == picture[~region]).all()
    expected = least_squares(picture, layer, region, mixed=mixed).clip(0, 255)
    assert np.abs(blended[region] - expected).max() < 0.501


def test_light_is_removed_and_detail_is_kept() -> None:
    """A layer that is darker by the same everywhere has the picture's differences, so the picture is the solution."""
    picture, _other = two(64)
    picture = picture // 2 + 60
    region = hole(64, generator(0, "hole"))
    assert (poisson_blend(picture, picture - 50, region) == picture).all()
    assert (poisson_blend(picture, np.zeros_like(picture), region, mixed=True) == picture).all()  # a plain layer shows the picture


def test_it_agrees_with_opencv_where_that_keeps_the_rim() -> None:
    """On a plain picture with a plain rim of the layer, OpenCV's solution in the box hardly leaks out of the region."""
    picture, layer = np.full((96, 96, 3), 120, dtype=np.uint8), np.full((96, 96, 3), 60, dtype=np.uint8)
    cv2.circle(layer, (48, 48), 16, (160, 90, 40), -1)
    layer, region = cv2.GaussianBlur(layer, (0, 0), 3), np.zeros((96, 96), dtype=bool)
    region[18:78, 18:78] = True
    cv2.setUseOptimized(False)
    theirs = cv2.seamlessClone(layer, picture, region.astype(np.uint8) * 255, (48, 48), cv2.NORMAL_CLONE)
    assert np.abs(poisson_blend(picture, layer, region).astype(int) - theirs)[region].mean() < 3
    assert np.ptp(theirs[region].astype(int), axis=0).min() >= 15


@pytest.mark.parametrize("blend", ["poisson", "mixed"])
@pytest.mark.parametrize("corner", [(10, 12), (0, 0), (-8, 30), (50, -5), (-9, -9)], ids=str)
def test_an_object_is_pasted_anywhere_and_changes_only_its_mask(blend: Blend, corner: tuple[int, int]) -> None:
    picture, photo = two(64)
    mask = np.zeros((64, 64), dtype=bool)
    cv2.ellipse(view := mask.astype(np.uint8), (30, 28), (14, 10), 20, 0, 360, 1, -1)
    left, top = corner
    after, touched = pasted(picture, ObjectCutout(0, photo, view > 0, ""), left, top, 28, 22, blend)
    assert (after == picture)[~touched].all() and (after != picture).any(axis=2)[touched].mean() > 0.5
    soft, softly = pasted(picture, ObjectCutout(0, photo, view > 0, ""), left, top, 28, 22)
    assert not (touched & ~softly).any() and touched.sum() > 0.5 * softly.sum()
    rim = touched ^ cv2.erode(touched.astype(np.uint8), np.ones((3, 3)), borderValue=1).astype(bool)
    changes = [np.abs(one.astype(int) - picture)[rim].mean() for one in (after, soft)]
    assert changes[0] < changes[1]


def test_an_object_as_large_as_the_picture_replaces_it() -> None:
    picture, photo = two(32)
    after, touched = pasted(picture, ObjectCutout(0, photo, np.ones((32, 32), dtype=bool), ""), -4, -4, 40, 40, "poisson")
    assert touched.all() and (after != picture).mean() > 0.9


def test_pairs_with_blended_objects_differ_within_the_mask_and_nowhere_else(layout: Path) -> None:
    files = make_inputs(layout).files
    made = {}
    for blend in ("soft", "poisson"):
        chosen = SynthesisSettings(
            resolution=64,
            kinds={"appearance": 0.5, "exchange": 0.5},
            pasted=1.0,
            regenerated=0.0,
            objects=ObjectSettings(blend=blend),
            augmentation=AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0),
        )
        sources = Photographs([row.image for row in read_pictures(files.sources)], chosen.crop, chosen.resolution)
        made[blend] = list(
            Maker(Materials(chosen, sources, sources, Objects(chosen.objects, sources, files.objects)), None).make(range(12))
        )
        for pair in made[blend]:
            different = (pair.query != pair.prompt).any(axis=2)
            assert pair.method == "pasted" and not different[~pair.mask].any() and different[pair.mask].mean() > 0.5
    assert any((one.query != other.query).any() for one, other in zip(*made.values(), strict=True))


BYTES = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from test_blending import bytes_of
print(bytes_of())
"""


def bytes_of() -> str:
    digest = hashlib.sha256()
    picture, layer = two(128)
    for number in range(12):
        digest.update(poisson_blend(picture, layer, hole(128, generator(number, "hole")), mixed=number % 2 > 0).tobytes())
    for number in range(60):  # small regions often have ties
        place, region = generator(number, "place").integers(124, size=2), np.zeros((128, 128), dtype=bool)
        region[place[0] : place[0] + 2, place[1] : place[1] + 1 + number % 3] = True
        digest.update(poisson_blend(picture, layer, region).tobytes())
    return digest.hexdigest()


def test_the_same_bytes_under_other_instruction_sets_and_numbers_of_threads() -> None:
    places = ":".join(map(str, (ROOT / "tests", ROOT / "tests/support", Path(__file__).parent)))
    command = [sys.executable, "-c", BYTES, places]
    answer = subprocess.run(
        command, check=True, cwd=ROOT, env={**os.environ, **OLDEST, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True
    )
    assert answer.stdout.split()[-1] == bytes_of()
