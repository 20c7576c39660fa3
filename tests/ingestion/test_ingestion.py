"""Ingestion: pictures in, a manifest and a list of rejected files out; a stranger's mistakes are survived."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
from conftest import ROOT, make_layout, make_places, save
from PIL import Image

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput, in_general
from changepair.tasks.common.files import made_anew, sha256, write_text
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.stopping import Stopped
from changepair.tasks.ingestion import texture_defects
from changepair.tasks.ingestion.check import Facts, perceptual_hash
from changepair.tasks.ingestion.ingest import LookHere, ingest_folder, ingest_packaged
from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture
from changepair.tasks.ingestion.packaged import PACKAGED


def ingest(folder: Path, workers: int = 2, layout: str = "folder") -> list[dict]:
    ingest_folder("parts", folder, layout=layout, licence="own", places=make_places(folder.parent / "manifests"), look=LookHere(workers))
    return pq.read_table(folder.parent / "manifests" / "parts.parquet").to_pylist()


def rejected(folder: Path) -> dict[str, str]:
    with (folder.parent / "manifests" / "parts.rejected.csv").open(encoding="utf-8") as stream:
        return {row["file"]: row["reason"] for row in csv.DictReader(stream)}


def test_every_picture_has_a_row(layout: Path) -> None:
    rows = ingest(layout)
    assert len(rows) == 16 and not rejected(layout)
    hole = next(row for row in rows if row["image"].endswith("stones/test/hole/1.png"))
    assert hole == {
        "image": (layout / "stones/test/hole/1.png").as_posix(),
        "sha256": sha256(layout / "stones/test/hole/1.png"),
        "phash": perceptual_hash(Image.open(layout / "stones/test/hole/1.png")),
        "height": 96,
        "width": 96,
        "dataset": "parts",
        "category": "stones",
        "split": "test",
        "label": 1,
        "defect": "hole",
        "mask": (layout / "stones/ground_truth/hole/1_mask.png").as_posix(),
        "mask_sha256": sha256(layout / "stones/ground_truth/hole/1_mask.png"),
        "licence": "own",
        "samples": None,
        "low": None,
        "high": None,
    }
    good = next(row for row in rows if "/train/good/" in row["image"])
    assert (good["split"], good["label"], good["defect"], good["mask"]) == ("train", 0, "good", None)


def test_a_dataset_may_have_no_category_level(layout: Path) -> None:
    rows = ingest(layout / "bricks")
    assert {row["category"] for row in rows} == {"parts"} and len(rows) == 8


def test_a_folder_of_photographs_is_all_normal(layout: Path) -> None:
    rows = ingest(layout / "bricks" / "train" / "good", layout="photographs")
    assert {(row["split"], row["label"]) for row in rows} == {("train", 0)} and len(rows) == 4


@pytest.mark.parametrize("level", ["images", ""])
def test_a_folder_of_folders_of_photographs_too_as_the_describable_textures_are(tmp_path: Path, level: str) -> None:
    for number, name in enumerate(("banded", "woven")):
        save(skimage.data.brick()[90 * number :][:64, :64], tmp_path / "dtd" / level / name / f"{name}_0001.jpg")
    (tmp_path / "dtd" / "labels").mkdir()
    (tmp_path / "dtd" / "labels" / "train1.txt").write_text("banded/banded_0001.jpg\n")
    ingest_folder("dtd", tmp_path / "dtd", layout="dtd", licence="own", places=make_places(tmp_path / "manifests"))
    rows = pq.read_table(tmp_path / "manifests" / "dtd.parquet").to_pylist()
    assert [Path(row["image"]).name for row in rows] == ["banded_0001.jpg", "woven_0001.jpg"]
    assert {(row["category"], row["split"], row["label"]) for row in rows} == {("dtd", "train", 0)}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_manifest_has_the_same_bytes_with_any_number_of_workers(layout: Path, workers: int) -> None:
    ingest(layout, workers=workers)
    first = sha256(layout.parent / "manifests" / "parts.parquet")
    ingest(layout, workers=3 - workers)
    assert sha256(layout.parent / "manifests" / "parts.parquet") == first


def bomb(file: Path) -> None:
    """A PNG of a few hundred bytes whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def test_bad_files_are_left_out_each_with_its_reason(layout: Path) -> None:
    good, hole, truth = layout / "bricks/train/good", layout / "bricks/test/hole", layout / "bricks/ground_truth/hole"
    whole = (good / "0.png").read_bytes()
    (good / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (good / "empty.png").touch()
    (good / "text.png").write_text("not a picture")
    (good / "notes.txt").write_text("not a picture")
    bomb(good / "bomb.png")
    (Path(os.fsdecode(os.fsencode(good) + b"/\xff\xfe.png"))).write_bytes(whole)
    save(np.zeros((96, 96), dtype=np.uint8), hole / "unmasked.png")
    Image.open(hole / "0.png").rotate(1).save(hole / "small.png")
    save(np.full((40, 40), 255, dtype=np.uint8), truth / "small_mask.png")
    Image.open(hole / "0.png").rotate(2).save(hole / "blank.png")
    save(np.zeros((96, 96), dtype=np.uint8), truth / "blank_mask.png")
    save(np.full((96, 96), 255, dtype=np.uint8), truth / "gone_mask.png")

    rows = ingest(layout)
    reasons = rejected(layout)
    assert len(rows) == 16  # the good files, all of them, and no other
    expected = {
        "bricks/train/good/truncated.png": "truncated",
        "bricks/train/good/empty.png": "the file is empty",
        "bricks/train/good/text.png": "not a supported picture format",
        "bricks/train/good/notes.txt": "not a picture by its suffix, '.txt'",
        "bricks/train/good/bomb.png": "decompression bomb",
        "bricks/train/good/\\xff\\xfe.png": "name is not readable",
        "bricks/test/hole/unmasked.png": "mask hole/unmasked_mask.png is missing",
        "bricks/test/hole/small.png": "mask small_mask.png is 40x40 pixels, but the picture 96x96",
        "bricks/test/hole/blank.png": "mask blank_mask.png marks nothing",
        "bricks/ground_truth/hole/gone_mask.png": "a mask without a picture",
    }
    assert reasons.keys() == expected.keys()
    for file, reason in expected.items():
        assert reason in reasons[file], file
    listed = layout.parent / "manifests" / "parts.rejected.csv"
    before = listed.read_bytes()
    ingest(layout)
    assert listed.read_bytes() == before  # no reason names what differs from run to run


def test_what_lies_where_no_picture_is_read_is_listed(layout: Path) -> None:
    """Folders and pictures that a layout does not read are the ones that their owner misses."""
    places = {  # of a picture, what is listed of it, and why
        "pipes/test/good/0.png": ("pipes", "a category without train/good"),
        "loose.png": ("loose.png", "outside all categories"),
        "bricks/0.png": ("bricks/0.png", "outside train and test"),
        "bricks/train/0.png": ("bricks/train/0.png", "outside its folder good"),
        "bricks/train/bad/0.png": ("bricks/train/bad", "only normal pictures are trained on"),
        "bricks/train/good/more/0.png": ("bricks/train/good/more", "its contents are not read"),
        "bricks/test/0.png": ("bricks/test/0.png", "outside a defect's folder"),
        "bricks/test/hole/more/0.png": ("bricks/test/hole/more", "its contents are not read"),
    }
    crop = np.asarray(Image.open(layout / "bricks/train/good/0.png"))
    for place in places:
        save(crop, layout / place)
    assert len(ingest(layout)) == 16
    found = rejected(layout)
    assert found.keys() == {listed for listed, _reason in places.values()}
    for listed, reason in places.values():
        assert reason in found[listed], listed


def test_a_snapshot_holds_what_the_dataset_held(layout: Path, tmp_path: Path) -> None:
    (layout / "bricks/train/good/broken.png").write_bytes(b"no picture")
    (layout / "bricks/ground_truth/hole/1_mask.png").unlink()
    (layout / "stones/train/good/0.png").unlink()
    (layout / "stones/train/good/0.png").symlink_to(save(np.zeros((96, 96), dtype=np.uint8), tmp_path / "elsewhere.png"))
    read = ingest(layout)
    left_out = rejected(layout)
    ingest_folder("parts", layout, licence="own", snapshot=True, places=make_places(layout.parent / "manifests"))
    rows = pq.read_table(layout.parent / "manifests" / "parts.parquet").to_pylist()
    assert rejected(layout) == left_out and len(left_out) == 3
    shutil.rmtree(layout)  # it is not needed any more
    own = ("image", "mask")
    assert [{key: value for key, value in row.items() if key not in own} for row in rows] == [
        {key: value for key, value in row.items() if key not in own} for row in read
    ]
    for row, before in zip(rows, read, strict=True):
        assert sha256(Path(row["image"])) == row["sha256"] and row["image"].endswith(before["image"].removeprefix(layout.as_posix()))
        assert (row["mask"] is None) == (before["mask"] is None) and (row["mask"] is None or Path(row["mask"]).is_file())


def test_masks_that_may_be_inverted_are_suspected(layout: Path) -> None:
    for file in (layout / "bricks/ground_truth/hole").glob("*.png"):
        save(255 - np.asarray(Image.open(file)), file)
    places = make_places(layout.parent / "manifests")
    for _time in ("read", "known"):
        notes = ingest_folder("parts", layout, licence="own", places=places).notes
        assert [count for note, count in notes.items() if "may be inverted" in note] == [2]


def test_a_file_is_no_folder(layout: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.png is a file; set datasets\.folders\.parts\.path to the folder of the pictures"):
        ingest(layout / "bricks/train/good/0.png")


def test_a_category_with_nothing_left_is_an_error_that_points_at_the_reasons(layout: Path) -> None:
    for file in (layout / "stones").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match=r"parts: no usable picture in category 'stones'; .*parts\.rejected\.csv"):
        ingest(layout)
    assert "empty" in rejected(layout)["stones/train/good/0.png"]
    assert not (layout.parent / "manifests" / "parts.parquet").exists()


def test_a_missing_or_unknown_layout_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"parts: no folder .*; correct datasets\.folders\.parts\.path"):
        ingest(tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    with pytest.raises(BadInput, match="has neither train/good"):
        ingest(tmp_path / "odd")


def test_a_failed_ingest_leaves_the_manifest_that_stood_there(layout: Path) -> None:
    ingest(layout)
    before = sha256(layout.parent / "manifests" / "parts.parquet")
    for file in (layout / "stones").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(BadInput):
        ingest(layout)
    assert sha256(layout.parent / "manifests" / "parts.parquet") == before


@pytest.mark.parametrize("dataset", ["sample-photos", "texture-defects", "development-textures", "development-letters", "digits"])
def test_packaged_datasets_are_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    sums = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        monkeypatch.chdir(tmp_path / attempt)  # a manifest names pictures from the project's root
        ingested = ingest_packaged(dataset, places=make_places(Path("manifests")), look=LookHere(len(sums) + 1))
        assert ingested.rejected == 0
        sums.append(sha256(Path("manifests") / f"{dataset}.parquet"))
    assert sums[0] == sums[1]


def test_elpv_is_split_as_in_the_published_tables(tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset", reason="the extra `samples` is not installed")
    PACKAGED["elpv"].write(tmp_path)
    counts = {name: len(list((tmp_path / name).iterdir())) for name in ("train/good", "test/good", "test/defective")}
    assert counts == {"train/good": 1131, "test/good": 377, "test/defective": 715}


@pytest.mark.parametrize(
    ("dataset", "module", "message"),
    [
        ("elpv", "elpv_dataset", r"elpv: the package elpv-dataset is not installed; run pip install 'changepair\[samples\]'"),
        ("vision-toolbox", "mvtbdata", r"vision-toolbox: the package mvtb-data is not installed; run pip install 'changepair\[samples\]'"),
    ],
)
def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, module: str, message: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(BadInput, match=message):
        PACKAGED[dataset].write(tmp_path)


@pytest.mark.slow
def test_the_photographs_of_the_vision_toolbox_are_large_enough_and_no_two_are_one_view(tmp_path: Path) -> None:
    pytest.importorskip("mvtbdata", reason="the extra `samples` is not installed")
    PACKAGED["vision-toolbox"].write(tmp_path)
    files = sorted((tmp_path / "train" / "good").iterdir())
    assert len(files) == 70 and not {"lena", "monalisa", "penguins", "adelson", "wheres-wally"} & {file.stem for file in files}
    small = []
    for file in files:
        with Image.open(file) as opened:
            assert opened.mode == "RGB" and 200 <= min(opened.size) <= max(opened.size) <= 1024
            small.append(np.asarray(opened.convert("L").resize((24, 24), Image.Resampling.BOX), dtype=np.float64).ravel())
    alike = np.corrcoef(small) - np.eye(len(small))
    assert alike.max() < 0.97


@pytest.mark.parametrize("name", texture_defects.CATEGORIES)
def test_a_texture_defects_mask_is_exactly_where_the_picture_changed(name: str) -> None:
    category = texture_defects.CATEGORIES[name]
    for defect in category.defects:
        normal = category.texture(generator(7, defect), "test")
        changed, mask = texture_defects.defective(category, defect, generator(7, defect))
        assert np.abs(np.rint(changed) - np.rint(normal))[~mask].max() < texture_defects.VISIBLE
        assert mask.sum() >= texture_defects.SMALLEST


def test_pictures_are_converted_as_a_viewer_shows_them_and_said_once(layout: Path) -> None:
    good = layout / "bricks/train/good"
    pixels = np.asarray(Image.open(good / "0.png"))
    Image.fromarray(pixels).convert("RGB").quantize(16).save(good / "palette.png")
    Image.fromarray(pixels[:, ::-1].astype(np.uint16) * 257).save(good / "deep.png")
    Image.fromarray(pixels[::-1]).convert("CMYK").save(good / "print.jpg")
    turned = Image.fromarray(np.ascontiguousarray(pixels[:40]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(good / "turned.jpg", exif=exif, quality=100)
    Image.fromarray(pixels).save(good / "moving.webp", save_all=True, append_images=[Image.fromarray(pixels[::-1])], lossless=True)
    ghost = np.dstack([pixels, pixels, pixels, np.full_like(pixels, 0)])
    Image.fromarray(ghost).save(good / "clear.png")
    ingested = ingest_folder("parts", layout, licence="own", places=make_places(layout.parent / "manifests"))
    assert ingested.notes == {
        "of more than 8 bits, scaled from 0 to 65535": 1,
        "CMYK, converted to RGB": 1,
        "animated (the first frame is used)": 1,
        "palette, converted to RGB": 1,
        "transparent, composited over white": 1,
        "rotated by EXIF orientation": 1,
    }
    rows = {Path(row["image"]).name: row for row in pq.read_table(layout.parent / "manifests" / "parts.parquet").to_pylist()}
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (40, 96)
    assert read_picture(good / "turned.jpg").shape == (96, 40, 3)
    assert np.abs(read_picture(good / "turned.jpg")[..., 0].astype(int) - np.rot90(pixels[:40], -1)).mean() < 6
    assert np.array_equal(read_picture(good / "deep.png")[..., 0], pixels[:, ::-1]) and read_picture(good / "clear.png").min() == 255
    assert np.array_equal(read_picture(good / "moving.webp")[..., 0], pixels)


def test_links_that_lead_out_are_refused_and_those_within_are_not(layout: Path, tmp_path: Path) -> None:
    secret = save(np.full((96, 96), 7, dtype=np.uint8), tmp_path / "secret" / "0.png")
    good = layout / "bricks/train/good"
    (good / "out.png").symlink_to(secret)
    (good / "in.png").symlink_to(layout / "stones/test/hole/0.png")
    (good / "in.png").unlink()
    (good / "in.png").symlink_to(good / "0.png")
    (layout / "linked").symlink_to(secret.parent)
    rows = ingest(layout)
    assert rejected(layout) == {
        "bricks/train/good/out.png": "a link to outside the dataset's folder",
        "linked": "a folder without train/good, next to categories: its pictures are not read",
    }
    assert sum(row["image"].endswith("in.png") for row in rows) == 1


def test_the_same_picture_with_other_labels_is_a_conflict(layout: Path) -> None:
    hole = layout / "bricks/test/hole/0.png"
    hole.write_bytes((layout / "bricks/train/good/0.png").read_bytes())
    (layout / "bricks/train/good/again.png").write_bytes((layout / "bricks/train/good/1.png").read_bytes())  # twice, but agreed on
    rows = ingest(layout)
    reasons = rejected(layout)
    assert set(reasons) == {"bricks/test/hole/0.png", "bricks/train/good/0.png"} and len(rows) == 15
    assert (
        "labelled anomalous, but" in reasons["bricks/test/hole/0.png"]
        and "has the same bytes and is labelled normal" in reasons["bricks/test/hole/0.png"]
    )


def test_files_that_have_not_changed_are_not_read_again(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import changepair.tasks.ingestion.check as check_module

    read: list[str] = []
    original = check_module.check

    def counting(listed: ListedPicture, source: DatasetFolder) -> Facts:
        read.append(listed.image.name)
        return original(listed, source)

    monkeypatch.setattr(check_module, "check", counting)
    first = ingest(layout)
    assert len(read) == 16
    read.clear()
    assert ingest(layout) == first and not read
    save(np.full((96, 96), 9, dtype=np.uint8), layout / "bricks/train/good/0.png")
    Image.open(layout / "stones/ground_truth/hole/0_mask.png").rotate(90).save(layout / "stones/ground_truth/hole/0_mask.png")
    ingest(layout)
    assert sorted(read) == ["0.png", "0.png"]
    (layout.parent / "checkpoints/ingest/parts.sqlite").write_bytes(b"damaged" * 100)
    read.clear()
    assert len(ingest(layout)) == 16 and len(read) == 16


def test_a_killed_ingest_goes_on_where_it_stopped(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import changepair.tasks.ingestion.check as check_module
    import changepair.tasks.ingestion.ingest as module

    monkeypatch.setattr(module, "PORTION", 4)
    read: list[str] = []
    original = check_module.check

    def dying(listed: ListedPicture, source: DatasetFolder) -> Facts:
        if len(read) == 10:
            raise KeyboardInterrupt
        read.append(listed.image.name)
        return original(listed, source)

    monkeypatch.setattr(check_module, "check", dying)
    with pytest.raises(KeyboardInterrupt):
        ingest(layout, workers=1)
    before = len(read)
    read.clear()
    monkeypatch.setattr(check_module, "check", lambda listed, source: (read.append(listed.image.name), original(listed, source))[1])
    assert len(ingest(layout)) == 16 and len(read) <= 16 - before // 4 * 4


def test_sigterm_ends_an_ingest_after_a_portion_that_is_not_read_again(layout: Path, monkeypatch: pytest.MonkeyPatch, polite: None) -> None:
    import changepair.tasks.ingestion.check as check_module
    import changepair.tasks.ingestion.ingest as module

    expected = ingest(layout)
    (layout.parent / "checkpoints/ingest/parts.sqlite").unlink()
    monkeypatch.setattr(module, "PORTION", 4)
    read: list[str] = []
    original = check_module.check

    def checking(listed: ListedPicture, source: DatasetFolder) -> Facts:
        read.append(listed.image.name)
        if len(read) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(listed, source)

    monkeypatch.setattr(check_module, "check", checking)
    with pytest.raises(Stopped, match=r"^ingest parts, 8 pictures read$"):
        ingest(layout, workers=1)
    assert len(read) == 8 and not list(layout.parent.rglob("*.partial"))
    assert pq.read_table(layout.parent / "manifests/parts.parquet").to_pylist() == expected
    monkeypatch.setattr(stopping, "_asked", threading.Event())
    assert ingest(layout) == expected and len(read) == 16


def test_the_perceptual_hash_sees_what_a_picture_shows_and_not_how_it_is_stored(layout: Path, tmp_path: Path) -> None:
    images = [Image.open(file) for file in sorted(layout.rglob("good/*.png"))]
    hashes = [int(perceptual_hash(image), 16) for image in images]
    for image, value in zip(images, hashes, strict=True):
        image.save(tmp_path / "copy.jpg", quality=90)
        assert (int(perceptual_hash(Image.open(tmp_path / "copy.jpg")), 16) ^ value).bit_count() <= 3
        assert (int(perceptual_hash(image.resize((192, 192))), 16) ^ value).bit_count() <= 4
    assert min((a ^ b).bit_count() for number, a in enumerate(hashes) for b in hashes[:number]) > 6


def test_reasons_are_counted_without_what_is_of_one_file() -> None:
    assert in_general("mask 30_mask.png is 90x96, the picture 96x96 (see a.png)") == "mask … is …, the picture … (see …)"
    assert in_general("defect probability 0.33 (mono) is neither") == "defect probability … (mono) is neither"


def test_a_dataset_where_ingestion_writes_is_refused_and_kept(tmp_path: Path) -> None:
    places = make_places(tmp_path / "data" / "manifests")
    folder = make_layout(places.pictures / "parts")
    files = {file: file.read_bytes() for file in folder.rglob("*.png")}
    link = tmp_path / "elsewhere"
    link.symlink_to(folder)
    for path in (folder, link, places.pictures, tmp_path / "data"):
        with pytest.raises(BadInput, match="lies where ingestion writes"):
            ingest_folder("parts", path, places=places)
    assert {file: file.read_bytes() for file in folder.rglob("*.png")} == files


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="is a folder; name a file"):
        write_text(tmp_path / "folder", "text")
    assert (tmp_path / "folder" / "mine.txt").read_text() == "mine"


HALF_WRITTEN = """
import os, sys
from pathlib import Path
from changepair.tasks.common.files import made_anew, written_beside
file, folder = written_beside(Path("file")), made_anew(Path("folder"))
file.__enter__().write_text("half")
folder.__enter__().joinpath("part").write_text("half")
"""


def test_what_a_killed_writer_left_is_taken_away_by_the_next_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    def written(script: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=PIPE, stdout=PIPE
        )

    def writers() -> set[str]:
        return {path.name.split(".")[-2] for path in tmp_path.glob(".*.partial")}

    with written(HALF_WRITTEN + "print(flush=True); sys.stdin.read()") as living:
        assert living.stdout is not None and living.stdout.readline()
        killed = written(HALF_WRITTEN + "os.kill(os.getpid(), 9)")
        killed.communicate()
        assert writers() == {str(living.pid), str(killed.pid)}
        written("from pathlib import Path; from changepair.tasks.common.files import write_text; write_text(Path('new'), '')").communicate()
        assert writers() == {str(living.pid)} and len(list(tmp_path.glob(".*.partial"))) == 2
        living.kill()
    assert (tmp_path / "new").is_file()


def test_what_the_disk_refuses_once_is_read_by_the_next_run(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, read = ingest(layout), Path.read_bytes
    (layout.parent / "checkpoints/ingest/parts.sqlite").unlink()

    def refused(path: Path) -> bytes:
        if path.name == "3.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        assert len(ingest(layout)) == len(expected) - 2
    with (layout.parent / "manifests/parts.rejected.csv").open(encoding="utf-8") as stream:
        assert [row["reason"] for row in csv.DictReader(stream)] == ["cannot be read (Input/output error)"] * 2
    assert ingest(layout) == expected


def test_a_folder_made_anew_takes_a_links_place_and_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.txt").write_text("mine")
    (tmp_path / "made").symlink_to(tmp_path / "theirs")
    with made_anew(tmp_path / "made") as folder:
        (folder / "new.txt").write_text("new")
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["new.txt"] and (tmp_path / "theirs" / "mine.txt").is_file()


@pytest.mark.parametrize("level", ["", "images"])
def test_of_photographs_too_what_is_not_read_is_listed(tmp_path: Path, level: str) -> None:
    """Folders deeper than pictures are looked for, and those beside that hold none themselves."""
    photos = tmp_path / "photos" / level
    for number, place in enumerate(("cats", "cats/old", "dogs/old/older")):
        save(np.full((40, 40), 50 * number, dtype=np.uint8), photos / place / "0.png")
    ingest_folder("photos", tmp_path / "photos", layout="photographs", places=make_places(tmp_path / "manifests"))
    with (tmp_path / "manifests/photos.rejected.csv").open(newline="") as stream:
        reasons = {Path(row["file"]).relative_to(level): row["reason"] for row in csv.DictReader(stream)}
    assert reasons.keys() == {Path("cats/old"), Path("dogs")}
    assert "move its pictures up" in reasons[Path("cats/old")] and "not read" in reasons[Path("dogs")]
