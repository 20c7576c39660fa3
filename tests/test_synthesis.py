"""Synthesis: pairs whose difference is known, the same bytes whoever makes them."""

from __future__ import annotations

import io
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tasks.synthesis.contact_sheet import write_contact_sheet
from tasks.synthesis.sources import Sources

from tasks.errors import BadInput
from tasks.files import sha256
from tasks.randomness import generator
from tasks.synthesis.changes import CHANGERS, local_region
from tasks.synthesis.geometry import small_affine, warp_mask, warp_picture
from tasks.synthesis.pair import make_pair
from tasks.synthesis.perlin import perlin_mask, perlin_noise
from tasks.synthesis.settings import AugmentationSettings, SynthesisSettings
from tasks.synthesis.shards import ShardReader, read_index
from tasks.synthesis.synthesize import make_shard, shard_count, write_index

STILL = AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0)


@pytest.fixture
def images(layout: Path) -> list[str]:
    return sorted(str(file) for file in layout.rglob("train/good/*.png"))


def small(**changes: object) -> SynthesisSettings:
    return SynthesisSettings(**{"pairs": 20, "pairs_per_shard": 8, "resolution": 64, **changes})  # type: ignore[arg-type]


def make_all(images: list[str], folder: Path, workers: int) -> dict[str, str]:
    chosen = small()
    numbers = range(shard_count(chosen))
    arguments = ([chosen] * len(numbers), [images] * len(numbers), numbers, [folder] * len(numbers))
    if workers == 1:
        rows = [row for shard in map(make_shard, *arguments) for row in shard]
    else:
        with ProcessPoolExecutor(workers) as pool:
            rows = [row for shard in pool.map(make_shard, *arguments) for row in reversed(shard)]
    write_index(folder, rows)
    write_contact_sheet(folder)
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def test_the_same_bytes_with_one_worker_with_two_and_twice(images: list[str], tmp_path: Path) -> None:
    once = make_all(images, tmp_path / "one", 1)
    assert set(once) == {"00000.tar", "00001.tar", "00002.tar", "pairs.parquet", "contact_sheet.png"}
    assert make_all(images, tmp_path / "two", 2) == once
    assert make_all(images, tmp_path / "one", 1) == once


@pytest.mark.parametrize("kind", ["local-region", "exchange"])
def test_without_augmentation_pictures_differ_within_the_mask_and_nowhere_else(images: list[str], kind: str) -> None:
    chosen = small(kinds={kind: 1.0}, augmentation=STILL)
    for index in range(20):
        pair = make_pair(chosen, Sources(images, chosen.crop, chosen.resolution), index)
        different = (pair.query != pair.prompt).any(axis=2)
        # A pasted region has an edge about two pixels soft; the mask is cut where it is half through.
        near = np.asarray(Image.fromarray(pair.mask).convert("L").resize((64, 64))) > 0
        near = np.lib.stride_tricks.sliding_window_view(np.pad(near, 4), (9, 9)).any(axis=(2, 3))
        assert not (different & ~near).any()
        assert different[pair.mask].any()
        assert chosen.changed_area[0] <= pair.changed_area == pair.mask.mean() <= chosen.changed_area[1]


def test_local_region_is_the_papers_formula(images: list[str]) -> None:
    """DRAEM, eq. 2, re-stated: (1-M) I + (1-beta) M A + beta M I, for some texture A and beta in [0, 0.8]."""
    picture = Sources(images, (0.4, 1.0), 64).draw(generator(0, "x"))[1]
    white = np.full_like(picture, 255)
    for number in range(30):
        change = local_region(picture, lambda: white, generator(number, "draem"))
        outside = ~change.mask
        assert (change.query[outside] == picture[outside]).all()
        if not change.mask.any():
            continue
        # Of a plain texture every augmentation is plain, so within the mask the query is an affine map of the picture.
        inside, before = change.query[change.mask].astype(float), picture[change.mask].astype(float)
        for channel in range(3):
            beta, offset = np.polyfit(before[:, channel], inside[:, channel], 1) if np.ptp(before[:, channel]) > 30 else (0.4, None)
            assert -0.05 <= beta <= 0.85
            if offset is not None:
                assert np.abs(beta * before[:, channel] + offset - inside[:, channel]).max() <= 1.5


def test_a_pair_without_change_has_an_empty_mask(images: list[str]) -> None:
    chosen = small(kinds={"none": 1.0}, augmentation=STILL)
    pair = make_pair(chosen, Sources(images, chosen.crop, chosen.resolution), 3)
    assert pair.changed_area == 0 and (pair.query == pair.prompt).all()


def test_prompt_and_query_differ_in_geometry_and_light(images: list[str]) -> None:
    chosen = small(kinds={"none": 1.0})
    pair = make_pair(chosen, Sources(images, chosen.crop, chosen.resolution), 3)
    assert (pair.query != pair.prompt).mean() > 0.5


def test_the_mask_follows_the_query() -> None:
    """A white square on black, moved as a picture and as a mask, lands on the same pixels but for the rim."""
    square = np.zeros((64, 64, 3), dtype=np.uint8)
    square[20:40, 25:45] = 255
    for number in range(10):
        affine = small_affine(64, AugmentationSettings(rotation=30, shift=0.1, zoom=0.2, shear=10), generator(number, "warp"))
        picture, mask = warp_picture(square, affine), warp_mask(square[..., 0] > 0, affine)
        assert ((picture[..., 0] > 127) != mask).sum() <= 0.12 * mask.sum()


def test_kinds_occur_in_their_shares_whatever_their_order_in_the_file(images: list[str]) -> None:
    shares = {"local-region": 0.5, "exchange": 0.3, "none": 0.2}
    sources = Sources(images, (0.4, 1.0), 64)
    kinds = [make_pair(small(kinds=shares), sources, index).kind for index in range(300)]
    turned = [make_pair(small(kinds=dict(reversed(shares.items()))), sources, index).kind for index in range(40)]
    assert turned == kinds[:40]
    for kind, share in shares.items():
        assert abs(Counter(kinds)[kind] / 300 - share) < 0.1


def test_changes_that_cannot_fit_are_told(images: list[str]) -> None:
    chosen = small(kinds={"exchange": 1.0}, changed_area=(0.999, 1.0))
    with pytest.raises(BadInput, match="draws of a 'exchange' change all covered less or more than changed_area"):
        make_pair(chosen, Sources(images, chosen.crop, chosen.resolution), 0)


def test_a_source_that_has_gone_is_told(images: list[str]) -> None:
    Path(images[0]).unlink()
    gone = Sources([images[0]], (0.4, 1.0), 64)
    with pytest.raises(BadInput, match=r"0\.png: a source picture that was ingested cannot be read any more"):
        gone.draw(generator(0))


def test_a_webdataset_reader_reads_the_shards(images: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    make_all(images, folder, 1)
    samples = list(wds.WebDataset(str(folder / "{00000..00002}.tar"), shardshuffle=False, empty_check=False).decode("pil"))
    rows = read_index(folder)
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows] and len(rows) == 20
    for sample, row in zip(samples, rows, strict=True):
        assert sample["query.png"].size == sample["prompt.png"].size == sample["mask.png"].size == (64, 64)
        assert sample["json"] == row
        assert (np.asarray(sample["mask.png"].convert("L")) > 0).mean() == row["changed_area"]


def test_a_shard_gives_any_file_by_name(images: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    make_all(images, folder, 1)
    row = read_index(folder)[9]
    pair = make_pair(small(), Sources(images, small().crop, 64), 9)
    data = ShardReader(folder / row["shard"]).read(f"{row['key']}.query.png")
    assert (np.asarray(Image.open(io.BytesIO(data))) == pair.query).all()


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


def test_every_kind_of_the_settings_can_be_made() -> None:
    assert set(CHANGERS) == set(SynthesisSettings().kinds)
