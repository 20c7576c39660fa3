"""The robust residual: it equals a slow formula, and a change of the camera hardly moves its scores."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from changepair.tasks.detectors.appearance import BLUR, NOISE, blurred, compressed, reduced, versions_of
from changepair.tasks.detectors.residual.positions import REGISTERED, Positions, registration
from changepair.tasks.detectors.residual.settings import RobustResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.compare import Memory, Pool, Relations, compare
from changepair.tasks.scoring.sharing import share

SIDE = 96
Array = NDArray[np.float64]


def pictures(count: int) -> Tensor:
    """Crops of a photograph, (count, 3, SIDE, SIDE)."""
    photo = skimage.data.astronaut()
    crops = [photo[40 * place : 40 * place + SIDE, 60 * place : 60 * place + SIDE] for place in range(count)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def test_defaults_are_those_chosen_on_the_development_datasets() -> None:
    chosen = RobustResidualSettings(
        patch=8,
        versions=True,
        magnitude=True,
        whole=1.0,
        positions="off",
        radius=0.08,
        top_share=0.01,
        background=0.7,
        rotations=1,
        mirrored=False,
    )
    assert RobustResidualSettings() == chosen


@pytest.mark.parametrize(
    "settings",
    [
        RobustResidualSettings(),
        RobustResidualSettings(versions=False, patch=16),
        RobustResidualSettings(magnitude=False, whole=0.5),
        RobustResidualSettings(whole=0.0, top_share=0.0, background=0.0),
        RobustResidualSettings(positions="on", radius=0.2),
        RobustResidualSettings(positions="on", radius=0.0, mirrored=True, versions=False),
    ],
)
def test_scores_equal_a_slow_formula(settings: RobustResidualSettings) -> None:
    detector = create_detector(replace(settings, resolution=SIDE))
    queries, prompts = pictures(5)[2:], pictures(2)
    with torch.inference_mode():
        scores, maps = detector.score(queries, prompts)
        coarse = detector.conclude(features := detector.encoder(queries), detector.relate(features, detector.memorise(prompts)))[1]
        views = [prompts, *(versions_of(prompts) if settings.versions else ())]
        views += [prompts.flip(-1)] if settings.mirrored else []
        known = [last_three_of_each_scale(detector.encoder(view)) for view in views]
        asked = last_three_of_each_scale(detector.encoder(queries))
    for place in range(len(queries)):
        expected, highest = slow_score([stage[place] for stage in asked], known, settings)
        assert float(scores[place]) == pytest.approx(expected, rel=2e-4)
        assert float(coarse[place].max()) == pytest.approx(highest, rel=2e-4)
    assert maps.shape == (3, SIDE, SIDE) and float(maps.min()) >= 0 and float(maps.max()) <= 1


@pytest.mark.parametrize("seams", [(0.05, 0.0, 0.1, 0.2), (0.4, 0.6, 0.0, 0.0)])
def test_patches_in_the_seams_of_a_tile_are_left_out_of_the_score_alone(seams: tuple[float, ...]) -> None:
    settings = RobustResidualSettings(resolution=SIDE, versions=False, top_share=0.05)
    detector = create_detector(settings)
    queries, prompts = pictures(5)[2:], pictures(2)
    with torch.inference_mode():
        memory = detector.memorise(prompts)
        whole, maps = detector.score(queries, memory)
        scores, same = detector.score(queries, detector.of_tile(memory, seams))
        known, asked = ([last_three_of_each_scale(detector.encoder(one))] for one in (prompts, queries))
    assert torch.equal(maps, same) and not torch.allclose(whole, scores, rtol=0.01)
    assert all(one is other for one, other in zip(detector.of_tile(memory, (0.0,) * 4), memory, strict=True))
    for place in range(len(queries)):
        expected, _highest = slow_score([stage[place] for stage in asked[0]], known, settings, seams)
        assert float(scores[place]) == pytest.approx(expected, rel=2e-4)


def last_three_of_each_scale(maps: list[Tensor]) -> list[Array]:
    return [map_.double().numpy() for start in range(0, len(maps), 5) for map_ in maps[start + 2 : start + 5]]


def slow_score(
    query: list[Array], known: list[list[Array]], settings: RobustResidualSettings, seams: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
) -> tuple[float, float]:
    """Return the score of one query and the maximum of its map, by loops over stages, prompts, patches and versions.

    `query` is (C, h, w) a stage, `known` [version][stage] (K, C, h, w). `seams` are shares of the side: top, left, bottom, right.
    """
    tops, changes = [], []
    sides = [stage.shape[-1] for stage in query]
    grids = [min(side, SIDE // settings.patch) for side in sides]
    variation: dict[int, float] = {}
    for prompt in range(len(known[0][0])):
        lengths = [
            np.concatenate([np.linalg.norm(pooled(version[number][prompt], grid), axis=0).ravel() for version in known])
            for number, grid in enumerate(grids[:3])
        ]
        variation[prompt] = float(np.mean([each.std(ddof=1) / each.mean() for each in lengths]))
    for number, stage in enumerate(query):
        patches = pooled(stage, grids[number])
        reach = max(1, round(settings.radius * grids[number])) if settings.positions == "on" else grids[number]
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
                    for place in range(len(offered)):
                        row, column = divmod(place % grids[number] ** 2, grids[number])
                        if abs(row - y) > reach or abs(column - x) > reach:
                            cosines[place] = -np.inf
                    best = int(np.argmax(cosines))
                    value = (1 - cosines[best]) / 2
                    if settings.magnitude:
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
    count = max(1, int(settings.top_share * grid * grid))
    mean = np.mean(large[:3], axis=0)
    if len(large) > 3:
        surface = 1 - np.mean([is_object(each) for each in variation.values()])
        mean = (mean + surface * np.mean(large[3:], axis=0)) / (1 + surface)
    ordered = np.sort(mean.ravel())
    median = float(ordered[(grid * grid - 1) // 2])  # the lower one
    above = mean - settings.background * median
    for y in range(grid):
        for x in range(grid):
            ends = (y + 0.5, x + 0.5, grid - y - 0.5, grid - x - 0.5)
            if any(end < seam * grid for end, seam in zip(ends, seams, strict=True)):
                above[y, x] = 0
    score = float(np.sort(above.ravel())[-count:].mean())
    score *= 1 + settings.whole * min(max(2 * float(np.mean(changes)) - 1, 0), 1)
    highest = max(0.0, float(ordered[-1]) - settings.background * median)
    return score / (1 + score), highest


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
    jpeg, small_jpeg, noisy, grainy, *moved, blur, dark, bright = versions_of(grey)
    assert all(torch.allclose(flat, grey, atol=0.01) for flat in (jpeg, small_jpeg, *moved[:2], blur)) and len(moved) == 4
    assert float((noisy - grey).std()) == pytest.approx(NOISE, rel=0.05) and float((noisy - grey).mean()) == pytest.approx(0, abs=0.002)
    assert torch.allclose(dark, torch.tensor(0.4)) and torch.allclose(bright, torch.tensor(0.6))
    assert torch.equal(list(versions_of(grey))[2], noisy) and not torch.equal(noisy[0, 0], noisy[0, 1])
    alike = [
        float(torch.corrcoef(torch.stack([(of - 0.5)[..., 1:].flatten(), (of - 0.5)[..., :-1].flatten()]))[0, 1]) for of in (noisy, grainy)
    ]
    assert abs(alike[0]) < 0.05 < 0.4 < alike[1]  # the grain of an enlarged picture is coarser than a pixel
    spot = torch.zeros(1, 3, 256, 256)
    spot[..., 128, 128] = 1.0
    versions = [version[0, 0] for version in versions_of(spot)]
    places = [divmod(int(version.argmax()), 256) for version in versions]
    assert places == [(128, 128)] * 4 + [(132, 132)] * 4 + [(128, 128)] * 3
    across = versions[8][128]
    offsets = torch.arange(256) - 128
    assert float((across * offsets.square()).sum() / across.sum()) == pytest.approx((256 * BLUR) ** 2, rel=0.05)


@pytest.mark.parametrize("side", [64, 300, 256])
def test_versions_and_scores_are_the_same_on_any_number_of_threads(side: int) -> None:
    grey = Image.fromarray(skimage.data.gravel()[:side, :side]).resize((256, 256), Image.Resampling.BICUBIC)
    prompt = torch.from_numpy(np.array(grey)).expand(1, 3, -1, -1).float() / 255
    query = torch.from_numpy(skimage.data.astronaut()[:256, :256]).permute(2, 0, 1)[None].float() / 255
    detector = create_detector(RobustResidualSettings(resolution=256))
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with torch.inference_mode():
                found.append((torch.cat([*versions_of(prompt), *versions_of(query)]), detector.score(query, prompt)[0]))
    finally:
        torch.set_num_threads(threads)
    for versions, score in found[1:]:
        assert torch.equal(versions, found[0][0])
        assert torch.allclose(score, found[0][1], rtol=0, atol=1e-6)


def test_rounding_errors_do_not_decide_how_grey_pictures_are_compressed() -> None:
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 1, 64, 64))).expand(-1, 3, -1, -1).float() / 255
    assert torch.allclose(compressed(grey).double(), compressed(grey.double()), rtol=0, atol=1e-5)


def test_reduced_pictures_equal_those_of_pytorch() -> None:
    seen = pictures(2)[..., :90]
    for sides in ([60, 56], [SIDE, 33], [7, 90]):
        expected = torch.nn.functional.interpolate(seen, size=sides, mode="bilinear", align_corners=False)
        assert torch.allclose(reduced(seen, sides), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [128, 80])
def test_versions_lower_the_scores_of_normal_pictures_from_another_camera(side: int) -> None:
    texture = np.repeat(skimage.data.gravel()[..., None], 3, axis=2)
    crops = (
        torch.from_numpy(np.stack([texture[y : y + 128, x : x + 128] for y, x in ((0, 0), (256, 0), (0, 256))])).permute(0, 3, 1, 2) / 255
    )
    small = torch.nn.functional.interpolate(crops.float(), size=(side, side), mode="area")
    noise = 0.06 * torch.randn(small.shape, generator=torch.Generator().manual_seed(1))
    enlarged = torch.nn.functional.interpolate(torch.cat([small, small + noise]), size=(128, 128), mode="bicubic").clamp(0, 1)
    prompts, normal, noisy = enlarged[:1], enlarged[1:3], enlarged[4:]
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


def registered(count: int) -> Tensor:
    """One photograph under different noise, (count, 3, SIDE, SIDE)."""
    noise = 0.03 * torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    photo = torch.from_numpy(skimage.data.astronaut()[::5, ::5][:SIDE, :SIDE].copy()).permute(2, 0, 1)[None] / 255
    return (photo + noise).clamp(0, 1)


def shuffled(count: int) -> Tensor:
    """The photograph, cut at another place each time."""
    return torch.stack([one.roll((24 * place, 40 * place), dims=(-2, -1)) for place, one in enumerate(registered(count))])


def scores_of(queries: Tensor, prompts: Tensor, positions: Positions = "off", radius: float = 0.08) -> Tensor:
    settings = RobustResidualSettings(resolution=SIDE, versions=False, whole=0.0, background=0.0, positions=positions, radius=radius)
    detector = create_detector(settings)
    with torch.inference_mode():
        return detector.score(queries, prompts)[0]


def test_registration_equals_a_slow_formula() -> None:
    patches = torch.nn.functional.normalize(torch.randn(3, 5, 6, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    patches[1:] = torch.nn.functional.normalize(patches[1:] + 1.5 * patches[:1], dim=1)
    own = patches.double().numpy()
    near, most = 0.0, 0.0
    for prompt in range(3):
        for y in range(6):
            for x in range(6):
                highest = np.full((6, 6), -1.0)  # cosine in the window at each position
                for other in {0, 1, 2} - {prompt}:
                    for v in range(6):
                        for u in range(6):
                            window = own[other, :, max(0, v - 2) : v + 3, max(0, u - 2) : u + 3]
                            highest[v, u] = max(highest[v, u], np.einsum("c,cvu->vu", own[prompt, :, y, x], window).max())
                near += highest[y, x] - highest.mean()
                most += highest.max() - highest.mean()
    assert 0.1 < near / most < 0.9
    assert float(registration(patches, 0.3)) == pytest.approx(near / most, abs=1e-5)
    several = torch.stack([patches, patches.flip(0), patches.roll(1, dims=-1)])
    each = torch.stack([registration(one, 0.3) for one in several])
    assert torch.allclose(registration(several, 0.3), each, atol=1e-6) and torch.allclose(each[0], each[1], atol=1e-6)


def test_positions_count_only_if_the_prompts_are_registered() -> None:
    detector = create_detector(RobustResidualSettings(resolution=SIDE, versions=False))
    with torch.inference_mode():
        found = [float(registration(detector.memorise(of(3))[0][:, :-1], 0.08)) for of in (registered, shuffled)]
    assert found[0] > REGISTERED + 0.2 and found[1] < REGISTERED - 0.2
    query = pictures(3)[2:]
    for prompts, same in ((registered(3), "on"), (shuffled(3), "off"), (registered(1), "off")):
        chosen = {"off": scores_of(query, prompts), "auto": scores_of(query, prompts, "auto"), "on": scores_of(query, prompts, "on")}
        assert torch.equal(chosen["auto"], chosen[same]) and bool(chosen["on"] > chosen["off"])


def test_a_patch_outside_of_the_window_does_not_match() -> None:
    prompts = registered(2)
    moved = prompts[:1].roll(32, dims=-1)
    off, near = float(scores_of(moved, prompts)), float(scores_of(moved, prompts, "on"))
    wide = float(scores_of(moved, prompts, "on", radius=1.0))
    assert wide == pytest.approx(off, rel=1e-5) and near > 1.5 * off


def test_each_query_with_prompts_of_its_own_decides_alone() -> None:
    detector = create_detector(RobustResidualSettings(resolution=SIDE, positions="auto"))
    queries, kinds = pictures(4)[2:], (registered(2), shuffled(2))
    with torch.inference_mode():
        features, memories = detector.encoder(queries), [detector.memorise(prompts) for prompts in kinds]
        mixed = [torch.stack(parts) for parts in zip(*memories, strict=True)]
        together = detector.conclude(features, detector.relate(features, mixed))
        for place, memory in enumerate(memories):
            own = [stage[place : place + 1] for stage in features]
            scores, maps = detector.conclude(own, detector.relate(own, memory))
            assert torch.allclose(scores, together[0][place], atol=1e-6) and torch.allclose(maps[0], together[1][place], atol=1e-6)


def test_evaluation_decides_from_the_prompts_of_each_episode() -> None:
    detector = create_detector(RobustResidualSettings(resolution=SIDE, positions="auto"))
    prompts, queries = torch.cat([shuffled(3), registered(2)]), pictures(4)[2:]
    chosen = [(0,), (0, 1), (3, 4), (0, 1, 2, 3, 4)]
    names = [str(place) for place in range(5)]
    episodes = {
        number: Episode("a", "b", "class-specific", len(places), 0, tuple(names[place] for place in places), ("q", "r"), (0, 1))
        for number, places in enumerate(chosen)
    }
    with torch.inference_mode():
        features, memory = detector.encoder(queries), Memory(detector, detector.memorise(prompts))
        pool = Pool({name: place for place, name in enumerate(names)}, detector.encoder(prompts)[-1], memory)
        related = Relations(share({"robust": detector}), features).of("robust", slice(0, len(queries)), memory)
        found = {number: scores for number, scores, _maps in compare(detector, related, features, episodes, pool, 0)}
        for number, places in enumerate(chosen):
            assert torch.allclose(found[number], detector.score(queries, prompts[list(places)])[0], atol=1e-6)
