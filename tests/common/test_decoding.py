"""Picture files become the samples that other libraries find in them, and 8 bits by a range that no query changes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
import skimage.data
import tifffile
from conftest import ROOT
from dicoms import as_dicom
from PIL import Image, ImageOps
from pydicom.pixels.processing import apply_voi_lut

from changepair.tasks.common.decoding import (
    FULL,
    UNKNOWN,
    Extent,
    Intensity,
    Range,
    Undecodable,
    choose_range,
    decode,
    extent_of,
    marks_of,
    read_file,
    to_picture,
)
from changepair.tasks.common.pictures import read_mask, read_objects, reduced

GREY = skimage.data.brick()[:48, :64].astype(np.float64) / 255  # 0.1 to 0.9
COLOUR = np.dstack([GREY, GREY**2, 1 - GREY])
TWELVE = np.rint(GREY * 4095).astype(np.uint16)
SIXTEEN = np.rint(COLOUR * 65535).astype(np.uint16)


def tiff(array: np.ndarray, **form: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **form)
    return stream.getvalue()


def png16(array: np.ndarray) -> bytes:
    """By OpenCV, which orders colours the other way."""
    return bytes(cv2.imencode(".png", array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]])[1])


def by_pillow(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def lzw(array: np.ndarray) -> bytes:
    """By OpenCV, which compresses TIFF so."""
    return bytes(cv2.imencode(".tif", array if array.ndim == 2 else array[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1])


FLOAT = GREY.astype(np.float32)
FILES: dict[str, tuple[bytes, np.ndarray]] = {  # a file, and the samples that it was written with
    "tiff of 16 bits": (tiff(TWELVE), TWELVE),
    "tiff of 16 bits, big-endian": (tiff(TWELVE, byteorder=">"), TWELVE),
    "tiff in tiles": (tiff(TWELVE, tile=(16, 16)), TWELVE),
    "tiff, deflated with predictor": (tiff(SIXTEEN, photometric="rgb", compression="zlib", predictor=True), SIXTEEN),
    "tiff, LZW": (lzw(TWELVE), TWELVE),
    "tiff of colours, LZW": (lzw(SIXTEEN), SIXTEEN),
    "tiff of planes": (tiff(np.moveaxis(SIXTEEN, 2, 0), photometric="rgb", planarconfig="separate"), SIXTEEN),
    "tiff of float32": (tiff(FLOAT), FLOAT),
    "tiff of float32 with predictor": (tiff(FLOAT, compression="zlib", predictor=3), FLOAT),
    "tiff of float64": (tiff(GREY), GREY),
    "tiff of float16": (tiff(GREY.astype(np.float16)), GREY.astype(np.float16)),
    "tiff of float colours": (tiff(COLOUR.astype(np.float32), photometric="rgb"), COLOUR.astype(np.float32)),
    "tiff of uint32": (tiff(TWELVE.astype(np.uint32) * 10**6), TWELVE.astype(np.uint32) * 10**6),
    "tiff of int32": (tiff(TWELVE.astype(np.int32) - 1000), TWELVE.astype(np.int32) - 1000),
    "bigtiff": (tiff(TWELVE, bigtiff=True), TWELVE),
    "png of 16 bits": (png16(TWELVE), TWELVE),
    "png of 16-bit colours": (png16(SIXTEEN), SIXTEEN),
}


@pytest.mark.parametrize("name", FILES)
def test_samples_are_those_that_were_written(name: str) -> None:
    content, written = FILES[name]
    decoded = decode(content)
    assert decoded.deep and decoded.samples.dtype == written.dtype and (decoded.samples == written).all() and not decoded.inverted


@pytest.mark.parametrize("name", [name for name in FILES if "planes" not in name and "float16" not in name and "predictor" not in name])
def test_samples_are_those_that_opencv_finds(name: str) -> None:
    content, _written = FILES[name]
    theirs = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert theirs is not None
    assert (decode(content).samples == (theirs if theirs.ndim == 2 else theirs[..., ::-1])).all()


EIGHT = np.rint(COLOUR * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (by_pillow(Image.fromarray(EIGHT), "PNG"), EIGHT),
        (by_pillow(Image.fromarray(EIGHT), "BMP"), EIGHT),
        (by_pillow(Image.fromarray(EIGHT), "TIFF", compression="tiff_lzw"), EIGHT),
        (tiff(np.moveaxis(EIGHT, 2, 0), photometric="rgb", planarconfig="separate"), EIGHT),
        (tiff(255 - EIGHT[..., 0], photometric="miniswhite"), np.repeat(EIGHT[..., :1], 3, axis=2)),
        (
            by_pillow(Image.fromarray(EIGHT[..., 0] > 128), "TIFF", compression="group4"),
            np.repeat((EIGHT[..., :1] > 128) * np.uint8(255), 3, 2),
        ),
        (by_pillow(Image.fromarray(EIGHT), "PPM"), EIGHT),
    ],
    ids=["png", "bmp", "tiff", "tiff of planes", "tiff, white is zero", "tiff of one bit", "ppm"],
)
def test_pictures_of_8_bits_are_read_unchanged_whatever_the_range(content: bytes, expected: np.ndarray) -> None:
    assert (to_picture(decode(content), Intensity(Range(0, 7), Range(0, 7))) == expected).all()


def test_white_is_zero_of_16_bits_is_no_negative() -> None:
    written = tiff(4095 - TWELVE, photometric="miniswhite")
    shown = to_picture(decode(written), Intensity(Range(0, 4095)))
    assert np.abs(shown[..., 0] - GREY * 255).max() <= 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_deep_pictures_are_turned_as_pillow_turns(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    eight = Image.fromarray((TWELVE >> 4).astype(np.uint8))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(by_pillow(eight, "PNG", exif=exif)))))
    content = (
        by_pillow(Image.fromarray(TWELVE), "PNG", exif=exif) if kind == "png" else tiff(TWELVE, extratags=[(274, 3, 1, orientation, True)])
    )
    assert (decode(content).samples >> 4 == expected).all()


def test_transparency_of_deep_pictures_lies_over_white() -> None:
    alpha = np.full(GREY.shape, 65535, np.uint16)
    alpha[:10], alpha[10:20] = 0, 32768
    for content in (png16(np.dstack([SIXTEEN, alpha])), tiff(np.dstack([SIXTEEN, alpha]), photometric="rgb", extrasamples=["unassalpha"])):
        share = alpha[..., None] / 65535
        assert np.abs(to_picture(decode(content)) - 255 * (share * COLOUR + 1 - share)).max() <= 0.51
    two = imagecodecs.png_encode(np.dstack([TWELVE, alpha]))
    shown = to_picture(decode(two), Intensity(Range(0, 4095)))[..., 0]
    assert (shown[:10] == 255).all() and np.abs(shown[20:] - 255 * GREY[20:]).max() <= 0.51


HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 300, "WindowWidth": 1500}


@pytest.mark.parametrize(
    "tags", [HOUNSFIELD, {**HOUNSFIELD, "RescaleSlope": 0.5}, {**HOUNSFIELD, "PhotometricInterpretation": "MONOCHROME1"}]
)
def test_dicom_is_shown_by_its_window_as_pydicom_shows_it(tags: dict[str, Any]) -> None:
    content = as_dicom(TWELVE, **tags)
    decoded = decode(content)
    assert (decoded.samples == TWELVE.astype(float) * tags["RescaleSlope"] - 1024).all()
    shown = to_picture(decoded, choose_range([extent_of(decoded)]))[..., 0].astype(float)
    data = pydicom.dcmread(io.BytesIO(content))
    theirs = apply_voi_lut(decoded.samples.astype(np.float64), data)
    # pydicom maps the window to the range of the stored bits, of which a slope and an intercept make another one
    stored = np.array([0, 2**data.BitsStored - 1], float) * tags["RescaleSlope"] - 1024
    expected = (theirs - stored[0]) / (stored[1] - stored[0]) * 255
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":
        expected = 255 - expected
    assert np.abs(shown - expected).max() <= 0.51 and len(np.unique(shown)) > 40


def test_dicom_that_cannot_be_shown_faithfully_is_refused() -> None:
    with pytest.raises(Undecodable, match="DICOM of RGB"):
        decode(as_dicom(TWELVE, PhotometricInterpretation="RGB"))
    with pytest.raises(Undecodable, match="DICOM of 2 frames"):
        decode(as_dicom(TWELVE, NumberOfFrames=2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(np.zeros((3, 8, 8), np.uint16), photometric="minisblack", planarconfig="separate"), "channels, but only 1 can be shown"),
        (tiff(np.where(GREY > 0.5, np.nan, GREY)), "samples are not numbers"),
        (tiff(TWELVE)[:-2000], "truncated"),
        (png16(SIXTEEN)[:-2000], "truncated"),
        (tiff(np.zeros((8, 8), np.complex64)), "samples of type complex64"),
        (b"", "not a supported picture format"),
    ],
)
def test_what_cannot_be_decoded_faithfully_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        to_picture(decode(content))


@pytest.mark.parametrize(
    ("low", "high", "samples", "expected"),
    [
        (12, 1000, "integer", (0, 1023)),
        (0, 4090, "integer", (0, 4095)),
        (3, 12_000, "integer", (0, 16383)),
        (0, 60_000, "integer", (0, 65535)),
        (0, 1.9e9, "integer", (0, 2**31 - 1)),
        (-1024, 3071, "integer", (-1024, 3071)),
        (0.1, 0.9, "float", (0, 1)),
        (-0.004, 1.005, "float", (0, 1)),
        (0, 250.0, "float", (0, 255)),
        (0, 4000.5, "float", (0, 4095)),
        (-3.0, 2.0, "float", (-3, 2)),
        (0, 1.6, "float", (0, 1.6)),
        (0, 100_000.0, "float", (0, 100_000)),
        (0, 100_000, "integer", (0, 100_000)),
        (0, 2**31, "integer", (0, 2**32 - 1)),
    ],
)
def test_a_range_is_chosen_by_the_bits_that_are_used(low: float, high: float, samples: Any, expected: tuple[float, float]) -> None:
    chosen = choose_range([Extent(samples, low, (low + high) / 2), Extent(samples, low, high)])
    assert chosen.of(samples) == expected and chosen.of("float" if samples == "integer" else "integer") is None


def test_a_query_does_not_change_its_own_scale() -> None:
    """A bright query of a 10-bit camera is read as the prompts are, and one of another scale is refused, not read as white."""
    ten = np.rint(GREY * 1023).astype(np.uint16)
    intensity = choose_range([extent_of(decode(tiff(ten)))])
    assert intensity.integer == (0, 1023)
    brighter = ten.copy()
    brighter[:5, :5] = 1500
    shown, changed = (to_picture(decode(tiff(one)), intensity) for one in (ten, brighter))
    assert (changed[:5, :5] == 255).all() and (changed[5:] == shown[5:]).all()
    with pytest.raises(Undecodable, match="lie outside the intensity range 0 to 1023"):
        to_picture(decode(tiff(np.rint(GREY * 65535).astype(np.uint16))), intensity)
    with pytest.raises(Undecodable, match="outside the intensity range 0 to 1"):
        to_picture(decode(tiff((GREY * 65535).astype(np.float32))), FULL)


def test_a_range_that_no_normal_picture_tells_is_not_guessed() -> None:
    """12 bits in a file of 16 would be read as nearly black where the prompts have 8 bits."""
    for content, white in ((tiff(TWELVE), 65535), (tiff((GREY * 0.2).astype(np.float32)), 1)):
        decoded = decode(content)
        with pytest.raises(Undecodable, match=rf"its samples end at .* of {white}, and no normal picture has samples of this type"):
            to_picture(decoded, UNKNOWN)
        assert to_picture(decoded, FULL).max() < 60
    assert (
        to_picture(decode(tiff(SIXTEEN, photometric="rgb")), UNKNOWN) == to_picture(decode(tiff(SIXTEEN, photometric="rgb")), FULL)
    ).all()


@pytest.mark.parametrize("seed", range(8))
def test_jpeg_of_the_highest_quality_adds_nothing_to_a_mask(seed: int) -> None:
    """There a few values next to black are all that JPEG changes: they are no labels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((128, 128), bool)
    for row, column, height, width in zip(*rng.integers(0, 110, (2, 3)), *rng.integers(2, 18, (2, 3)), strict=True):
        mask[row : row + height, column : column + width] = True
    marks, _note = marks_of(decode(by_pillow(Image.fromarray(mask.astype(np.uint8) * 255), "JPEG", quality=100)))
    assert (marks == mask).all()


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95])
def test_a_mask_that_was_saved_as_jpeg_marks_what_was_marked(quality: int, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:200, :200]
    mask = (rows - 90) ** 2 + (columns - 110) ** 2 < 30**2
    mask[20:23, 10:180] = True
    file = tmp_path / "mask.png"
    Image.open(io.BytesIO(by_pillow(Image.fromarray(mask.astype(np.uint8) * 255), "JPEG", quality=quality))).save(file)
    marks, note = marks_of(decode(file.read_bytes()))
    wrong = (marks != mask).sum() / mask.sum()
    grown = (np.asarray(Image.open(file)) > 0).sum() / mask.sum() - 1
    assert "blurred" in note and wrong < 0.02 < grown
    values, palette = read_objects(file)
    assert not palette and set(np.unique(values)) == {False, True}


def labels(*values: int) -> np.ndarray:
    mask = np.zeros((40, 40), np.uint8)
    for number, value in enumerate(values):
        mask[number % 40, : 5 + number // 40] = value
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        labels(1),
        labels(255),
        labels(254, 255),
        labels(1, 15, 255),
        labels(*range(1, 6)),
        labels(*range(1, 41)),
        labels(10, 60, 110, 160, 210),
        labels(*range(1, 18), 19),
        labels(*range(10, 241, 10)),
    ],
    ids=["1", "255", "254 and 255", "with a border", "1 to 5", "1 to 40", "greys", "with a gap", "many greys"],
)
def test_labels_are_marks_whatever_their_values(mask: np.ndarray, tmp_path: Path) -> None:
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0, 0, 0, *np.random.default_rng(0).integers(1, 255, 255 * 3).tolist()])
    for content in (
        by_pillow(Image.fromarray(mask), "PNG"),
        by_pillow(palette, "PNG"),
        tiff(mask.astype(np.uint16)),
        tiff(mask.astype(np.float32)),
    ):
        marks, note = marks_of(decode(content))
        assert (marks == (mask > 0)).all() and not note


def test_a_mask_drawn_on_a_transparent_ground_marks_what_is_drawn() -> None:
    drawn = np.full((20, 20, 4), 255, np.uint8)
    drawn[..., 3] = 0
    drawn[4:9, 5:12, 3] = 255
    marks, _note = marks_of(decode(by_pillow(Image.fromarray(drawn), "PNG")))
    assert marks.sum() == 35 and marks[4:9, 5:12].all()


@pytest.mark.parametrize(("shape", "side"), [((1024, 1024), 256), ((1000, 700), 256), ((5000, 200), 256), ((90, 64), 256), ((7, 300), 64)])
def test_no_region_vanishes_when_a_mask_is_reduced(shape: tuple[int, int], side: int) -> None:
    """By a loop over cells: a cell is marked where any pixel that it covers is."""
    random = np.random.default_rng(0)
    mask = random.random(shape) < 0.0004
    mask[shape[0] // 2, :] |= random.random(shape[1]) < 0.5
    found = reduced(mask, side)
    for row in range(0, side, 7):
        for column in range(0, side, 5):
            spans = []
            for place, length in ((row, shape[0]), (column, shape[1])):
                if length <= side:
                    nearest = int((place + 0.5) * length / side)
                    spans.append(slice(nearest, nearest + 1))
                else:
                    spans.append(slice(int(np.floor(place * length / side)), int(np.ceil((place + 1) * length / side))))
            assert found[row, column] == mask[spans[0], spans[1]].any(), (row, column)
    scratch = np.zeros(shape, bool)
    scratch[shape[0] // 3, : shape[1] // 2] = True
    assert reduced(scratch, side).any()


def test_a_reduced_mask_is_that_of_opencvs_area(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((640, 512)) < 0.001
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    theirs = cv2.resize(mask.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA) > 0
    assert (read_mask(tmp_path / "mask.png", 128) == theirs).all()


READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "CMYK": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
    "P": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
}


@pytest.mark.parametrize("mode", READERS)
def test_other_modes_are_converted_as_pillow_converts(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.tif"
    Image.fromarray(EIGHT).convert(mode).save(file)
    assert (read_file(file) == READERS[mode](file.read_bytes())).all()


@pytest.mark.parametrize(("height", "message"), [(9000, ""), (10_000, ""), (10_001, "more than 100,000,000")])
def test_the_largest_picture_has_the_stated_number_of_pixels(height: int, message: str) -> None:
    """Also where warnings are errors, in threads: Pillow warns from 89,478,485 pixels on."""
    program = f"""
import io, warnings
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from changepair.tasks.common.decoding import Undecodable, decode, open_image
stream = io.BytesIO()
Image.new("1", (10_000, {height})).save(stream, "BMP")
warnings.simplefilter("error")
try:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _number: open_image(io.BytesIO(stream.getvalue())), range(200)))
except Image.DecompressionBombWarning:
    print("warned")
try:
    print(decode(stream.getvalue()).samples.shape)
except Undecodable as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    warned, said = "warned" in result.stdout, result.stdout.splitlines()[-1]
    assert (message in said and warned) if message else (said == f"({height}, 10000, 3)" and not warned)
