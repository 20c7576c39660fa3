"""Every dataset is read from its layout as distributed, here in miniature, with the oddities the real one has."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from conftest import ROOT, make_places, run, save
from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import place_of
from changepair.tasks.ingestion.ingest import Ingested, ingest_folder
from changepair.tasks.ingestion.readers.catalogue import LAYOUTS
from changepair.tasks.ingestion.settings import LayoutName

Row = dict[str, Any]
BRICK = skimage.data.brick()


class Dataset:
    """A miniature being laid out, each picture of it unlike every other, and what reading it gives."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.folder = folder / "data"
        self.folder.mkdir()
        self.layout = layout
        self.count = 0

    def picture(self, path: str, size: tuple[int, int] = (40, 32)) -> Path:
        """A crop of a real texture, width x height."""
        self.count += 1
        top = self.count * 3 % 300
        crop = np.resize(BRICK[top : top + size[1], self.count * 7 % 100 :], (size[1], size[0])).copy()
        crop[0, 0] = self.count
        return save(crop, self.folder / path)

    def mask(self, path: str, size: tuple[int, int] = (40, 32), box: tuple[int, int, int, int] | None = (4, 4, 12, 10)) -> Path:
        mask = np.zeros((size[1], size[0]), dtype=np.uint8)
        if box is not None:
            mask[box[1] : box[3], box[0] : box[2]] = 255
        return save(mask, self.folder / path)

    def text(self, path: str, content: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(content)

    def read(self, at: str = "") -> list[Row]:
        self.ingested: Ingested = ingest_folder(
            "small", self.folder / at, layout=self.layout, places=make_places(self.folder.parent / "manifests")
        )
        rows = pq.read_table(self.folder.parent / "manifests" / "small.parquet").to_pylist()
        assert self.read_from_a_store(at) == rows
        return rows

    def read_from_a_store(self, at: str) -> list[Row]:
        """Reads the same files where fsspec has them, and gives the rows as if they lay here."""
        store = place_of("memory://small-dataset")
        try:
            for file in (path for path in self.folder.rglob("*") if path.is_file()):
                copy = store / file.relative_to(self.folder).as_posix()
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
            elsewhere = self.folder.parent / "of-a-store"  # what is cut out of pictures goes where it went
            assert self.ingested == ingest_folder("small", store / at, layout=self.layout, places=make_places(elsewhere))
            rows = pq.read_table(elsewhere / "small.parquet").to_pylist()
            return [row | {key: row[key] and row[key].replace(str(store), str(self.folder)) for key in ("image", "mask")} for row in rows]
        finally:
            store.fs.rm("/small-dataset", recursive=True)  # type: ignore[attr-defined]

    def rejected(self) -> dict[str, str]:
        with (self.folder.parent / "manifests" / "small.rejected.csv").open() as stream:
            return {row["file"]: row["reason"] for row in csv.DictReader(stream)}


@pytest.fixture
def lay_out(tmp_path: Path) -> Any:
    return lambda layout: Dataset(tmp_path, layout)


def counts(rows: list[Row]) -> Counter[tuple[str, str, str]]:
    return Counter((row["category"], row["split"], row["defect"]) for row in rows)


def masks_fit(rows: list[Row]) -> bool:
    """Tells whether every mask is of its picture's size and marks something."""
    for row in rows:
        if row["mask"] is not None:
            with Image.open(row["mask"]) as mask, Image.open(row["image"]) as image:
                if mask.size != image.size or not np.asarray(mask).any() or row["label"] != 1:
                    return False
    return True


@pytest.mark.parametrize(("layout", "normal", "mask"), [
    ("mvtec-ad", "good", "{}_mask.png"),
    ("mpdd", "good", "{}_mask.png"),
    ("dtd-synthetic", "good", "{}_mask.png"),
    ("goods-ad", "good", "{}.png"),
    ("btad", "ok", "{}.bmp"),
])  # fmt: skip
def test_those_that_copied_mvtec_ads_folders(lay_out: Any, layout: str, normal: str, mask: str) -> None:
    data = lay_out(layout)
    for number in range(3):
        data.picture(f"01/train/{normal}/{number:04}.png")
    data.picture(f"01/test/{normal}/0000.bmp")
    data.picture("01/test/ko/0000.jpg")
    data.mask(f"01/ground_truth/ko/{mask.format('0000')}")
    rows = data.read()
    assert counts(rows) == {("01", "train", "good"): 3, ("01", "test", "good"): 1, ("01", "test", "ko"): 1}
    assert masks_fit(rows) and sum(row["mask"] is not None for row in rows) == 1 and not data.rejected()
    assert rows[0]["licence"] == LAYOUTS[layout].licence


def test_loco_has_several_masks_a_picture_and_pictures_for_validation(lay_out: Any) -> None:
    data = lay_out("mvtec-loco")
    for split in ("train", "validation", "test"):
        data.picture(f"juice/{split}/good/000.png")
    for kind, boxes in (("logical_anomalies", [(0, 0, 5, 5), (20, 10, 30, 20)]), ("structural_anomalies", [(3, 3, 9, 9)])):
        data.picture(f"juice/test/{kind}/000.png")
        for number, box in enumerate(boxes):
            data.mask(f"juice/ground_truth/{kind}/000/{number:03}.png", box=box)
    data.picture("juice/test/logical_anomalies/001.png")
    rows = data.read()
    assert counts(rows) == {
        ("juice", "train", "good"): 2,
        ("juice", "test", "good"): 1,
        ("juice", "test", "logical_anomalies"): 1,
        ("juice", "test", "structural_anomalies"): 1,
    }
    both = next(row for row in rows if row["defect"] == "logical_anomalies")
    with Image.open(both["mask"]) as mask:
        assert (np.asarray(mask) > 0).sum() == 25 + 100
    assert masks_fit(rows) and "mask 001/000.png is missing" in data.rejected()["juice/test/logical_anomalies/001.png"]


def test_visa_is_read_from_its_table_with_capital_endings(lay_out: Any) -> None:
    data = lay_out("visa")
    lines = ["object,split,label,image,mask"]
    for number, split in enumerate(("train", "train", "test")):
        data.picture(f"pcb1/Data/Images/Normal/{number:03}.JPG")
        lines.append(f"pcb1,{split},normal,pcb1/Data/Images/Normal/{number:03}.JPG,")
    data.picture("pcb1/Data/Images/Anomaly/000.JPG")
    data.mask("pcb1/Data/Masks/Anomaly/000.png")
    lines.append("pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png")
    lines += ["pcb1,test,normal,pcb1/Data/Images/Normal/999.JPG,", "pcb1,test,normal,../secret.png,", "pcb1,test,normal,/etc/passwd.png,"]
    data.text("split_csv/1cls.csv", "\n".join(lines) + "\n")
    rows = data.read()
    assert counts(rows) == {("pcb1", "train", "good"): 2, ("pcb1", "test", "good"): 1, ("pcb1", "test", "anomaly"): 1}
    assert masks_fit(rows)
    reasons = data.rejected()
    assert "1cls.csv names it in row 6, but the file is missing" in reasons["pcb1/Data/Images/Normal/999.JPG"]
    assert len(reasons) == 2 and "is not a path within the dataset" in reasons["split_csv/1cls.csv"]


def test_real_iad_is_read_from_its_json(lay_out: Any) -> None:
    data = lay_out("real-iad")
    content: Row = {"meta": {"prefix": "mint", "normal_class": "OK"}, "train": [], "test": []}
    for number, split in enumerate(("train", "train", "test")):
        data.picture(f"realiad_256/mint/OK/S000{number}/mint_{number}_OK.jpg")
        content[split].append(
            {"category": "mint", "anomaly_class": "OK", "image_path": f"OK/S000{number}/mint_{number}_OK.jpg", "mask_path": None}
        )
    data.picture("realiad_256/mint/NG/AK/S0001/mint_1_NG.jpg")
    data.mask("realiad_256/mint/NG/AK/S0001/mint_1_NG.png")
    content["test"].append(
        {"category": "mint", "anomaly_class": "AK", "image_path": "NG/AK/S0001/mint_1_NG.jpg", "mask_path": "NG/AK/S0001/mint_1_NG.png"}
    )
    data.text("realiad_jsons/mint.json", json.dumps(content))
    rows = data.read()
    assert counts(rows) == {("mint", "train", "good"): 2, ("mint", "test", "good"): 1, ("mint", "test", "AK"): 1} and masks_fit(rows)
    data.text("realiad_jsons/mint.json", "{}")
    with pytest.raises(BadInput, match=r"mint\.json: not a list of Real-IAD"):
        data.read()


def test_kolektor_sdds_pictures_are_cut_in_three(lay_out: Any) -> None:
    data = lay_out("kolektor-sdd")
    for part in range(2):
        for number in range(2):
            data.picture(f"kos{part:02}/Part{number}.jpg", (20, 62))
            data.mask(f"kos{part:02}/Part{number}_label.bmp", (20, 62), (2, 45, 9, 60) if number else None)
    data.picture("kos00/Part7.jpg", (20, 62))
    rows = data.read()
    assert Counter(row["defect"] for row in rows) == {"good": 10, "defect": 2}
    assert Counter(row["split"] for row in rows if row["label"] == 0) == {"train": 7, "test": 3}  # a quarter, rounded up
    assert masks_fit(rows) and all(row["mask"] for row in rows if row["label"])
    assert {(row["width"], row["height"]) for row in rows} == {(20, 20), (20, 21)}
    assert "label Part7_label.bmp is missing" in data.rejected()["kos00/Part7.jpg"]
    piece = next(row for row in rows if row["image"].endswith("kos00_Part1_2.png"))
    with Image.open(piece["image"]) as image, Image.open(data.folder / "kos00/Part1.jpg") as whole:
        assert np.array_equal(np.asarray(image), np.asarray(whole.convert("RGB"))[41:])
    assert data.read() == rows
    cut = data.folder / "kos01/Part0.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])  # its pieces are cut out of it, which fails in the decoder
    left = data.read()
    assert len(left) == len(rows) - 3 and not [row for row in left if "kos01_Part0" in row["image"]]
    assert all("truncated or not an image" in reason for file, reason in data.rejected().items() if "Part0" in file)
    assert data.ingested.rejected == 4


def test_kolektor_sdd2_has_its_masks_beside_the_pictures(lay_out: Any) -> None:
    data = lay_out("kolektor-sdd2")
    for split in ("train", "test"):
        for number, box in enumerate((None, None, (3, 3, 8, 8))):
            data.picture(f"{split}/{number}.png")
            data.mask(f"{split}/{number}_GT.png", box=box)
    data.picture("test/9.png")
    data.mask("test/8_GT.png")
    rows = data.read()
    assert counts(rows) == {
        (name, split, defect): count for name in ["small"] for split in ("train", "test") for defect, count in (("good", 2), ("defect", 1))
    }
    assert masks_fit(rows) and set(data.rejected()) == {"test/9.png", "test/8_GT.png"}


def test_aitexs_strips_are_cut_to_squares(lay_out: Any) -> None:
    data = lay_out("aitex")
    for number in range(2):
        data.picture(f"NODefect_images/2306881-210020u/000{number}_000_02.png", (64, 16))
    data.picture("Defect_images/0001_002_00.png", (70, 16))  # its end is less than half a square
    data.mask("Mask_images/0001_002_00_mask.png", (70, 16), (20, 2, 40, 9))  # over two squares
    data.picture("Defect_images/0044_019_04.png", (64, 16))
    data.mask("Mask_images/0044_019_04_mask1.png", (64, 16), (50, 2, 60, 9))
    data.picture("Defect_images/0100_025_08.png", (64, 16))
    rows = data.read()
    assert Counter(row["defect"] for row in rows) == {"good": 8, "broken-end": 2, "fuzzy-ball": 1}
    assert Counter(row["split"] for row in rows if row["label"] == 0) == {"train": 6, "test": 2}
    assert {(row["width"], row["height"]) for row in rows} == {(16, 16)} and masks_fit(rows)
    assert "mask 0100_025_08_mask.png is missing" in data.rejected()["Defect_images/0100_025_08.png"]


def test_elpvs_probabilities_decide(lay_out: Any) -> None:
    data = lay_out("elpv")
    lines = []
    for number, probability in enumerate((0.0, 0.0, 0.0, 0.0, 1.0, 0.3333333333333333, 0.6666666666666666, 1.0)):
        data.picture(f"images/cell{number:04}.png")
        lines.append(f"images/cell{number:04}.png  {probability}  {'mono' if number % 2 else 'poly'}")
    lines.append("images/cell9999.png  1.0  mono")
    data.text("labels.csv", "\n".join(lines) + "\n")
    rows = data.read()
    assert counts(rows) == {("small", "train", "good"): 3, ("small", "test", "good"): 1, ("small", "test", "defective"): 2}
    reasons = data.rejected()
    assert (
        "unsure about it (defect probability 0.333333)" in reasons["images/cell0005.png"] and "is missing" in reasons["images/cell9999.png"]
    )


def test_elpv_on_disk_is_split_as_the_published_tables_are(tmp_path: Path) -> None:
    """The whole of it, from its own layout: 1,131 to train on, 377 and 715 to test on, the same pictures as the packaged ones."""
    package = pytest.importorskip("elpv_dataset", reason="the extra `samples` is not installed")
    from changepair.tasks.ingestion.packaged import PACKAGED

    folder = Path(package.__file__).parent / "data"
    ingest_folder("elpv", folder, layout="elpv", places=make_places(tmp_path / "manifests"))
    rows = pq.read_table(tmp_path / "manifests" / "elpv.parquet").to_pylist()
    assert Counter((row["split"], row["label"]) for row in rows) == {("train", 0): 1131, ("test", 0): 377, ("test", 1): 715}
    PACKAGED["elpv"].write(tmp_path / "packaged")
    for name, split, label in (("train/good", "train", 0), ("test/good", "test", 0), ("test/defective", "test", 1)):
        packaged = {file.name for file in (tmp_path / "packaged" / name).iterdir()}
        assert packaged == {Path(row["image"]).name for row in rows if (row["split"], row["label"]) == (split, label)}


def test_brain_mri_and_head_ct_are_split_by_their_protocol(lay_out: Any, tmp_path: Path) -> None:
    data = lay_out("brain-mri")
    for number in range(4):
        data.picture(f"no/{number} no.jpeg")
    data.picture("yes/Y1.jpg")
    assert counts(data.read()) == {("small", "train", "good"): 3, ("small", "test", "good"): 1, ("small", "test", "tumour"): 1}
    (tmp_path / "other").mkdir()
    other = Dataset(tmp_path / "other", "head-ct")
    other.text("labels.csv", "id, hemorrhage\n0,1\n1,0\n2,0\n3,0\n4,0\n5,1\n")
    for number in range(5):
        other.picture(f"head_ct/head_ct/{number:03}.png")
    rows = other.read()
    assert counts(rows) == {("small", "train", "good"): 3, ("small", "test", "good"): 1, ("small", "test", "haemorrhage"): 1}
    assert "is missing" in other.rejected()["head_ct/head_ct/005.png"]


def idx(path: Path, array: np.ndarray, packed: bool) -> None:
    content = struct.pack(f">{1 + array.ndim}I", 2051 if array.ndim == 3 else 2049, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_idx_files(lay_out: Any, packed: bool) -> None:
    data = lay_out("mnist")
    digits = np.random.default_rng(0).integers(0, 256, (6, 28, 28))
    labels = np.array([3, 1, 4, 1, 5, 9])
    for start, part in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        idx(data.folder / f"{start}-images-idx3-ubyte{'.gz' * packed}", digits[part], packed)
        idx(data.folder / f"{start}-labels-idx1-ubyte{'.gz' * packed}", labels[part], packed)
    rows = data.read()
    assert counts(rows) == {
        ("3", "train", "good"): 1,
        ("1", "train", "good"): 2,
        ("4", "train", "good"): 1,
        ("5", "test", "good"): 1,
        ("9", "test", "good"): 1,
    }
    with Image.open(rows[2]["image"]) as image:
        assert np.array_equal(np.asarray(image), digits[2])
    (data.folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\0\1")
    (data.folder / "train-images-idx3-ubyte.gz").unlink(missing_ok=True)
    with pytest.raises(BadInput, match="train-images-idx3-ubyte: not an IDX file, or truncated"):
        data.read()


def test_mnist_is_read_from_folders(lay_out: Any) -> None:
    data = lay_out("mnist")
    for split in ("training", "testing"):
        for digit in "07":
            data.picture(f"{split}/{digit}/1.png")
    assert counts(data.read()) == {(digit, split, "good"): 1 for digit in "07" for split in ("train", "test")}


CIFAR = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32)).astype(np.uint8)


def test_cifar10_is_read_from_its_binary_files(lay_out: Any) -> None:
    data = lay_out("cifar10")
    folder = data.folder / "cifar-10-batches-bin"
    folder.mkdir()
    for name, part in (("data_batch_1", CIFAR[:4]), ("test_batch", CIFAR[4:])):
        (folder / f"{name}.bin").write_bytes(b"".join(bytes([number]) + array.tobytes() for number, array in enumerate(part)))
    rows = data.read()
    assert Counter((row["category"], row["split"]) for row in rows)["automobile", "test"] == 1 and len(rows) == 6
    with Image.open(next(row["image"] for row in rows if (row["category"], row["split"]) == ("bird", "train"))) as image:
        assert np.array_equal(np.asarray(image), CIFAR[2].transpose(1, 2, 0))
    (folder / "test_batch.bin").write_bytes(b"12345")
    with pytest.raises(BadInput, match=r"test_batch\.bin: 5 bytes, not a multiple of 3073"):
        data.read()


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("run",))


def test_cifar10s_pickles_are_read_safely_or_refused(lay_out: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = lay_out("cifar10")
    for name, part in (("data_batch_1", CIFAR[:4]), ("test_batch", CIFAR[4:])):
        content = {b"data": part.reshape(len(part), -1), b"labels": list(range(len(part)))}
        (data.folder / name).write_bytes(pickle.dumps(content, protocol=2))
    assert len(data.read()) == 6
    (data.folder / "test_batch").write_bytes(pickle.dumps({b"data": Payload(), b"labels": [0]}))
    with pytest.raises(BadInput, match=r"test_batch: refused, because it is not a CIFAR-10 batch .*it needs builtins\.print"):
        data.read()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_ones_own(lay_out: Any, suffix: str) -> None:
    data = lay_out("table")
    data.picture("a/1.png")
    data.picture("a/2.png")
    data.picture("b/3.png")
    data.mask("m/3.png")
    lines: list[Row] = [
        {"image": "a/1.png", "category": "bolt", "split": "train", "label": 0, "defect": "", "mask": "", "licence": "CC BY 4.0"},
        {"image": "a/2.png", "category": "bolt", "split": "test", "label": 0, "defect": "", "mask": "", "licence": " "},
        {"image": "b/3.png", "category": "bolt", "split": "test", "label": 1, "defect": "rust", "mask": "m/3.png", "licence": "CC0"},
        {"image": "a/1.png", "category": "bolt", "split": "val", "label": 0, "defect": "", "mask": "", "licence": "MIT"},
    ]
    if suffix == ".csv":
        with (data.folder / "parts.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        pq.write_table(pa.Table.from_pylist(lines), data.folder / "parts.parquet")
    rows = data.read(f"parts{suffix}")
    assert counts(rows) == {("bolt", "train", "good"): 1, ("bolt", "test", "good"): 1, ("bolt", "test", "rust"): 1} and masks_fit(rows)
    assert [row["licence"] for row in rows] == ["CC BY 4.0", "your own", "CC0"]
    assert any("its split must be train or test, not 'val'" in reason for reason in data.rejected().values())
    (data.folder / "bad.csv").write_text("image,label\n")
    with pytest.raises(BadInput, match=r"bad\.csv: no column 'category', so not such a table; it has image, label"):
        data.read("bad.csv")


@pytest.mark.parametrize("layout", ["coco", "open-images", "dtd"])
def test_photographs_are_sources(lay_out: Any, layout: str) -> None:
    data = lay_out(layout)
    for number in range(3):
        data.picture(f"000{number}.jpg")
    assert counts(data.read()) == {("small", "train", "good"): 3}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("folder", "coco", "open-images", "dtd")])
def test_another_folder_is_told_from_the_dataset(lay_out: Any, layout: str) -> None:
    data = lay_out(layout)
    data.text("notes.txt", "nothing of the kind")
    with pytest.raises(BadInput) as caught:
        data.read("notes.txt" if layout == "table" else "")
    assert "\n" not in str(caught.value) and str(data.folder) in str(caught.value)


def test_every_layout_can_be_asked_for_and_says_its_home_and_terms() -> None:
    assert set(LayoutName.__args__) == set(LAYOUTS)
    for name, layout in LAYOUTS.items():
        assert layout.licence and (layout.home.startswith("http") or name in ("folder", "photographs", "table"))


def test_datasets_are_listed() -> None:
    result = run(ROOT, "changepair", "datasets", COLUMNS="220")
    assert result.returncode == 0
    for name, layout in LAYOUTS.items():
        assert name in result.stdout and layout.home in result.stdout
    assert "packaged datasets in pipelines.yaml: sample-photos, vision-toolbox, texture-defects, digits, elpv" in result.stdout


def test_a_dataset_on_disk_is_inspected(lay_out: Any, tmp_path: Path) -> None:
    data = lay_out("mvtec-ad")
    for number in range(3):
        data.picture(f"bolt/train/good/{number}.png", (40 + number, 32))
    data.picture("bolt/test/good/0.png")
    data.picture("bolt/test/rust/0.png")
    data.mask("bolt/ground_truth/rust/0_mask.png", box=(0, 0, 20, 16))  # a quarter
    data.text("bolt/train/good/notes.txt", "no picture")
    (data.folder / "bolt/train/good/cut.png").write_bytes((data.folder / "bolt/train/good/0.png").read_bytes()[:60])
    result = run(ROOT, "changepair", "inspect", "mvtec-ad", str(data.folder), "--out", str(tmp_path / "sheet.png"), COLUMNS="160")
    assert result.returncode == 0, result.stderr
    assert re.search(r"bolt +│ train +│ good +│ 3 ", result.stdout) and re.search(
        r"bolt +│ test +│ rust +│ 1 +│ 25 / 25 / 25", result.stdout
    )
    assert (
        "width: 40 / 40 / 42 pixels" in result.stdout
        and "rejected: 1 file: not a picture" in result.stdout
        and "truncated" in result.stdout
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert len(sheet.getcolors(1_000_000)) > 50
    assert not list(data.folder.rglob("*.parquet"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused = run(ROOT, "changepair", "inspect", "mvtec-ad", str(data.folder), "--out", str(tmp_path / "mine"))
    assert refused.returncode == 2 and "is a folder; name a file" in refused.stderr
    assert (tmp_path / "mine" / "thesis.txt").is_file()
    wrong = run(ROOT, "changepair", "inspect", "visa", str(data.folder))
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "has no split_csv/1cls.csv" in wrong.stderr
