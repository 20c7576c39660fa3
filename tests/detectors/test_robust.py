"""The robust residual: it equals a slow formula, and a change of the camera hardly moves its scores."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from changepair.tasks.detectors.appearance import BLUR, NOISE, blurred, compressed, versions_of
from changepair.tasks.detectors.residual.settings import RobustResidualSettings
from changepair.tasks.detectors.store import create_detector

SIDE = 96
Array = NDArray[np.float64]


def pictures(count: int) -> Tensor:
    """Crops of a photograph, (count, 3, SIDE, SIDE)."""
    photo = skimage.data.astronaut()
    crops = [photo[40 * place : 40 * place + SIDE, 60 * place : 60 * place + SIDE] for place in range(count)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    "options", [{}, {"versions": False, "patch": 16}, {"magnitude": False, "whole": 0.5}, {"whole": 0.0, "top_share": 0.0, "background": 0.0}]
)
def test_scores_equal_a_slow_formula(options: dict[str, float]) -> None:
    detector = create_detector(RobustResidualSettings(resolution=SIDE, **options))  # type: ignore[arg-type]
    queries, prompts = pictures(5)[2:], pictures(2)
    with torch.inference_mode():
        scores, maps = detector.score(queries, prompts)
        views = [prompts, *(versions_of(prompts) if options.get("versions", True) else ())]
        known = [last_three_of_each_scale(detector.encoder(view)) for view in views]
        asked = last_three_of_each_scale(detector.encoder(queries))
    for place in range(len(queries)):
        expected = slow_score([stage[place] for stage in asked], known, options)
        assert float(scores[place]) == pytest.approx(expected, rel=2e-4)
    assert maps.shape == (3, SIDE, SIDE) and float(maps.min()) >= 0 and float(maps.max()) <= 1


def last_three_of_each_scale(maps: list[Tensor]) -> list[Array]:
    return [map_.double().numpy() for start in range(0, len(maps), 5) for map_ in maps[start + 2 : start + 5]]


def slow_score(query: list[Array], known: list[list[Array]], options: dict[str, float]) -> float:
    """Score one query by loops over stages, prompts, patches and versions. `query` is (C, h, w) a stage, `known` [version][stage] (K, C, h,
    w)."""
    tops, changes = [], []
    sides = [stage.shape[-1] for stage in query]
    grids = [min(side, SIDE // int(options.get("patch", 8))) for side in sides]
    variation: dict[int, float] = {}
    for prompt in range(len(known[0][0])):
        lengths = [
            np.concatenate([np.linalg.norm(pooled(version[number][prompt], grid), axis=0).ravel() for version in known])
            for number, grid in enumerate(grids[:3])
        ]
        variation[prompt] = float(np.mean([each.std(ddof=1) / each.mean() for each in lengths]))
    for number, stage in enumerate(query):
        patches = pooled(stage, grids[number])
        residual = np.full((grids[number], grids[number]), np.inf)
        change = np.inf
        for prompt in range(len(known[0][number])):
            versions = [pooled(version[number][prompt], grids[number]).reshape(len(stage), -1).T for version in known]
            offered = np.concatenate(versions)
            power = np.mean([patch @ patch for patch in offered])
            for y in range(grids[number]):
                for x in range(grids[number]):
                    q = patches[:, y, x]
                    cosines = offered @ q / np.linalg.norm(offered, axis=1) / np.linalg.norm(q)
                    best = int(np.argmax(cosines))
                    value = (1 - cosines[best]) / 2
                    if options.get("magnitude", True):
                        weight = is_object(variation[prompt])
                        value = value ** (1 - weight / 2) * (np.sum((q - offered[best]) ** 2) / power) ** (weight / 2)
                    residual[y, x] = min(residual[y, x], value)
            if sides[number] >= 6 and number < 3:
                change = min(change, *(difference(stage, version[number][prompt]) for version in known))
        tops.append(residual)
        changes += [change] if sides[number] >= 6 and number < 3 else []
    grid = max(grids)
    large = [
        torch.nn.functional.interpolate(torch.from_numpy(top)[None, None], (grid, grid), mode="bilinear")[0, 0].numpy() for top in tops
    ]
    count = max(1, int(options.get("top_share", 0.01) * grid * grid))
    mean = np.mean(large[:3], axis=0)
    if len(large) > 3:
        surface = 1 - np.mean([is_object(each) for each in variation.values()])
        mean = (mean + surface * np.mean(large[3:], axis=0)) / (1 + surface)
    ordered = np.sort(mean.ravel())
    x = float(ordered[-count:].mean() - options.get("background", 0.7) * ordered[(grid * grid - 1) // 2])  # the lower median
    x *= 1 + options.get("whole", 1.0) * min(max(2 * np.mean(changes) - 1, 0), 1)
    return x / (1 + x)


def is_object(variation: float) -> float:
    return min(max((variation - 0.18) / 0.1, 0), 1)


def pooled(stage: Array, grid: int) -> Array:
    by = stage.shape[-1] // grid
    return stage.reshape(len(stage), grid, by, grid, by).mean(axis=(2, 4))


def difference(query: Array, prompt: Array) -> float:
    """The whole-picture statistic of a query against one version of a prompt. The unit is the spread in this version."""
    side, size = prompt.shape[-1] // 3, prompt.shape[-1]
    starts = [place * (size - side) // 2 for place in range(3)]
    windows = np.stack([moments(prompt[:, y : y + side, x : x + side]) for y in starts for x in starts])
    unit = windows.std(axis=0, ddof=1)
    unit = unit + 0.01 * unit.mean()
    return float(np.sqrt(np.mean(((moments(query) - moments(prompt)) / unit) ** 2)))


def moments(stage: Array) -> Array:
    return np.concatenate([stage.mean(axis=(1, 2)), stage.std(axis=(1, 2), ddof=1)])


def test_versions_equal_those_of_other_libraries() -> None:
    photo = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((104, 104)))  # not a multiple of JPEG's 16 pixels
    given = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=50)
    decoded = np.asarray(Image.open(file), dtype=np.float64)
    ours = 255 * compressed(given)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - decoded).mean() < 0.4 * np.abs(photo - decoded).mean()  # decoders smooth the colour in other ways
    smooth = np.stack([ndimage.gaussian_filter(plane / 255, 1.5, mode="nearest", truncate=10 / 3) for plane in np.moveaxis(photo, -1, 0)])
    np.testing.assert_allclose(blurred(given, 1.5)[0].numpy(), smooth, atol=0.01)


def test_versions_have_the_stated_strengths() -> None:
    grey = torch.full((2, 3, 64, 64), 0.5)
    jpeg, shifted, blur, noisy, dark, bright = versions_of(grey)
    assert all(torch.allclose(flat, grey, atol=0.01) for flat in (jpeg, shifted, blur))
    assert float((noisy - grey).std()) == pytest.approx(NOISE, rel=0.05) and float((noisy - grey).mean()) == pytest.approx(0, abs=0.002)
    assert torch.allclose(dark, torch.tensor(0.4)) and torch.allclose(bright, torch.tensor(0.6))
    assert torch.equal(list(versions_of(grey))[3], noisy) and not torch.equal(noisy[0, 0], noisy[0, 1])
    spot = torch.zeros(1, 3, 256, 256)
    spot[..., 128, 128] = 1.0
    across = list(versions_of(spot))[2][0, 0, 128]
    offsets = torch.arange(256) - 128
    assert float((across * offsets.square()).sum() / across.sum()) == pytest.approx((256 * BLUR) ** 2, rel=0.05)


def test_versions_lower_the_scores_of_normal_pictures_from_another_camera() -> None:
    texture = np.repeat(skimage.data.gravel()[..., None], 3, axis=2)
    crops = (
        torch.from_numpy(np.stack([texture[y : y + 128, x : x + 128] for y, x in ((0, 0), (256, 0), (0, 256))])).permute(0, 3, 1, 2) / 255
    )
    prompts, normal = crops[:1].float(), crops[1:].float()
    noisy = (normal + 0.06 * torch.randn(normal.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    raised = {}
    for versions in (False, True):
        detector = create_detector(RobustResidualSettings(resolution=128, versions=versions, whole=0.0))
        with torch.inference_mode():
            clean, changed = (detector.score(queries, prompts)[0] for queries in (normal, noisy))
        raised[versions] = float((changed / clean).mean())
    assert raised[True] - 1 < 0.7 * (raised[False] - 1)


def test_a_whole_picture_change_raises_the_score_more_with_the_statistic() -> None:
    texture = np.repeat(skimage.data.brick()[..., None], 3, axis=2).astype(np.float32) / 255
    crops = torch.from_numpy(np.stack([texture[y : y + 128, :128] for y in (0, 128, 256)])).permute(0, 3, 1, 2)
    tinted = crops[2:] * torch.tensor([1.0, 0.75, 0.6])[:, None, None]
    ratios = []
    for whole in (0.0, 1.0):
        detector = create_detector(RobustResidualSettings(resolution=128, whole=whole))
        with torch.inference_mode():
            normal, other = (float(detector.score(queries, crops[:1])[0]) for queries in (crops[1:2], tinted))
        ratios.append(other / (1 - other) / (normal / (1 - normal)))
    assert ratios[1] > 1.3 * ratios[0]
