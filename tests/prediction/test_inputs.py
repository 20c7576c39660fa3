"""What users name: pictures in every form, files, models; and what is refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from changepair.tasks.common.decoding import MAX_PIXELS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.prediction.files import files_of, names_of
from changepair.tasks.prediction.pictures import as_picture
from changepair.tasks.prediction.predictor import Predictor


def bomb() -> bytes:
    """A PNG whose head says 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(skimage.data.brick()[:64, :64]).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "not a supported picture format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a supported picture format"),
        (encoded("PNG")[:900], "truncated or not an image"),
        (encoded("JPEG")[:700], "truncated or not an image"),
        (encoded("GIF"), "not a supported picture format"),
        (bomb(), f"more than {MAX_PIXELS:,}"),
        ("missing.png", "missing.png: no such file"),
        (np.zeros((4, 4, 4), np.uint8), "invalid shape"),
        (np.zeros((0, 4), np.uint8), "invalid shape"),
        (np.full((4, 4), np.nan), "invalid values of type float64; give finite floats"),
        (np.full((4, 4), 2.0), "outside the intensity range 0 to 1"),
        (np.full((4, 4), -1), "outside the intensity range"),
        (np.full((4, 4), "a"), "of type <U1"),
        (7, "int is not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(given: object, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        as_picture(given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_are_found_by_name_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.tiff", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in files_of([str(tmp_path)])] == ["a.JPG", "b.png", "c.tiff"]
    assert [file.name for file in files_of([str(tmp_path / "*.png"), str(tmp_path / "b.png"), str(tmp_path / "notes.txt")])] == [
        "b.png",
        "notes.txt",
    ]
    for name, message in ((tmp_path / "no.png", "no such file"), (tmp_path / "*.gif", "nothing matches")):
        with pytest.raises(BadInput, match=message):
            files_of([str(name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="a folder without a picture"):
        files_of([str(tmp_path / "empty")])


def test_what_is_written_of_two_pictures_of_one_name_is_two_files() -> None:
    names = list(names_of([Path("a/x.png"), Path("a/x.jpg"), Path("b/x.png")]))
    assert [str(name) for name in names] == ["a/x_png", "a/x_jpg", "b/x_png"]


def test_models_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for model, message in (
        ("none-such", "neither a folder nor a detector that is ready"),
        (tmp_path / "folder", "is neither a model folder nor a kit"),
    ):
        with pytest.raises(BadInput, match=message):
            Predictor.load(model)
    with pytest.raises(BadInput, match=r"inctrl'?: is neither a folder"):
        Predictor.load("inctrl")  # it has to be trained
    with pytest.raises(BadInput, match="no prompt: robust-residual needs at least one"):
        Predictor.load()([skimage.data.brick()])
    with pytest.raises(BadInput, match="no prompt"):
        Predictor.load().prompt([])
