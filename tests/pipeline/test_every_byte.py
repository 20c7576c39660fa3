"""Every byte that a metric depends on is in the dependency graph: a file that changes reruns its stage and changes what later stages read.
A timestamp alone reruns nothing."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
from conftest import TINY, make_layout, make_places, make_project, run, save, write_pipelines
from PIL import Image

from changepair.flows.plan import planned
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import content_of
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.common.places import place_of
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.objects.ingest import ingest_objects
from changepair.tasks.inpainting.inpainter import write_choice
from changepair.tasks.inpainting.settings import InpainterSettings

MASK = np.zeros((96, 96), np.uint8)
MASK[30:50, 40:70] = 255


def photo(number: int) -> np.ndarray:
    return skimage.data.brick()[30 * number :][:96, :96]


def in_mvtecs_layout(folder: Path) -> dict[str, Any]:
    make_layout(folder)
    return {}


def in_locos_layout(folder: Path) -> dict[str, Any]:
    """With two masks a picture, of which ingestion writes the union."""
    for number in range(2):
        save(photo(number), folder / f"box/train/good/{number}.png")
        save(photo(4 + number), folder / f"box/test/good/{number}.png")
        save(photo(2 + number), folder / f"box/test/broken/{number}.png")
        for part in range(2):
            save(np.roll(MASK, 20 * part, axis=0), folder / f"box/ground_truth/broken/{number}/{part:03d}.png")
    return {"layout": "mvtec-loco"}


def in_a_table(folder: Path) -> dict[str, Any]:
    rows = ["image,category,split,label,defect,mask"]
    for number in range(6):
        save(photo(number), folder / f"photos/{number}.png")
        split, label = ("train", 0) if number < 3 else ("test", int(number > 3))
        if label:
            save(MASK, folder / f"marks/{number}.png")
        rows.append(f"photos/{number}.png,a,{split},{label},{'hole' if label else ''},{f'marks/{number}.png' if label else ''}")
    (folder / "parts.csv").write_text("\n".join(rows) + "\n")
    return {"path": f"{folder.name}/parts.csv", "layout": "table"}


def in_named_folders(folder: Path) -> dict[str, Any]:
    for number in range(6):
        save(photo(number), folder / f"fine/{number}.png")
    for number in range(2):
        save(photo(6 + number), folder / f"faulty/burn/{number}.png")
        save(MASK, folder / f"marks/burn/{number}_mask.png")
    return {"normal": ["fine"], "abnormal": ["faulty"], "masks": "marks"}


def in_16_bits(folder: Path) -> dict[str, Any]:
    for file in make_layout(folder).rglob("*/[tg]*/*/*.png"):
        if "ground_truth" not in file.parts:
            with Image.open(file) as image:
                save(np.asarray(image).astype(np.uint16) * 16, file)
    return {}


LAYOUTS: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = {
    "folder": (
        in_mvtecs_layout,
        ("bricks/train/good/0.png", "bricks/test/good/0.png", "bricks/test/hole/0.png", "bricks/ground_truth/hole/0_mask.png"),
    ),
    "loco": (in_locos_layout, ("box/test/broken/0.png", "box/ground_truth/broken/0/000.png", "box/ground_truth/broken/0/001.png")),
    "table": (in_a_table, ("parts.csv", "photos/0.png", "photos/5.png", "marks/4.png")),
    "named": (in_named_folders, ("fine/0.png", "faulty/burn/0.png", "marks/burn/0_mask.png")),
    "deep": (in_16_bits, ("bricks/train/good/0.png", "bricks/test/hole/1.png")),
}
FILES = [(layout, file, snapshot) for layout, (_make, files) in LAYOUTS.items() for file in files for snapshot in (False, True)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def declared(here: Path, layout: str, snapshot: bool) -> None:
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["datasets"]["folders"]["parts"] = {"path": "parts", "snapshot": snapshot, **LAYOUTS[layout][0](here / "parts")}
    write_pipelines(here, content)


def ingested(here: Path) -> tuple[bytes, bytes]:
    """The manifest, which every later stage depends on, and the list of files left out."""
    settings = read_pipelines().datasets.folders["parts"]
    chosen = {key: value for key, value in asdict(settings).items() if key != "path"}
    ingest_folder("parts", place_of(settings.path), places=make_places(here / "data/manifests"), **chosen)
    manifest = here / "data/manifests/parts.parquet"
    return manifest.read_bytes(), manifest.with_suffix(".rejected.csv").read_bytes()


def depends(stage: str, file: Path) -> bool:
    """Whether DVC runs a stage again once a file has changed."""
    deps = next(one.deps for one in planned() if one.name == stage)
    return any(file == Path(dep) or file.is_relative_to(dep) for dep in deps)


def change_a_byte(file: Path) -> None:
    """One in the middle; of a table, a digit."""
    content = bytearray(file.read_bytes())
    place = content.rindex(b",0,") + 1 if file.suffix == ".csv" else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("layout", "name", "snapshot"), FILES)
def test_a_byte_of_a_dataset_changes_what_later_stages_depend_on(here: Path, layout: str, name: str, snapshot: bool) -> None:
    declared(here, layout, snapshot)
    file = Path("parts", name)
    before = ingested(here)
    assert depends("ingest_parts", file) and ingested(here) == before
    os.utime(file)
    assert ingested(here) == before
    change_a_byte(file)
    assert ingested(here) != before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_redrawn_mask_or_picture_changes_its_row(here: Path, layout: str) -> None:
    """A valid file of the same size and time: only its content differs."""
    declared(here, layout, snapshot=False)
    ingested(here)
    before = {row["image"]: row for row in pq.read_table(here / "data/manifests/parts.parquet").to_pylist()}
    for name in LAYOUTS[layout][1]:
        file = here / "parts" / name
        if file.suffix == ".png":
            about = file.stat()
            with Image.open(file) as image:
                pixels = np.asarray(image).copy()
            pixels[40:44, 40:44] = 0
            pixels[10:12, 10:12] = pixels.max()
            save(pixels, file)
            os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    ingested(here)
    after = {row["image"]: row for row in pq.read_table(here / "data/manifests/parts.parquet").to_pylist()}
    differing = [image for image, row in after.items() if row != before[image]]
    assert after.keys() == before.keys() and len(differing) >= (len(LAYOUTS[layout][1]) - 1) // 2
    masked = [image for image in differing if after[image]["mask_sha256"] != before[image]["mask_sha256"]]
    assert bool(masked) == (layout != "deep")


def masks_in_a_folder(folder: Path) -> tuple[str, str, list[str]]:
    save(MASK, folder / "0.png")
    return "masks", "", ["0.png"]


def of_open_images(folder: Path) -> tuple[str, str, list[str]]:
    save(MASK, folder / "masks/0_m.png")
    (folder / "class-descriptions.csv").write_text("LabelName,DisplayName\n/m/01,cup\n")
    (folder / "masks.csv").write_text("MaskPath,ImageID,LabelName\n0_m.png,0,/m/01\n")
    return "open-images", "/masks.csv", ["masks.csv", "masks/0_m.png", "class-descriptions.csv"]


def of_coco(folder: Path) -> tuple[str, str, list[str]]:
    polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[40, 30, 70, 30, 70, 50, 40, 50]], "iscrowd": 0}
    image = {"id": 1, "file_name": "0.png", "height": 96, "width": 96}
    folder.mkdir(parents=True)
    (folder / "instances.json").write_text(
        json.dumps({"images": [image], "categories": [{"id": 1, "name": "cup"}], "annotations": [polygon]})
    )
    return "coco", "/instances.json", ["instances.json"]


OBJECTS = {"masks": masks_in_a_folder, "open-images": of_open_images, "coco": of_coco}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_byte_of_the_objects_masks_changes_their_table(here: Path, kind: str) -> None:
    save(photo(0), here / "parts/0.png")
    format_, at, files = OBJECTS[kind](here / "objects")
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["datasets"] |= {
        "folders": {"parts": {"path": "parts", "layout": "photographs"}},
        "objects": {"parts": {"format": format_, "path": f"objects{at}"}},
    }
    write_pipelines(here, content)
    ingested(here)

    def objects() -> list[dict[str, Any]]:
        try:
            ingest_objects("parts", read_pipelines().datasets.objects["parts"], manifests=here / "data/manifests")
        except BadInput as error:
            return [{"refused": str(error)}]
        return pq.read_table(here / "data/manifests/parts.objects.parquet").to_pylist()

    before = objects()
    assert len(before) == 1 and "refused" not in before[0]
    for name in files:
        file = Path("objects", name)
        assert depends("objects_parts", file), name
        content_before = file.read_bytes()
        os.utime(file)
        assert objects() == before
        if file.suffix == ".png":
            change_a_byte(file)
        else:
            file.write_bytes(
                content_before.replace(b"/m/01,cup", b"/m/01,cap").replace(b"0_m.png,0", b"0_m.png,1").replace(b"30, 70, 30", b"30, 71, 30")
            )
        assert file.read_bytes() != content_before and objects() != before, name
        file.write_bytes(content_before)


def test_a_weight_of_an_inpainting_model_changes_what_pairs_depend_on(here: Path) -> None:
    """Of a folder that keeps its name: the stage after reads what the stage before wrote."""
    weights = here / "model/unet/weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"\0" * 64)
    written = []
    for byte in (b"\0", b"\1"):
        weights.write_bytes(byte * 64)
        write_choice(here / "out", InpainterSettings(model="model"))
        written.append((here / "out/inpainter.json").read_bytes())
    assert written[0] != written[1]
    assert content_of("facebook/sam-vit-base") is None and content_of(weights) != content_of(weights.parent)


def test_packaged_weights_are_part_of_the_code_that_reads_them(tmp_path: Path) -> None:
    """As they come with the package, and no setting names them."""
    from conftest import ROOT

    named = set(code_of("changepair.tasks.packaged.detectors", root=ROOT).files) | set(
        code_of("changepair.tasks.packaged.inpainting", root=ROOT).files
    )
    weights = {f"changepair/tasks/packaged/{file.name}" for file in (ROOT / "tasks/packaged").glob("*.safetensors")}
    assert weights and weights <= named


@pytest.mark.slow
def test_corrected_masks_and_replaced_pictures_of_a_table_change_the_metrics(tmp_path: Path, api: str) -> None:
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["pipelines"]["small"]["sampling"] = {"shots": [1], "seeds": [0], "protocols": ["class-specific"]}
    folder = make_project(tmp_path / "project", TINY)
    content["datasets"]["folders"]["parts"] = {**in_a_table(folder / "listed")}
    write_pipelines(folder, content)
    metrics = folder / "data/evaluation/small/metrics.csv"

    def measured() -> str:
        result = run(folder, "dvc", "repro", "metrics_small", PREFECT_API_URL=api)
        assert result.returncode == 0, result.stdout + result.stderr
        return metrics.read_text()

    first = measured()
    for file in (folder / "listed").rglob("*"):
        os.utime(file)
    status = run(folder, "dvc", "status", "metrics_small", "--with-deps")
    assert "up to date" in status.stdout, status.stdout
    for number in (4, 5):
        save(np.roll(MASK, 25, axis=0), folder / f"listed/marks/{number}.png")
    masks = measured()
    assert masks != first
    save(photo(9), folder / "listed/photos/5.png")
    assert measured() not in (first, masks)
