"""Perturbations: what each does to a picture, and which names are read."""

from __future__ import annotations

import hashlib
import io
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter
from skimage.metrics import structural_similarity

from changepair.tasks.scoring.perturbation_names import KINDS, MILD, Perturbations, is_mild, perturbation_of
from changepair.tasks.scoring.perturbations import PERTURB, perturbed

PICTURE = np.ascontiguousarray(skimage.data.astronaut()[:384, :512])
STRONGEST = {"crop": 0.9, "gain": 1.2, "gamma": 0.8, "resolution": 0.5}
NAMES = [f"{kind}-{STRONGEST.get(kind, {'jpeg': 50, 'side-light': 0.3}.get(kind, 4))}" for kind in KINDS]


def grey(value: int, height: int = 64, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def digest(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def test_every_kind_has_strengths_and_a_function() -> None:
    assert set(KINDS) == set(PERTURB) == {name.rpartition("-")[0] for name in NAMES} and len(KINDS) == 10


@pytest.mark.parametrize("name", NAMES)
def test_a_perturbation_changes_a_picture_a_little_and_always_alike(name: str) -> None:
    """In any order, thread and process."""
    before = PICTURE.copy()
    found = perturbed(PICTURE, name, "one")
    assert np.array_equal(PICTURE, before) and found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"]
    if not name.startswith("crop"):
        assert found.shape == PICTURE.shape and not np.array_equal(found, PICTURE)
        assert structural_similarity(found, PICTURE, channel_axis=2, gaussian_weights=True, sigma=8) > 0.35
    with ThreadPoolExecutor(3) as pool:
        several = list(pool.map(partial(perturbed, PICTURE, name), ["other", "one", "one"]))
    assert {digest(picture) for picture in several[1:]} == {digest(found)}
    drawn = name.rpartition("-")[0] in ("noise", "side-light", "shift", "crop")
    assert (digest(several[0]) != digest(found)) == drawn or name.startswith("rotation")


def test_the_bytes_do_not_depend_on_the_process() -> None:
    code = (
        "import hashlib, skimage.data, numpy as np, sys; from changepair.tasks.scoring.perturbations import perturbed\n"
        "picture = np.ascontiguousarray(skimage.data.astronaut()[:384, :512])\n"
        f"for name in {NAMES}: print(hashlib.sha256(perturbed(picture, name, 'key').tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.split() == [digest(perturbed(PICTURE, name, "key")) for name in NAMES]


def test_values_are_multiplied_or_raised_to_a_power() -> None:
    assert np.unique(perturbed(grey(100), "gain-0.8", "")).tolist() == [80] and perturbed(grey(250), "gain-1.2", "").min() == 255
    expected = [round(255 * (value / 255) ** 0.8) for value in range(256)]
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert perturbed(ramp, "gamma-0.8", "")[0, :, 1].tolist() == expected


def test_noise_has_its_deviation_in_grey_levels_in_each_channel_independently() -> None:
    difference = perturbed(grey(128, 1000, 300), "noise-15", "a").astype(float) - 128
    assert difference.std(axis=(0, 1)) == pytest.approx([15, 15, 15], rel=0.02) and np.abs(difference.mean(axis=(0, 1))).max() < 0.1
    channels = np.corrcoef(difference.reshape(-1, 3).T)
    assert np.abs(channels - np.eye(3)).max() < 0.01
    assert abs(np.corrcoef(difference[:512, :, 0].ravel(), difference[488:, :, 0].ravel())[0, 1]) < 0.02  # no part is repeated


def test_jpeg_is_the_encoders_at_that_quality() -> None:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "JPEG", quality=50)
    assert np.array_equal(perturbed(PICTURE, "jpeg-50", "a"), np.asarray(Image.open(stream)))


@pytest.mark.parametrize("scale", [1, 2])
def test_blur_is_relative_to_the_shorter_side(scale: int) -> None:
    """Sigma 2 on 256 pixels; of a picture of 512 pixels it is 4. Held against scipy."""
    picture = np.asarray(Image.fromarray(PICTURE[:256, :300]).resize((300 * scale, 256 * scale)))
    expected = gaussian_filter(picture.astype(float), (2 * scale, 2 * scale, 0), mode="reflect", truncate=3)
    assert np.abs(perturbed(picture, "blur-2", "") - expected).max() < 2


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_a_shift_moves_by_its_length_and_a_rotation_by_its_angle(key: str) -> None:
    """Held against scipy: the best match among all directions is the picture itself."""
    picture = np.asarray(Image.fromarray(PICTURE).convert("L").resize((300, 256)))[..., None].repeat(3, 2)
    moved, turned = (perturbed(picture, name, key)[40:-40, 40:-40, 0].astype(float) for name in ("shift-12", "rotation-10"))
    inner = picture[..., 0].astype(float)
    shifted = {}
    for angle in range(0, 360, 2):
        offset = (-12 * math.sin(math.radians(angle)), -12 * math.cos(math.radians(angle)))
        shifted[angle] = np.abs(affine_transform(inner, np.eye(2), offset, order=1)[40:-40, 40:-40] - moved).mean()
    assert min(shifted.values()) < 2.5 < np.abs(inner[40:-40, 40:-40] - moved).mean()
    errors = {}
    for degrees in (-10, 0, 10):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        matrix, centre = np.array([[cos, -sin], [sin, cos]]), (np.array(inner.shape) - 1) / 2
        errors[degrees] = np.abs(affine_transform(inner, matrix, centre - matrix @ centre, order=1)[40:-40, 40:-40] - turned).mean()
    assert min(errors[-10], errors[10]) < 0.6 and errors[0] > 5


def test_what_a_shift_or_rotation_brings_in_is_mirrored_not_black() -> None:
    for name in ("shift-60", "rotation-45", "rotation-179"):
        for height, width in ((64, 200), (200, 64)):
            assert np.unique(perturbed(grey(90, height, width), name, "x")).tolist() == [90]


def test_directions_are_drawn_to_all_sides() -> None:
    lights = [perturbed(grey(100), "side-light-0.3", str(number)) for number in range(60)]
    for picture in lights:
        assert 69 <= picture.min() <= 75 and 125 <= picture.max() <= 131 and picture.mean() == pytest.approx(100, abs=0.6)
    corners = {int(np.argmax([picture[y, x, 0] for y in (0, -1) for x in (0, -1)])) for picture in lights}
    ramp = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    moves = [perturbed(ramp, "shift-20", str(number))[128, 128, 0] > ramp[128, 128, 0] for number in range(40)]
    turns = {digest(perturbed(PICTURE, "rotation-5", str(number))) for number in range(20)}
    assert corners == {0, 1, 2, 3} and 8 < sum(moves) < 32 and len(turns) == 2


def test_resolution_removes_detail_and_crop_keeps_a_part() -> None:
    checks = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.ptp(perturbed(checks, "resolution-0.5", "")) <= 1  # the mean of two by two pixels
    parts = [perturbed(PICTURE, "crop-0.75", str(number)) for number in range(12)]
    for part in parts:
        assert part.shape == (288, 384, 3)
        places = np.argwhere((PICTURE[:97, :129] == part[0, 0]).all(2))
        assert any(np.array_equal(PICTURE[y : y + 288, x : x + 384], part) for y, x in places)
    assert len({digest(part) for part in parts}) == 12


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (3, 400)])
def test_small_and_narrow_pictures_are_perturbed_too(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for name in (*NAMES, "shift-128", "rotation-180", "blur-32", "resolution-0.05", "crop-0.1"):
        found = perturbed(picture, name, "x")
        assert found.shape == (*size, 3) or name.startswith("crop")
        assert min(found.shape) >= 1


@pytest.mark.parametrize(
    ("name", "mild"),
    [
        *((name, True) for name in (*MILD, "shift-4", "rotation-5", "side-light-0.3", "gamma-1.25", "resolution-0.5", "crop-0.9")),
        *((name, False) for name in ("jpeg-49", "blur-1.1", "noise-16", "gain-0.79", "gain-1.21", "rotation-15", "crop-0.89")),
    ],
)
def test_mild_perturbations_are_bounded(name: str, mild: bool) -> None:
    assert is_mild(name) == mild


def test_names_are_read_in_their_shortest_form() -> None:
    assert Perturbations().check(["gain-0.80", "side-light-.3", "jpeg-50.0"]) == ("gain-0.8", "side-light-0.3", "jpeg-50")
    with pytest.raises(ValueError, match=r"no duplicates, not \['gain-0.8', 'gain-0.80'\]"):
        Perturbations().check(["gain-0.8", "gain-0.80"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpg-50", "a kind and a strength, such as jpeg-50 (kinds: jpeg, blur,"),
        ("jpeg", "a kind and a strength"),
        ("", "a kind and a strength"),
        ("blur--1", "a kind and a strength"),
        ("jpeg-0", "jpeg with a whole strength between 1 and 95, not 'jpeg-0'"),
        ("jpeg-50.5", "jpeg with a whole strength between 1 and 95"),
        ("jpeg-high", "jpeg with a whole strength between 1 and 95"),
        ("noise-nan", "noise with a strength between 0.5 and 128, not 'noise-nan'"),
        ("gain-inf", "gain with a strength between 0.1 and 4"),
        ("crop-1", "crop with a strength between 0.1 and 0.99"),
    ],
)
def test_a_wrong_name_is_reported_with_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        perturbation_of(name)
    assert message in str(caught.value)
