"""Pictures and masks as a disk, a network or an enemy leaves them: used as a viewer shows them, or left out with the reason."""

from __future__ import annotations

import io
import random
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from hostile import attack, damaged
from PIL import Image, ImageOps, PngImagePlugin

from changepair.tasks.common.decoding import FORMATS, FULL, Undecodable, choose_range
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import read_marks, read_mask, read_picture
from changepair.tasks.ingestion.check import check, look_at
from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture
from changepair.tasks.prediction.pictures import as_picture

pytestmark = pytest.mark.attack
PHOTO = Image.fromarray(skimage.data.astronaut()[::8, ::8])
MODES = ("RGB", "L", "P", "RGBA", "LA", "I;16", "1", "CMYK", "I", "F")


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the test where a decoder starts one."""

    def refuse(*arguments: Any, **_named: Any) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    for name in ("Popen", "run", "check_call", "check_output", "call"):
        monkeypatch.setattr(subprocess, name, refuse)


def encoded(draw: random.Random) -> bytes:
    """A picture of any mode, in any format that can hold it, with any EXIF turn."""
    stream = io.BytesIO()
    mode = draw.choice(MODES)
    image = PHOTO.convert("L").convert("I;16") if mode == "I;16" else PHOTO.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(0, 12)
    try:
        image.save(stream, draw.choice(("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")), exif=exif)
    except (OSError, ValueError, KeyError):
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "PNG", exif=exif)
    return stream.getvalue()


def checked(data: bytes, folder: Path, suffix: str = ".png") -> None:
    """Reads it as ingestion does, and again as every stage after it, and as prediction does."""
    file = folder / f"x{suffix}"
    file.write_bytes(data)
    facts = check(ListedPicture(file, "c", "train", "good"), DatasetFolder("x", folder, folder / "written"))
    assert not facts.passing and "\n" not in facts.fault
    try:
        given: Any = as_picture(data)
    except BadInput as error:
        given = error
    if facts.fault:
        raise BadInput(facts.fault)
    try:
        shown = read_picture(file, intensity=FULL if facts.extent is None else choose_range([facts.extent]))
    except Undecodable as error:  # samples that are all the same, or not of the range
        raise BadInput(str(error)) from error
    assert shown.shape == (facts.height, facts.width, 3)
    assert isinstance(given, BadInput) or given.shape == (facts.height, facts.width, 3)
    assert read_marks(file).shape == (facts.height, facts.width) and read_mask(file, 32).shape == (32, 32)


def test_pictures_that_are_damaged(tmp_path: Path) -> None:
    attack("pictures, damaged", lambda draw: damaged(encoded(draw), draw), lambda data: checked(data, tmp_path))


def test_pictures_of_every_mode_and_turn(tmp_path: Path) -> None:
    attack("pictures, whole", encoded, lambda data: checked(data, tmp_path))


def test_what_is_no_picture_under_a_pictures_name(tmp_path: Path) -> None:
    others = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(%pipe%touch /tmp/x) (w) file\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4\n", b"\x80\x04cos\nsystem\n", b"\x1f\x8b\x08\0", b"PK\x03\x04", b"#!/bin/sh\n",
        b"#define x_width 8\n#define x_height 8\n",
        b"\0\0\1\0\1\0", b"icns\0\0\0\x10", b"SIMPLE  =                    T", b"\x89HDF\r\n\x1a\n", b"GIF89a\1\0\1\0\0\0\0;", b"8BPS\0\1",
    ]  # fmt: skip

    def draw(random_: random.Random) -> bytes:
        return damaged(random_.choice(others) + random_.randbytes(random_.choice((0, 10, 1000))), random_)

    attack("pictures, of another kind", draw, lambda data: checked(data, tmp_path))
    with pytest.raises(BadInput, match=", ".join(FORMATS)):
        checked(others[0], tmp_path)


def test_text_that_unpacks_to_more_than_the_picture_is_refused(tmp_path: Path) -> None:
    about, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    about.add(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 100_000_000))
    PHOTO.save(stream, "PNG", pnginfo=about)
    with pytest.raises(BadInput):
        checked(stream.getvalue(), tmp_path)


def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    """By EXIF: the mask that a tool writes beside a photograph of a phone has the photograph's turn."""

    def draw(random_: random.Random) -> tuple[int, int]:
        return random_.randrange(1, 9), random_.randrange(1, 9)

    def attempt(turns: tuple[int, int]) -> None:
        shown = np.zeros((20, 30), np.uint8)
        shown[2:6, 3:15] = 255
        files = tmp_path / "picture.png", tmp_path / "mask.png"
        for file, turn in zip(files, turns, strict=True):
            exif = Image.Exif()
            exif[0x0112] = turn
            stored = _stored(shown, turn)
            stored.save(file, exif=exif)
            with Image.open(file) as image:
                assert (np.asarray(ImageOps.exif_transpose(image)) == shown).all()
        source = DatasetFolder("x", tmp_path, tmp_path / "written")
        [facts] = look_at([ListedPicture(files[0], "c", "test", "hole", (files[1],))], source, 1)
        assert not facts.fault and (facts.height, facts.width) == shown.shape
        assert (read_marks(files[1]) == (shown > 0)).all() and (read_picture(files[0])[..., 0] == shown).all()

    attack("masks, turned by EXIF", draw, attempt)


def _stored(shown: np.ndarray, turn: int) -> Image.Image:
    """The pixels that are shown as `shown` once they are turned by an orientation of EXIF."""
    methods = Image.Transpose
    undo = {
        2: methods.FLIP_LEFT_RIGHT,
        3: methods.ROTATE_180,
        4: methods.FLIP_TOP_BOTTOM,
        5: methods.TRANSPOSE,
        6: methods.ROTATE_90,
        7: methods.TRANSVERSE,
        8: methods.ROTATE_270,
    }
    image = Image.fromarray(shown)
    return image.transpose(undo[turn]) if turn in undo else image
