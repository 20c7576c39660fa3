"""Tables and labels of datasets that are damaged or hostile: every row is read as it is meant, or left out with the reason."""

from __future__ import annotations

import csv
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_places, save
from hostile import ODD, attack, changed, damaged
from pycocotools import mask as coco_mask

from changepair.tasks.common.pictures import picture_size, read_marks
from changepair.tasks.common.rows import read_rows
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.ingest import ingest_objects
from changepair.tasks.ingestion.objects.table import ObjectRow, to_mask
from changepair.tasks.ingestion.settings import ObjectsSettings

pytestmark = pytest.mark.attack
SIDE = 12
ROWS = [
    {
        "image": f"{part}/{number}.png",
        "category": part[0],
        "split": split,
        "label": label,
        "defect": defect,
        "mask": mask and f"m/{number}.png",
    }
    for part, split, label, defect, mask in (
        ("a", "train", "0", "", ""),
        ("b", "train", "0", "", ""),
        ("a", "test", "1", "rust", "m"),
        ("b", "test", "0", "", ""),
    )
    for number in (range(3) if split == "train" else range(3, 6))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_ = np.random.default_rng(0)
    for row in ROWS:
        save(random_.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8), tmp_path / "set" / row["image"])
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:5, 3:9] = 255
    for number in range(3, 6):
        save(mask, tmp_path / f"set/m/{number}.png")
    return tmp_path / "set"


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode(errors="surrogatepass")


def ingested(path: Path, layout: str, folder: Path) -> None:
    """Ingests it; holds every row that is kept to what a row is."""
    places = make_places(folder.parent / "manifests")
    ingest_folder("x", path, layout=layout, places=places)
    rows = read_rows(places.manifests / "x.parquet", PictureRow, "ingest")
    assert rows and len({row.image for row in rows}) == len(rows), "a picture counts twice"
    for row in rows:
        assert row.category and row.defect and row.split in ("train", "test")
        assert (row.label == 0) == (row.defect == "good") and picture_size(Path(row.image)) == (row.height, row.width)
        if row.mask is not None:
            assert row.label == 1 and read_marks(Path(row.mask)).shape == (row.height, row.width)


@dataclass(frozen=True)
class Labelled:
    """A layout whose labels are a file: where it lies, and what it says."""

    file: str
    content: Callable[[random.Random], bytes]


def rows_with(
    draw: random.Random, names: dict[str, str], label: Callable[[dict[str, Any]], str] = lambda row: row["label"]
) -> list[dict[str, Any]]:
    """The rows under a layout's names, one or a few of their cells odd, a row twice, or none."""
    rows = [{theirs: label(row) if ours == "label" else row[ours] for theirs, ours in names.items()} for row in ROWS]
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        row = draw.choice(rows)
        row[draw.choice(list(row))] = draw.choice(
            (*ODD, "a/0.png", "test", "train", "1", "0", "good", "Good", "normal", "\u00e4", "a,b", '"')
        )
    if draw.random() < 0.2:
        rows.append(dict(draw.choice(rows)))
    return rows


def own(draw: random.Random) -> bytes:
    rows = rows_with(draw, {key: key for key in ROWS[0]})
    if draw.random() < 0.3:
        return damaged(as_csv(rows), draw)
    data = as_csv(rows)
    return data.decode(errors="replace").encode("cp1252", errors="replace") if draw.random() < 0.2 else data


def visa(draw: random.Random) -> bytes:
    names = {"object": "category", "split": "split", "label": "label", "image": "image", "mask": "mask"}
    data = as_csv(rows_with(draw, names, lambda row: "normal" if row["label"] == "0" else "anomaly"))
    return damaged(data, draw) if draw.random() < 0.3 else data


def real_iad(draw: random.Random) -> bytes:
    rows = [
        {
            "image_path": row["image"],
            "anomaly_class": "OK" if row["label"] == "0" else row["defect"],
            "mask_path": row["mask"] or None,
            "category": "c",
            "split": row["split"],
        }
        for row in ROWS
    ]
    content: Any = {
        "meta": {"prefix": ".", "normal_class": "OK"},
        **{split: [row for row in rows if row["split"] == split] for split in ("train", "test")},
    }
    for _ in range(draw.choice((0, 1, 2))):
        content = changed(content, draw)
    data = json.dumps(content).encode()
    return damaged(data, draw) if draw.random() < 0.3 else data


def lines_with(draw: random.Random, lines: list[str], cells: tuple[str, ...]) -> bytes:
    """Lines of labels, some with an odd label in the place of LABEL, a line twice, or none."""
    said = [line.replace("LABEL", draw.choice(cells)) for line in lines]
    said += said[1:2] if draw.random() < 0.2 else []
    data = "\n".join(said).encode()
    return damaged(data, draw) if draw.random() < 0.3 else data


def elpv(draw: random.Random) -> bytes:
    lines = [f"{row['image']} {float(row['label'])} mono" for row in ROWS]
    odd = f"{ROWS[-1]['image']} LABEL mono"
    return lines_with(draw, draw.choice((lines, [*lines[:-1], odd])), ("0.33", "nan", "2", "-1", "x", "", "1e999"))


def head_ct(draw: random.Random) -> bytes:
    lines = ["id, hemorrhage", *(f"{number}, {number % 2}" for number in range(8))]
    return lines_with(draw, draw.choice((lines, [*lines, "8, LABEL"])), ("2", "x", "", "-1", "9" * 5000))


LAYOUTS = {
    "table": Labelled("list.csv", own),
    "visa": Labelled("split_csv/1cls.csv", visa),
    "real-iad": Labelled("realiad_jsons/c.json", real_iad),
    "elpv": Labelled("labels.csv", elpv),
    "head-ct": Labelled("labels.csv", head_ct),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels(layout: str, folder: Path) -> None:
    labels = LAYOUTS[layout]
    file = folder / labels.file
    file.parent.mkdir(exist_ok=True)
    for number in range(8):
        save(np.full((SIDE, SIDE), 20 * number, np.uint8), folder / f"head_ct/{number:03d}.png")

    def attempt(content: bytes) -> None:
        file.write_bytes(content)
        ingested(file if layout == "table" else folder, layout, folder)

    attack(f"labels, {layout}", labels.content, attempt)


def test_a_table_of_columns_of_any_type(folder: Path) -> None:
    def draw(random_: random.Random) -> bytes:
        columns = {}
        for name in ROWS[0]:
            values: list[Any] = [row[name] for row in ROWS]
            match random_.choice(("text", "text", "text", "number", "decimal", "null", "bytes", "bool", "list")):
                case "number":
                    values = [int(value) if str(value).isdigit() else 0 for value in values]
                case "decimal":
                    values = [float(value) if str(value).isdigit() else float("nan") for value in values]
                case "null":
                    values = [None if random_.random() < 0.3 else value for value in values]
                case "bytes":
                    values = [value.encode() for value in values]
                case "bool":
                    values = [value == "1" for value in values]
                case "list":
                    values = [[value] for value in values]
            columns[name] = values
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        return damaged(sink.getvalue(), random_) if random_.random() < 0.3 else sink.getvalue()

    def attempt(content: bytes) -> None:
        (folder / "list.parquet").write_bytes(content)
        ingested(folder / "list.parquet", "table", folder)

    attack("labels, parquet", draw, attempt)


@pytest.mark.parametrize("layout", ["mnist", "cifar10"])
def test_packed_pictures(layout: str, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 28, 28), dtype=np.uint8)
    files = {
        f"{start}-{kind}-ubyte": head + body.tobytes()
        for start in ("train", "t10k")
        for kind, head, body in (
            ("images-idx3", struct.pack(">4I", 2051, *pixels.shape), pixels),
            ("labels-idx1", struct.pack(">2I", 2049, len(pixels)), np.arange(len(pixels), dtype=np.uint8)),
        )
    }
    if layout == "cifar10":
        rows = np.random.default_rng(0).integers(0, 255, (4, 1 + 3 * 32 * 32), dtype=np.uint8)
        rows[:, 0] %= 10
        files = {"data_batch_1.bin": rows.tobytes(), "test_batch.bin": rows.tobytes()}

    def draw(random_: random.Random) -> dict[str, bytes]:
        which = random_.choice(list(files))
        return {name: damaged(data, random_) if name == which else data for name, data in files.items()}

    def attempt(contents: dict[str, bytes]) -> None:
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        ingested(folder, layout, folder)

    attack(f"labels, {layout}", draw, attempt)


BIG = (1e9, -1e9, float("nan"), float("inf"), 2**31, 2**63, 10**30, -1, "x", None, [], 0.5)


def coco(draw: random.Random) -> bytes:
    shape = np.zeros((SIDE, SIDE), np.uint8, order="F")
    shape[2:6, 3:9] = 1
    encoded = coco_mask.encode(shape)
    runs = [int(run) for run in np.diff(np.flatnonzero(np.diff(np.concatenate(([2], shape.ravel("F"), [2])))))]
    polygon = [3.0, 2.0, 9.0, 2.0, 9.0, 6.0, 3.0, 6.0]
    counts = encoded["counts"].decode()
    match draw.choice(("polygon", "runs", "compressed", "tree", "bytes", "size")):
        case "polygon":
            for _ in range(draw.choice((1, 2))):
                polygon[draw.randrange(len(polygon))] = draw.choice(BIG)
            polygon = polygon[: draw.randrange(len(polygon) + 1)] if draw.random() < 0.2 else polygon
        case "runs":
            runs[draw.randrange(len(runs))] = draw.choice((*BIG, 1, 0, 7))
            runs = runs[: draw.randrange(len(runs) + 1)]
        case "compressed":
            counts = damaged(counts.encode(), draw).decode("latin-1")
    size: list[Any] = [SIDE, SIDE]
    image: dict[str, Any] = {"id": 1, "file_name": "0.png", "height": SIDE, "width": SIDE}
    if draw.random() < 0.1:
        image["height"] = draw.choice((40_000, 0, -1, 10**9, "12", None))
        size = [image["height"], SIDE]
    segmentations: list[Any] = [[polygon], {"size": size, "counts": runs}, {"size": size, "counts": counts}]
    content: Any = {
        "images": [image],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "segmentation": one} for n, one in enumerate(segmentations)],
    }
    content = changed(content, draw) if draw.random() < 0.3 else content
    data = json.dumps(content).encode()
    return damaged(data, draw) if draw.random() < 0.2 else data


def test_outlines_of_objects(folder: Path) -> None:
    """What is kept is the shape that was outlined, or one that its numbers describe: never memory that nobody has written."""
    places = make_places(folder.parent / "manifests")
    photos = folder.parent / "photos"
    save(np.zeros((SIDE, SIDE, 3), np.uint8), photos / "0.png")
    ingest_folder("x", photos, layout="photographs", places=places)
    file = folder.parent / "instances.json"

    def attempt(content: bytes) -> None:
        file.write_bytes(content)
        masks = []
        for _ in range(2):
            ingest_objects("x", ObjectsSettings("coco", str(file)), manifests=places.manifests)
            rows = read_rows(places.manifests / "x.objects.parquet", ObjectRow, "objects")
            masks.append([to_mask(row) for row in rows])
        assert all((one == again).all() and one.shape == (SIDE, SIDE) for one, again in zip(*masks, strict=True))

    attack("objects, COCO", coco, attempt)


@pytest.mark.parametrize("number", range(20))
def test_run_lengths_are_read_as_the_librarys(number: int) -> None:
    """Held against pycocotools, which wrote them."""
    from changepair.tasks.ingestion.objects.coco import _mask

    random_ = np.random.default_rng(number)
    height, width = random_.integers(1, 90, 2).tolist()
    shape = np.asfortranarray(random_.random((height, width)) < random_.random(), dtype=np.uint8)
    encoded = coco_mask.encode(shape)
    assert (_mask({"size": [height, width], "counts": encoded["counts"].decode()}, height, width) == shape).all()
