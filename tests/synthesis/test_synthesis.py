"""Synthesis: pairs whose difference is known, of every kind, the same bytes whoever makes them."""

from __future__ import annotations

import csv
import io
import itertools
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import webdataset as wds
from conftest import make_inpainter, make_inputs, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.photographs import Box, Photographs
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.sheets import MARK, tinted
from changepair.tasks.inpainting.inpainter import load_inpainter, write_choice
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.sampling.episodes import read_pictures
from changepair.tasks.synthesis import changes
from changepair.tasks.synthesis.augmentation import STRONG, TO_YIQ, Step, jitter, make_of, shown, small_affine, warp_mask, warp_picture
from changepair.tasks.synthesis.changes import (
    RECIPES,
    Change,
    Materials,
    Repaint,
    appeared,
    distractor,
    local_region,
    only_the_change,
    painted,
    pasted,
    same_texture,
)
from changepair.tasks.synthesis.objects import Dropped, ObjectCutout, Objects
from changepair.tasks.synthesis.pair import Maker, groups, recipe
from changepair.tasks.synthesis.perlin import perlin_mask, perlin_noise
from changepair.tasks.synthesis.settings import AugmentationSettings, ObjectSettings, SynthesisSettings
from changepair.tasks.synthesis.shards import ShardReader, read_index
from changepair.tasks.synthesis.synthesize import Inputs, finish, make_shard, shard_count, start

STILL = AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0)
KINDS = ["appearance", "disappearance", "exchange", "local-region"]


@pytest.fixture
def images(layout: Path) -> list[str]:
    return sorted(str(file) for file in layout.rglob("train/good/*.png"))


@pytest.fixture
def inputs(layout: Path) -> Inputs:
    return make_inputs(layout, make_inpainter(layout.parent / "inpainter"))


def small(**changes: object) -> SynthesisSettings:
    # The pictures are textures, so what a smooth fill changes of them is little.
    inpainting = RepaintingSettings(batch_size=3, steps=2, least_difference=0.03, least_changed=0.2)
    return SynthesisSettings(**{"pairs": 20, "pairs_per_shard": 8, "resolution": 64, "inpainting": inpainting, **changes})  # type: ignore[arg-type]


def materials(inputs: Inputs, chosen: SynthesisSettings) -> Materials:
    images = [row.image for row in read_pictures(inputs.files.sources)]
    sources = Photographs(images, chosen.crop, chosen.resolution)
    return Materials(chosen, sources, sources, Objects(chosen.objects, sources, inputs.files.objects))


def maker(inputs: Inputs, chosen: SynthesisSettings) -> Maker:
    return Maker(materials(inputs, chosen), load_inpainter(inputs.inpainter, chosen.inpainting))


def make_all(inputs: Inputs, folder: Path, pool: Executor | None = None, order: int = 1) -> dict[str, str]:
    """All shards and what is written of them, as name -> sha256."""
    chosen = small()
    work, missing = start(chosen, inputs, folder.with_suffix(".work"))
    assert len(missing) == shard_count(chosen)
    arguments = zip(*((chosen, inputs, number, work) for number in missing[::order]), strict=True)
    list(map(make_shard, *arguments) if pool is None else pool.map(make_shard, *arguments))
    finish(chosen, work, folder)
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_same_bytes_whoever_makes_them_in_whichever_order(inputs: Inputs, tmp_path: Path) -> None:
    once = make_all(inputs, tmp_path / "one")
    assert {"00000.tar", "00001.tar", "00002.tar", "pairs.parquet", "overview/kinds.csv", "overview/exchange.png"} <= set(once)
    assert make_all(inputs, tmp_path / "turned", order=-1) == once
    with ThreadPoolExecutor(3) as threads:
        assert make_all(inputs, tmp_path / "threads", threads) == once
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        assert make_all(inputs, tmp_path / "processes", processes, order=-1) == once
    assert {path.name for path in tmp_path.glob("*.work/*")} == set()


def test_a_run_keeps_the_whole_shards_of_one_like_it_and_throws_away_those_of_any_other(inputs: Inputs, tmp_path: Path) -> None:
    work, missing = start(small(), inputs, tmp_path / "work")
    assert missing == [0, 1, 2]
    for number in (0, 2):
        make_shard(small(), inputs, number, work)
    work.record(2).unlink()  # as if it had been killed between the two
    assert start(small(), inputs, tmp_path / "work") == (work, [1, 2])
    other, missing = start(small(seed=1), inputs, tmp_path / "work")
    assert missing == [0, 1, 2] and not work.folder.exists() and other.folder.is_dir()
    write_choice(inputs.inpainter, InpainterSettings(model="another"))
    another, _missing = start(small(seed=1), inputs, tmp_path / "work")
    assert another != other


@pytest.mark.parametrize("kind", KINDS)
def test_without_augmentation_pictures_differ_within_the_mask_and_nowhere_else(inputs: Inputs, kind: str) -> None:
    chosen = small(kinds={kind: 1.0}, augmentation=STILL, apart=0.0)
    for pair in maker(inputs, chosen).make(range(12)):
        different = np.abs(pair.query.astype(int) - pair.prompt).max(axis=2)
        assert not different[~pair.mask].any() and different[pair.mask].mean() > 5
        assert chosen.changed_area[0] <= pair.mask.mean() <= chosen.changed_area[1]
        assert pair.kind == kind


def test_whatever_a_model_does_to_the_rest_of_a_picture_is_undone(inputs: Inputs) -> None:
    """A VAE alters every pixel, for one. Outside the region, and so outside the mask, prompt and query agree to the bit."""
    chosen = small(kinds={"appearance": 0.5, "disappearance": 0.5}, augmentation=STILL)
    asked: list[Tensor] = []

    def paints_everything(images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        asked.append(masks)
        return 1 - images

    pairs = list(Maker(materials(inputs, chosen), paints_everything).make(range(8)))
    regions = torch.cat(asked)[:, 0].numpy() > 0
    assert len(regions) == len(pairs) == 8
    for pair, region in zip(pairs, regions, strict=True):
        assert (pair.query == pair.prompt)[~pair.mask].all() and not (pair.mask & ~region).any()
        assert pair.mask.sum() > 0.5 * region.sum()


def test_an_object_appears_in_the_query_and_disappears_from_it(inputs: Inputs) -> None:
    """An object painted away is painted in the prompt for an appearance, in the query for a disappearance."""

    def paints_white(images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.ones_like(images)

    for kind, side in (("appearance", "prompt"), ("disappearance", "query")):
        chosen = small(kinds={kind: 1.0}, augmentation=STILL, swapped=0.0)
        for pair in Maker(materials(inputs, chosen), paints_white).make(range(5)):
            other = {"prompt": pair.query, "query": pair.prompt}[side]
            assert (getattr(pair, side)[pair.mask] == 255).all() and other[pair.mask].mean() < 230


def test_texts_are_the_settings_or_the_objects_own(inputs: Inputs) -> None:
    heard: list[str] = []

    def listens(images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        heard.extend(texts)
        return 1 - images

    repainting = replace(small().inpainting, removal_text="empty ground", exchange_texts=("a cat", "a dog"))
    list(Maker(materials(inputs, small(kinds={"appearance": 1.0}, inpainting=repainting)), listens).make(range(4)))
    assert set(heard) == {"empty ground"}
    heard.clear()
    list(Maker(materials(inputs, small(kinds={"exchange": 1.0}, regenerated=1.0, inpainting=repainting)), listens).make(range(12)))
    assert set(heard) == {"a cat", "a dog"}


def test_a_region_that_came_out_unchanged_is_dropped_and_counted(inputs: Inputs) -> None:
    chosen = small(kinds={"disappearance": 1.0})
    calls = itertools.count()

    def lazy(images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return images if next(calls) == 0 else 1 - images

    own_maker = Maker(materials(inputs, chosen), lazy)
    pairs = list(own_maker.make(range(6)))
    unchanged = sum(count for drop, count in own_maker.drops.items() if drop.reason == "region unchanged")
    assert unchanged == 3 and sum(pair.draw > 0 for pair in pairs) >= 3

    def never(images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return images

    with pytest.raises(BadInput, match=r"50 draws of a pair of kind 'disappearance' failed: region unchanged \(\d+\)"):
        list(Maker(materials(inputs, chosen), never).make(range(6)))


def test_a_mask_is_shrunk_to_where_the_region_changed() -> None:
    before = np.full((64, 64, 3), 120, dtype=np.uint8)
    region = np.zeros((64, 64), dtype=bool)
    region[10:50, 10:50] = True
    after = before.copy()
    after[10:50, 10:30] = 200
    kept, mask = only_the_change(before, after, region, small())
    exact = region & (np.arange(64) < 30)
    assert (mask != exact).sum() <= 40 * 2 and not (mask & ~region).any()
    assert (kept[mask] == after[mask]).all() and (kept[~mask] == before[~mask]).all()
    after[10:50, 14:50] = 120
    with pytest.raises(Dropped, match="region unchanged"):
        only_the_change(before, after, region, small())
    grain = before + np.random.default_rng(0).integers(0, 2, before.shape, dtype=np.uint8) * 8
    with pytest.raises(Dropped):
        only_the_change(before, grain, region, small())


def test_what_is_pasted_is_another_photographs(inputs: Inputs) -> None:
    chosen = small(kinds={"exchange": 1.0}, regenerated=0.0, augmentation=STILL)
    own_maker = Maker(materials(inputs, chosen), None)
    for pair in own_maker.make(range(10)):
        assert pair.method == "pasted"
        assert (pair.query == pair.prompt)[~pair.mask].all() and (pair.query != pair.prompt)[pair.mask].any()


def test_an_object_of_another_photograph_appears_or_disappears_without_an_inpainting_model(inputs: Inputs) -> None:
    kinds = {"appearance": 0.5, "disappearance": 0.5}
    chosen = small(kinds=kinds, pasted=1.0, swapped=0.0, augmentation=STILL)
    assert not chosen.repaints and sorted(small(kinds=kinds, pasted=0.5).repaints) == sorted(kinds)
    of = materials(inputs, chosen)
    sources = {image: read_picture(Path(image)) for image in of.sources.images}
    made = list(Maker(of, None).make(range(20)))
    assert {pair.kind for pair in made} == set(kinds)
    for pair in made:
        assert pair.method == "pasted"
        assert (pair.query == pair.prompt)[~pair.mask].all() and (pair.query != pair.prompt)[pair.mask].any(axis=-1).mean() > 0.5
        without, _with = (pair.prompt, pair.query) if pair.kind == "appearance" else (pair.query, pair.prompt)
        # The picture without the object is a square of its source, so its levels lie within those of the source; bicubic ones overshoot.
        source = sources[pair.source].astype(int)
        assert (without.max((0, 1)) <= source.max((0, 1)) + 40).all() and (without.min((0, 1)) >= source.min((0, 1)) - 40).all()


def test_an_object_keeps_its_proportions_and_its_box_is_within_the_area(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    of = materials(inputs, small(objects=ObjectSettings(area=(0.02, 0.1))))
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:30, 20:50] = True  # 20 high, 30 wide
    picture = np.full((64, 64, 3), (255, 0, 0), dtype=np.uint8)
    monkeypatch.setattr(Objects, "draw", lambda *_args, **_options: ObjectCutout(0, picture, mask, ""))
    shapes = []
    monkeypatch.setattr(changes, "pasted", lambda picture, _other, *box: shapes.append(box) or pasted(picture, _other, *box))
    for number in range(40):
        with suppress(Dropped):
            appeared(of, generator(number, "appeared"), pasted_is_query=True)
    assert len({box[:2] for box in shapes}) > 30
    for left, top, width, height, _blend in shapes:
        assert 0 <= left <= 64 - width and 0 <= top <= 64 - height
        assert 0.015 < width * height / 64**2 < 0.115 and abs(width / height - 1.5) < 0.2


def test_pairs_of_earlier_settings_draw_the_same_methods() -> None:
    """The methods that were added last have no share by default, so a pair's number draws the same method as before."""
    kinds = SynthesisSettings().kinds
    shares = [kinds["appearance"], kinds["disappearance"], kinds["exchange"] / 2, kinds["exchange"] / 2]
    shares += [kinds["local-region"], kinds["distractor"] / 2, kinds["distractor"] / 2, kinds["none"]]
    for number in range(500):
        drawn = generator(0, "kind", number).random() * sum(shares)
        place = next(place for place, upto in enumerate(np.cumsum(shares)) if drawn < upto)
        assert recipe(SynthesisSettings(), number) == RECIPES[place]


def test_local_region_is_the_papers_formula(inputs: Inputs) -> None:
    """DRAEM, eq. 2, re-stated: (1-M) I + (1-beta) M A + beta M I, for some texture A and beta in [0, 0.8]."""
    white = inputs.files.sources.parent / "white.png"
    Image.new("RGB", (96, 96), "white").save(white)
    chosen = small(changed_area=(0.0, 1.0), apart=0.0)
    of = replace(materials(inputs, chosen), textures=Photographs([str(white)], chosen.crop, chosen.resolution))
    for number in range(30):
        change = local_region(of, generator(number, "draem"))
        outside = ~change.mask
        assert (change.query[outside] == change.prompt[outside]).all()
        if not change.mask.any():
            continue
        # Of a plain texture every augmentation is plain, so within the mask the query is an affine map of the picture.
        inside, before = change.query[change.mask].astype(float), change.prompt[change.mask].astype(float)
        for channel in range(3):
            beta, offset = np.polyfit(before[:, channel], inside[:, channel], 1) if np.ptp(before[:, channel]) > 30 else (0.4, None)
            assert -0.05 <= beta <= 0.85
            if offset is not None:
                assert np.abs(beta * before[:, channel] + offset - inside[:, channel]).max() <= 1.5


def test_a_texture_of_the_sources_is_another_photographs_and_of_a_folder_any(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    of = materials(inputs, small(apart=0.0))
    cut: list[tuple[Photographs, int]] = []
    real = Photographs.cut
    monkeypatch.setattr(Photographs, "cut", lambda self, index, square: cut.append((self, index)) or real(self, index, square))
    for number in range(20):
        cut.clear()
        local_region(of, generator(number, "texture"))
        (_, photo), (_, texture) = cut
        assert photo != texture
    textures = Photographs(of.sources.images[:1], of.sources.crop, 64)
    cut.clear()
    local_region(replace(of, textures=textures), generator(0, "texture"))
    assert cut[1] == (textures, 0)


def test_a_pair_without_change_has_an_empty_mask(inputs: Inputs) -> None:
    (pair,) = maker(inputs, small(kinds={"none": 1.0}, augmentation=STILL, apart=0.0)).make([3])
    assert not pair.mask.any() and (pair.query == pair.prompt).all() and pair.method == "unchanged"


def test_a_pair_without_change_may_be_two_crops_of_one_texture(inputs: Inputs) -> None:
    chosen = small(kinds={"none": 1.0}, augmentation=STILL, apart=1.0)
    apart = [pair for pair in maker(inputs, chosen).make(range(20)) if (pair.query != pair.prompt).any()]
    assert len(apart) >= 5 and not any(pair.mask.any() for pair in apart)
    for pair in apart:
        assert abs(pair.query.mean() - pair.prompt.mean()) < 28 and 0.5 < pair.query.std() / pair.prompt.std() < 2


def test_another_make_is_blurred_or_has_a_grain_of_its_own(images: list[str]) -> None:
    picture = read_picture(Path(images[0]), 64)
    assert np.array_equal(make_of(picture, STILL, np.random.default_rng(0)), picture)
    for asked, found in (("blur", []), ("noise", [])):
        chosen = replace(STILL, **{asked: 4.0})
        for number in range(60):
            moved = make_of(picture, chosen, generator(number, "make")).astype(float) - picture
            if moved.any():
                found.append((moved.std(), np.corrcoef(moved.ravel(), ndimage.laplace(picture.astype(float), axes=(0, 1)).ravel())[0, 1]))
        assert 12 <= len(found) <= 36  # two in five
        spread, against_detail = np.array(found).T
        # A blur takes detail away; a grain knows nothing of it, and has the strength that was asked for.
        assert (against_detail.max() > 0.3) == (asked == "blur") and (asked == "blur" or 2.5 < spread.max() < 5)


def test_a_share_of_the_pairs_is_without_colour(tmp_path: Path) -> None:
    for number in range(4):
        save(skimage.data.astronaut()[:96, 90 * number :][:, :96], tmp_path / "colours" / "train" / "good" / f"{number}.png")
    chosen = small(kinds={"none": 1.0}, augmentation=replace(STILL, grey=0.5))
    pairs = list(Maker(materials(make_inputs(tmp_path / "colours"), chosen), None).make(range(40)))
    spread = np.array([[np.ptp(picture, axis=2).max() for picture in (pair.query, pair.prompt)] for pair in pairs])
    assert ((spread[:, 0] == 0) == (spread[:, 1] == 0)).all() and 10 <= (spread[:, 0] == 0).sum() <= 30


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every square that is cut from a photograph."""
    kept: list[np.ndarray] = []
    real = Photographs.cut

    def cut(self: Photographs, *place: Any) -> np.ndarray:
        kept.append(real(self, *place))
        return kept[-1]

    monkeypatch.setattr(Photographs, "cut", cut)
    return kept


def is_cut(picture: np.ndarray, cuts: list[np.ndarray], where: np.ndarray | None = None) -> bool:
    """Whether a picture is a square of a photograph, to the bit, at least where it is asked for."""
    where = np.ones(picture.shape[:2], dtype=bool) if where is None else where
    return any(np.array_equal(cut[where], picture[where]) for cut in cuts)


def test_a_local_change_of_two_crops_is_in_the_query_and_marked_there(inputs: Inputs, cuts: list[np.ndarray]) -> None:
    """Without the artefact the query is another place than the prompt's; and prompt and query keep their roles."""
    chosen = small(kinds={"local-region": 1.0}, augmentation=STILL, apart=1.0, swapped=1.0)
    pairs = list(maker(inputs, chosen).make(range(24)))
    apart = [pair for pair in pairs if (pair.query != pair.prompt)[~pair.mask].any()]
    assert len(apart) >= 5 and [pair.swapped for pair in pairs] == [not any(pair is other for other in apart) for pair in pairs]
    for pair in apart:
        assert chosen.changed_area[0] <= pair.mask.mean() <= chosen.changed_area[1]
        assert is_cut(pair.query, cuts, ~pair.mask) and not is_cut(pair.query, cuts) and is_cut(pair.prompt, cuts)


def test_a_distractor_of_two_crops_is_in_both_or_in_the_prompt_alone(inputs: Inputs, cuts: list[np.ndarray]) -> None:
    """Never in the query alone: there it would be an anomaly that is not marked."""
    chosen = small(kinds={"distractor": 1.0}, augmentation=STILL, apart=1.0)
    apart = [pair for pair in maker(inputs, chosen).make(range(60)) if (pair.query != pair.prompt).any()]
    seen = Counter((is_cut(pair.query, cuts), is_cut(pair.prompt, cuts)) for pair in apart)
    assert set(seen) == {(True, False), (False, False)} and min(seen.values()) >= 3
    assert not any(pair.mask.any() for pair in apart)


def test_two_squares_apart_have_nothing_in_common(inputs: Inputs) -> None:
    sources = Photographs([row.image for row in read_pictures(inputs.files.sources)], (0.4, 1.0), 64)
    for number in range(60):
        first, second = sources.squares_apart(0, generator(number, "apart"))
        assert first.left + first.width <= second.left + 1e-9 or first.top + first.height <= second.top + 1e-9
        assert min(first.left, first.top, second.left, second.top) >= 0
        assert max(second.left + second.width, second.top + second.height, first.left + first.width, first.top + first.height) <= 1 + 1e-9


def test_what_is_no_texture_has_no_two_crops() -> None:
    texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    other = texture.copy()
    other[:32] = 20
    assert same_texture(texture, texture[::-1]) and not same_texture(texture, other) and not same_texture(other, other)


@pytest.mark.parametrize("kind", [*KINDS, "distractor"])
def test_prompt_and_query_change_roles_in_half_the_pairs(inputs: Inputs, kind: str) -> None:
    """The same draws with and without: a pair is as it was, or turned round."""
    plain, swapped = (
        list(maker(inputs, small(kinds={kind: 1.0}, augmentation=STILL, swapped=share)).make(range(16))) for share in (0.0, 0.5)
    )
    turned = 0
    for one, other in zip(plain, swapped, strict=True):
        assert (one.mask == other.mask).all()
        turned += (one.query == other.prompt).all() and (one.prompt == other.query).all() and not (one.query == other.query).all()
        assert (one.query == other.query).all() or (one.query == other.prompt).all()
    assert turned == 0 if kind == "distractor" else 3 <= turned <= 13


def test_a_distractor_is_in_both_pictures_and_nothing_has_changed(inputs: Inputs) -> None:
    chosen = small(kinds={"distractor": 1.0}, augmentation=STILL, apart=0.0)
    pairs = list(maker(inputs, chosen).make(range(16)))
    assert all((pair.query == pair.prompt).all() and not pair.mask.any() for pair in pairs)
    assert {pair.method for pair in pairs} == {"perlin", "pasted"}
    changes = materials(inputs, chosen)
    for number in range(10):
        both, once = distractor(changes, generator(number, "x")), local_region(changes, generator(number, "x"))
        assert (both.prompt == once.query).all() and (once.query != once.prompt).any()


def test_a_place_that_the_prompt_does_not_show_is_not_marked() -> None:
    """A map by 16 pixels shows the right part of its input alone, and a turn what lies in the turned square."""
    assert (shown((1, 0, 16, 0, 1, 0), 64) == np.repeat(np.arange(64)[None] >= 16, 64, axis=0)).all()
    settings = AugmentationSettings(rotation=30, shift=0.1, zoom=0.1, shear=5)
    rows, columns = np.mgrid[:64, :64] + 0.5
    for number in range(10):
        a, b, c, d, e, f = affine = small_affine(64, settings, generator(number, "shown"))
        inverse = np.linalg.inv([[a, b, c], [d, e, f], [0, 0, 1]])
        x, y, _one = np.einsum("ij,jhw->ihw", inverse, np.stack([columns, rows, np.ones_like(rows)]))
        inside = (x > 0) & (x < 64) & (y > 0) & (y < 64)
        assert (shown(affine, 64) != inside).mean() < 0.03


def test_held_out_pairs_are_made_of_photographs_that_no_other_pair_is_made_of(inputs: Inputs, tmp_path: Path) -> None:
    chosen = small(held_out=0.3, kinds={"local-region": 0.5, "none": 0.5})
    work, missing = start(chosen, inputs, tmp_path / "work")
    for number in missing:
        make_shard(chosen, inputs, number, work)
    finish(chosen, work, tmp_path / "pairs")
    rows = read_index(tmp_path / "pairs")
    assert [row.held_out for row in rows] == [False] * 14 + [True] * 6
    learnt, measured = ({row.source for row in rows if row.held_out == side} for side in (False, True))
    assert learnt and measured and not learnt & measured
    sources = Photographs([row.image for row in read_pictures(inputs.files.sources)], chosen.crop, 64)
    rest, apart = sources.parted(0.3)
    assert sorted((*rest.images, *apart.images)) == sorted(sources.images) and measured <= set(apart.images)


def test_prompt_and_query_differ_in_geometry_and_light(inputs: Inputs) -> None:
    (pair,) = maker(inputs, small(kinds={"none": 1.0})).make([3])
    assert (pair.query != pair.prompt).mean() > 0.5


def test_the_mask_follows_the_query() -> None:
    """A white square on black, moved as a picture and as a mask, lands on the same pixels but for the rim."""
    square = np.zeros((64, 64, 3), dtype=np.uint8)
    square[20:40, 25:45] = 255
    for number in range(10):
        affine = small_affine(64, AugmentationSettings(rotation=30, shift=0.1, zoom=0.2, shear=10), generator(number, "warp"))
        picture, mask = warp_picture(square, affine), warp_mask(square[..., 0] > 0, affine)
        assert ((picture[..., 0] > 127) != mask).sum() <= 0.12 * mask.sum()


def test_a_change_of_light_is_the_four_steps_one_after_another() -> None:
    """Brightness, contrast about the mean grey, saturation and a turn of hue, each a plain formula, where nothing is clipped."""
    rng = np.random.default_rng(0)
    picture = rng.integers(90, 150, (32, 32, 3), dtype=np.uint8)
    chosen = AugmentationSettings(light=0.2, hue=0.02)
    for number in range(20):
        relit = jitter(picture, chosen, generator(number, "light"))
        again = generator(number, "light")
        brightness, contrast, saturation = 1 + again.uniform(-0.2, 0.2, size=3)
        turn = 2 * np.pi * again.uniform(-0.02, 0.02)
        luma = np.array([0.299, 0.587, 0.114])
        plain = picture.astype(float) * brightness
        grey = (plain @ luma).mean()
        plain = grey + (plain - grey) * contrast
        own = (plain @ luma)[..., None]
        plain = own + (plain - own) * saturation
        y, i, q = np.moveaxis(plain @ TO_YIQ.T, -1, 0)
        turned = np.stack([y, np.cos(turn) * i - np.sin(turn) * q, np.sin(turn) * i + np.cos(turn) * q], axis=-1)
        assert np.abs(relit - turned @ np.linalg.inv(TO_YIQ).T).max() < 0.75  # OpenCV computes it in 8 bits and a few more


@pytest.mark.parametrize("step", STRONG, ids=lambda step: step.__name__)
def test_every_augmentation_of_a_texture_changes_it_and_gives_a_picture(step: Step) -> None:
    import skimage.data

    texture = np.ascontiguousarray(skimage.data.astronaut()[:64, :64])
    before = texture.copy()
    textures = [step(texture, generator(number, "strong")) for number in range(8)]
    assert all(one.shape == texture.shape and one.dtype == np.uint8 for one in textures) and (texture == before).all()
    assert any((one != texture).any() for one in textures)
    plain = step(np.full((16, 16, 3), (40, 90, 200), dtype=np.uint8), generator(0, "strong"))
    assert (plain == plain[0, 0]).all()


def test_kinds_occur_in_their_shares_whatever_their_order_in_the_file() -> None:
    kinds = {"appearance": 0.1, "exchange": 0.3, "local-region": 0.4, "none": 0.2}
    drawn = [recipe(small(kinds=kinds, regenerated=0.25), number) for number in range(4000)]
    turned = [recipe(small(kinds=dict(reversed(kinds.items())), regenerated=0.25), number) for number in range(100)]
    assert turned == drawn[:100]
    counts = Counter((pair.kind, pair.method) for pair in drawn)
    for kind, method, share in (
        ("appearance", "inpainted", 0.1),
        ("exchange", "inpainted", 0.075),
        ("exchange", "pasted", 0.225),
        ("local-region", "perlin", 0.4),
        ("none", "unchanged", 0.2),
    ):
        assert abs(counts.pop((kind, method)) / 4000 - share) < 0.025
    assert not counts


def test_every_kind_of_the_settings_can_be_made() -> None:
    kinds = {recipe.kind for recipe, share in zip(RECIPES, SynthesisSettings().shares, strict=True) if share > 0}
    assert kinds == set(SynthesisSettings().kinds)


@given(st.lists(st.sampled_from(RECIPES), max_size=300), st.integers(1, 40))
def test_groups_hold_every_pair_once_in_order_and_no_more_than_a_batch_to_paint(recipes: list, batch: int) -> None:  # type: ignore[type-arg]
    parts = list(groups(dict(enumerate(recipes)), batch))
    assert [number for group in parts for number in group] == list(range(len(recipes)))
    for group in parts:
        assert sum(recipes[number].repaints for number in group) <= batch and len(group) <= max(64, batch)


def test_changes_that_cannot_fit_are_told(inputs: Inputs) -> None:
    chosen = small(kinds={"exchange": 1.0}, changed_area=(0.999, 1.0))
    with pytest.raises(BadInput, match=r"50 draws of a pair of kind 'exchange' failed: .*change too small \(\d+\).*; widen"):
        list(maker(inputs, chosen).make([0]))
    with pytest.raises(BadInput, match=r"kind 'local-region' failed: no noise within changed_area \(50\)"):
        list(maker(inputs, small(kinds={"local-region": 1.0}, changed_area=(0.999, 1.0))).make([0]))


def test_a_source_that_has_gone_is_told(images: list[str]) -> None:
    Path(images[0]).unlink()
    gone = Photographs([images[0]], (0.4, 1.0), 64)
    with pytest.raises(BadInput, match=r"0\.png: this ingested source picture can no longer be read"):
        gone.draw(generator(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_square_around_an_object_holds_it_whole(seed: int) -> None:
    import skimage.data

    from changepair.tasks.common.photographs import _photo

    rng = np.random.default_rng(seed)
    photo = str(Path(skimage.__file__).parent / "data" / "chelsea.png")
    if not Path(photo).is_file():
        pytest.skip("scikit-image has moved its pictures")
    sources = Photographs([photo], (0.3, 1.0), 64)
    left, top = rng.uniform(0, 0.8, 2)
    box = Box(left, top, left + rng.uniform(0.02, 0.2), top + rng.uniform(0.02, 0.2))
    covers = (box.right - box.left) * (box.bottom - box.top)
    square = sources.square_around(0, box, covers, (0.001, 0.6), rng)
    if square is None:  # only where the box is too small for the smallest square
        assert covers * 451 * 300 < 0.001 * (0.3 * 300) ** 2 * 1.1
        return
    slack = 1e-6
    assert square.left <= box.left + slack and box.right <= square.left + square.width + slack
    assert square.top <= box.top + slack and box.bottom <= square.top + square.height + slack
    assert min(square.left, square.top) >= -slack
    assert max(square.left + square.width, square.top + square.height) <= 1 + slack
    height, width = _photo(photo).shape[:2]
    assert square.width * width == pytest.approx(square.height * height)


def test_a_mask_is_cut_as_its_photograph_is(images: list[str]) -> None:
    """A photograph that is its own mask stays so."""
    folder = Path(images[0]).parent
    marked = np.zeros((90, 120), dtype=bool)
    marked[30:60, 50:95] = True
    file = folder / "marked.png"
    Image.fromarray(marked.astype(np.uint8) * 255).convert("RGB").save(file)
    sources = Photographs([str(file)], (0.5, 1.0), 64)
    for number in range(10):
        square = sources.square(0, generator(number, "cut"))
        picture, mask = sources.cut(0, square), sources.cut_mask(marked, square)
        assert ((picture[..., 0] > 127) != mask).mean() < 0.01


def test_a_webdataset_reader_reads_the_shards(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    make_all(inputs, folder)
    samples = list(wds.WebDataset(str(folder / "{00000..00002}.tar"), shardshuffle=False, empty_check=False).decode("pil"))
    rows = read_index(folder)
    assert [sample["__key__"] for sample in samples] == [row.key for row in rows] and len(rows) == 20
    for sample, row in zip(samples, rows, strict=True):
        assert sample["query.png"].size == sample["prompt.png"].size == sample["mask.png"].size == (64, 64)
        assert sample["json"] == asdict(row)
        assert (np.asarray(sample["mask.png"].convert("L")) > 0).mean() == row.changed_area


def test_a_shard_gives_any_file_by_name(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    make_all(inputs, folder)
    row = read_index(folder)[9]
    pair = next(itertools.islice(maker(inputs, small()).make(range(8, 16)), 1, None))
    data = ShardReader(folder / row.shard).read(f"{row.key}.query.png")
    assert (np.asarray(Image.open(io.BytesIO(data))) == pair.query).all()


def test_the_overview_counts_what_the_index_holds(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    make_all(inputs, folder)
    rows = read_index(folder)

    def table(name: str) -> list[dict[str, str]]:
        with (folder / "overview" / name).open() as stream:
            return list(csv.DictReader(stream))

    counts = Counter(f"{row.kind}, {row.method}" for row in rows)
    assert {row["kind"]: int(row["pairs"]) for row in table("kinds.csv")} == counts
    changed = [row for row in rows if row.changed_area > 0]
    assert sum(int(row["pairs"]) for row in table("changed_area.csv")) == len(changed)
    mean = sum(float(row["changed_area"]) * int(row["pairs"]) for row in table("changed_area.csv")) / len(changed)
    assert mean == pytest.approx(np.mean([row.changed_area for row in changed]), abs=0.01)
    assert {file.stem for file in (folder / "overview").glob("*.png")} == {row.kind for row in rows}
    for sheet in (folder / "overview").glob("*.png"):
        assert np.asarray(Image.open(sheet)).std() > 20
    assert sum(int(row["draws"]) for row in table("drops.csv")) >= sum(row.draw for row in rows) > 0


def test_an_overlay_tints_the_mask_alone() -> None:
    picture, mask = np.full((4, 4, 3), 100, dtype=np.uint8), np.eye(4, dtype=bool)
    overlay = tinted(picture, mask)
    assert (overlay[~mask] == 100).all() and (overlay[mask] == (165, 70, 80)).all()
    red = np.full((4, 4, 3), MARK, dtype=np.uint8)
    assert np.abs(tinted(red, mask)[mask].astype(int) - MARK).max() > 90  # visible on its own colour
    assert (tinted(red, np.zeros((4, 4), dtype=bool)) == red).all()


def test_painting_gives_a_change_or_nothing() -> None:
    picture = np.full((64, 64, 3), 90, dtype=np.uint8)
    region = np.zeros((64, 64), dtype=bool)
    region[20:40, 20:40] = True
    answer = np.full((64, 64, 3), 200, dtype=np.uint8)
    change = painted(Repaint(2, picture, region, "", painted_is_query=True), answer, small())
    assert isinstance(change, Change) and change.photo == 2
    assert (change.prompt == picture).all() and (change.query[region] == 200).all() and (change.query[~region] == 90).all()
    with pytest.raises(Dropped):
        painted(Repaint(2, picture, region, "", painted_is_query=True), picture, small())


def test_perlin_noise_is_the_textbooks() -> None:
    """Against a loop that follows Perlin's description point by point."""
    rows, columns = (grid.astype(np.float32) for grid in np.mgrid[0:3:9j, 0:2:7j])
    noise = perlin_noise(rows, columns, generator(5))
    angles = generator(5).uniform(0, 2 * np.pi, size=(int(rows.max()) + 2, int(columns.max()) + 2))
    fade = lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3  # noqa: E731
    for place in np.ndindex(rows.shape):
        y, x = rows[place], columns[place]
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        dots = {
            (i, j): np.sin(angles[y0 + i, x0 + j]) * (y - y0 - i) + np.cos(angles[y0 + i, x0 + j]) * (x - x0 - j)
            for i in (0, 1)
            for j in (0, 1)
        }
        u, v = fade(x - x0), fade(y - y0)
        expected = np.sqrt(2) * ((1 - v) * ((1 - u) * dots[0, 0] + u * dots[0, 1]) + v * ((1 - u) * dots[1, 0] + u * dots[1, 1]))
        assert abs(noise[place] - expected) < 1e-5


def test_a_few_samples_a_cell_hold_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks through them are those of a sample a pixel, but for some of the rim."""
    import changepair.tasks.synthesis.perlin as module

    few = [perlin_mask(256, generator(number, "samples")) for number in range(60)]
    monkeypatch.setattr(module, "SAMPLES_A_CELL", 1000)
    every = [perlin_mask(256, generator(number, "samples")) for number in range(60)]
    # Samples nearer to the edge may touch one row more of the lattice, and then the draws are others.
    apart = [(one != other).sum() / other.sum() for one, other in zip(few, every, strict=True) if other.any()]
    assert np.median(apart) < 0.06 and np.mean(np.array(apart) < 0.5) > 0.85


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_a_perlin_mask_covers_some_of_the_picture_and_never_most(seed: int) -> None:
    mask = perlin_mask(64, generator(seed))
    assert mask.shape == (64, 64) and mask.dtype == np.bool_ and mask.mean() < 0.6


@given(st.integers(0, 2**31), st.integers(0, 2**40))
def test_random_numbers_depend_on_seed_and_item_alone(seed: int, item: int) -> None:
    draw = generator(seed, "pair", item).integers(2**63)
    assert draw == generator(seed, "pair", item).integers(2**63)
    assert draw != generator(seed + 1, "pair", item).integers(2**63)
    assert draw != generator(seed, "pair", item + 1).integers(2**63)
