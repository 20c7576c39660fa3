"""Folders of normal and of abnormal pictures, by names that are stated or usual, wherever their masks lie."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_places, save

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.rows import read_rows
from changepair.tasks.common.texts import csv_rows
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.manifest import PictureRow

MARKED = {"scratch": (0, 4), "dent": (8, 20)}
"""Rows that the masks of each defect mark."""


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """ok/, and nok/ with two kinds of defects; pictures of both kinds have the same names."""
    rng = np.random.default_rng(0)
    for folder in ("ok", "nok/scratch", "nok/dent"):
        for number in range(4):
            save(rng.integers(0, 256, (32, 32, 3), np.uint8), tmp_path / f"parts/{folder}/{number}.png")
    return tmp_path / "parts"


def add_masks(folder: Path) -> None:
    for defect, (first, last) in MARKED.items():
        mask = np.zeros((32, 32), np.uint8)
        mask[first:last] = 255
        for number in range(4):
            save(mask, folder / defect / f"{number}.png")


def read(parts: Path, normal: tuple[str, ...] = (), abnormal: tuple[str, ...] = (), masks: str | None = None) -> list[PictureRow]:
    places = make_places(parts.parent / "manifests")
    ingest_folder("parts", parts, normal=normal, abnormal=abnormal, masks=masks, places=places)
    return read_rows(places.manifests / "parts.parquet", PictureRow, "")


@pytest.mark.parametrize("abnormal", [("nok",), ("nok/scratch", "nok/dent"), ("nok", "nok/dent")])
@pytest.mark.parametrize("masks", ["masks", "nok/masks"])
def test_each_defect_has_its_own_masks(parts: Path, abnormal: tuple[str, ...], masks: str) -> None:
    add_masks(parts / masks)
    rows = [row for row in read(parts, ("ok",), abnormal, masks) if row.label]
    assert Counter(row.defect for row in rows) == {"scratch": 4, "dent": 4}
    assert all(row.mask == (parts / masks / row.defect / Path(row.image).name).as_posix() for row in rows)


@pytest.mark.parametrize("abnormal", [("nok",), ("nok/scratch", "nok/dent")])
def test_a_mask_that_two_pictures_would_have_is_given_to_neither(parts: Path, abnormal: tuple[str, ...]) -> None:
    """Pictures of both kinds have the same names but for one, and the masks lie in one folder."""
    for name in ("0.png", "1_mask.png", "only.png"):
        save(np.eye(32, dtype=np.uint8) * 255, parts / "masks" / name)
    (parts / "nok/dent/3.png").rename(parts / "nok/dent/only.png")
    [row] = [row for row in read(parts, ("ok",), abnormal, "masks") if row.label]
    assert Path(row.image).name == "only.png" and Path(str(row.mask)).name == "only.png"
    left_out = dict(
        (row["file"], row["reason"]) for _line, row in csv_rows(make_places(parts.parent / "manifests").manifests / "parts.rejected.csv")
    )
    for kind, other in (("dent", "scratch"), ("scratch", "dent")):
        for name, mask in (("0.png", "0.png"), ("1.png", "1_mask.png")):
            assert f"its mask would be {mask}, and so would that of {other}/{name}" in left_out[f"nok/{kind}/{name}"]
        assert "its mask would be" not in left_out[f"nok/{kind}/2.png"]


def test_a_mask_that_pictures_of_two_formats_would_have_is_given_to_neither(layout: Path) -> None:
    """In MVTec AD's layout 0.png and 0.bmp both have 0_mask.png."""
    test = layout / "bricks/test/hole"
    save(np.full((96, 96, 3), 9, np.uint8), test / "0.bmp")
    places = make_places(layout.parent / "manifests")
    ingest_folder("parts", layout, places=places)
    rows = read_rows(places.manifests / "parts.parquet", PictureRow, "")
    assert [Path(row.image).name for row in rows if row.category == "bricks" and row.label] == ["1.png"]


def test_masks_among_abnormal_pictures_are_no_defect(parts: Path) -> None:
    for number in range(4):
        save(np.eye(32, dtype=np.uint8) * 255, parts / f"nok/masks/{number}.png")
    assert {row.defect for row in read(parts)} == {"good", "scratch", "dent"}
    [left_out] = csv_rows(make_places(parts.parent / "manifests").manifests / "parts.rejected.csv")
    assert left_out[1]["file"] == "nok/masks" and "set masks: of the dataset to it" in left_out[1]["reason"]


@pytest.mark.parametrize(("normal", "abnormal"), [(("ok", "ok/"), ("nok",)), (("ok",), ("ok",)), (("ok",), ("nok", "nok"))])
def test_a_folder_that_is_named_twice_is_refused(parts: Path, normal: tuple[str, ...], abnormal: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="occurs twice in normal, abnormal and masks; name it once"):
        read(parts, normal, abnormal)


@pytest.mark.parametrize("name", ["/etc", "../elsewhere", "ok/../../elsewhere"])
def test_a_folder_outside_of_the_dataset_is_refused(parts: Path, name: str) -> None:
    (parts.parent / "elsewhere").mkdir()
    with pytest.raises(BadInput, match=r"is not in .*parts; normal, abnormal and masks must be inside it"):
        read(parts, ("ok",), (name,))
