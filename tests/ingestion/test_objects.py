"""Masks of objects: of every format, held against their photographs, and drawn whole."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from conftest import make_inputs, make_places, save
from PIL import Image
from pycocotools import mask as coco_mask

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.rows import read_rows
from changepair.tasks.ingestion.ingest import Ingested, ingest_folder
from changepair.tasks.ingestion.objects.ingest import ingest_objects
from changepair.tasks.ingestion.objects.table import ObjectRow, to_mask, to_row
from changepair.tasks.ingestion.settings import ObjectsSettings
from changepair.tasks.synthesis.objects import Dropped, Objects, propose, segments
from changepair.tasks.synthesis.settings import ObjectSettings

HEIGHT, WIDTH = 90, 120


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, one of them in a folder below, and their manifest."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("cat.jpg", "dog.jpg", "bird.jpg")):
        save(skimage.data.astronaut()[90 * number :][:HEIGHT, :WIDTH], folder / name)
    ingest_folder("photos", folder, layout="photographs", licence="own", places=make_places(tmp_path / "manifests"))
    return folder


def box_mask(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def ingest(photos: Path, format_: str, path: Path) -> tuple[Ingested, list[ObjectRow], list[dict[str, str]]]:
    manifests = photos.parent / "manifests"
    counts = ingest_objects("photos", ObjectsSettings(format_, str(path)), manifests=manifests)  # type: ignore[arg-type]
    with (manifests / "photos.objects.rejected.csv").open() as stream:
        return counts, read_rows(manifests / "photos.objects.parquet", ObjectRow, "objects"), list(csv.DictReader(stream))


def coco(photos: Path, **changes: Any) -> Path:
    """An instances file as COCO distributes it: polygons, a crowd as uncompressed run lengths, a compressed one, and mistakes."""
    two = box_mask(50, 10, 80, 100)
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    encoded = coco_mask.encode(np.asfortranarray(two, dtype=np.uint8))
    compressed = {**encoded, "counts": encoded["counts"].decode()}
    content = {
        "info": {},
        "images": [
            {"id": 7, "file_name": "cat.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 8, "file_name": "dog.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 9, "file_name": "elsewhere.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 10, "file_name": "bird.jpg", "height": HEIGHT, "width": HEIGHT},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 8, "category_id": 18, "iscrowd": 0, "segmentation": [[20, 10, 60, 10, 60, 40, 20, 40]]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": compressed,
            },
            {"id": 3, "image_id": 7, "category_id": 1, "iscrowd": 1, "segmentation": crowd},
            {"id": 4, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": crowd},
            {"id": 5, "image_id": 99, "category_id": 1, "iscrowd": 0, "segmentation": []},
            {"id": 6, "image_id": 8, "category_id": 1, "iscrowd": 0, "segmentation": []},
            {"id": 7, "image_id": 9, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]},
            {"id": 8, "image_id": 10, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]},
            {"id": 9, "image_id": 8, "category_id": 1, "iscrowd": 0, "segmentation": {"size": [5, 5], "counts": [1, 24]}},
        ],
        **changes,
    }
    file = photos.parent / "instances.json"
    file.write_text(json.dumps(content))
    return file


def test_coco_polygons_and_run_lengths(photos: Path) -> None:
    counts, rows, rejected = ingest(photos, "coco", coco(photos))
    assert counts == Ingested(3, 6) and [Path(row.image).name for row in rows] == ["cat.jpg", "cat.jpg", "dog.jpg"]
    assert [row.label for row in rows] == ["cup", "cup", "dog"]
    compressed, uncompressed, polygon = (to_mask(row) for row in rows)
    assert (compressed == box_mask(50, 10, 80, 100)).all()
    assert uncompressed.sum() == 5 and uncompressed[:5, 0].all()
    assert (polygon != box_mask(10, 20, 40, 60)).sum() <= 2 * (30 + 40)
    assert (rows[0].left, rows[0].top, rows[0].right, rows[0].bottom) == (10, 50, 100, 80)
    reasons = {row["object"]: row["reason"] for row in rejected}
    assert reasons == {
        "annotation 3": "a crowd, not an object",
        "annotation 5": "its image_id 99 is not among the images",
        "annotation 6": "its segmentation cannot be read (it has no polygon)",
        "elsewhere.jpg": "no photograph of the dataset has this name",
        "bird.jpg": "its mask is 90x90 pixels, but the photograph 120x90",
        "annotation 9": "its segmentation cannot be read (its size is [5, 5], but the image's is [90, 120])",
    }


def test_open_images_masks_of_a_smaller_size_and_labels_in_words(photos: Path) -> None:
    folder = photos.parent / "open-images"
    save(box_mask(10, 20, 40, 60)[::2, ::2].astype(np.uint8) * 255, folder / "masks" / "0" / "cat_m01_aa.png")
    save(np.zeros((45, 60), dtype=np.uint8), folder / "masks" / "1" / "dog_m01_bb.png")
    (folder / "masks" / "broken.png").write_bytes(b"\x89PNG broken")
    (folder / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/01,Coffee cup\n")
    file = folder / "validation-annotations-object-segmentation.csv"
    rows = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"]
    rows += [f"{mask},{image},/m/01,x,0,1,0,1,0.9," for mask, image in (("cat_m01_aa.png", "cat"), ("dog_m01_bb.png", "dog"))]
    rows += ["gone.png,cat,/m/01,x,0,1,0,1,0.9,", "broken.png,cat,/m/01,x,0,1,0,1,0.9,"]
    file.write_text("\n".join(rows) + "\n")
    counts, (row,), rejected = ingest(photos, "open-images", file)
    assert counts == Ingested(1, 3) and row.label == "Coffee cup" and (row.height, row.width) == (45, 60)
    assert (to_mask(row) == box_mask(10, 20, 40, 60)[::2, ::2]).all()
    assert [line["object"] for line in rejected] == ["dog", "gone.png", "broken.png"]
    assert rejected[0]["reason"] == "its mask marks nothing" and "cannot be decoded" in rejected[2]["reason"]
    file.write_text("Mask,Image\n")
    with pytest.raises(BadInput, match=r"no column 'MaskPath', so not Open Images' mask CSV"):
        ingest(photos, "open-images", file)


def test_a_folder_of_masks_by_value_by_piece_and_by_palette(photos: Path) -> None:
    folder = photos.parent / "masks"
    two_values = np.where(box_mask(5, 5, 30, 30), 1, 0) + np.where(box_mask(40, 40, 80, 90), 2, 0)
    save(two_values.astype(np.uint8), folder / "cat.png")
    save((box_mask(5, 5, 30, 30) | box_mask(40, 40, 80, 90)).astype(np.uint8) * 255, folder / "deep" / "dog_instances.png")
    palette = Image.fromarray(np.where(box_mask(10, 10, 50, 50), 3, 255).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0] * 256)
    (folder / "bird").mkdir()
    palette.save(folder / "bird" / "00.png")
    save(np.zeros((HEIGHT, WIDTH), dtype=np.uint8), folder / "bird" / "01.png")
    save(two_values.astype(np.uint8), folder / "stranger.png")
    counts, rows, rejected = ingest(photos, "masks", folder)
    assert counts == Ingested(5, 3)
    assert [Path(row.image).stem for row in rows] == ["bird", "cat", "cat", "dog", "dog"]
    assert [int(to_mask(row).sum()) for row in rows] == [1600, 625, 2000, 625, 2000]
    assert {line["reason"] for line in rejected} == {"marks nothing", "no photograph of the dataset has this name"}


def test_two_photographs_of_one_name_need_more_of_the_path(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        save(skimage.data.astronaut()[90 * number :][:HEIGHT, :WIDTH], tmp_path / "photos" / name / "1.jpg")
    ingest_folder("photos", tmp_path / "photos", layout="photographs", licence="own", places=make_places(tmp_path / "manifests"))
    annotation = {"image_id": 1, "category_id": 1, "segmentation": [[20, 10, 60, 10, 60, 40]]}
    images = [{"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in ((1, "b/1.jpg"), (2, "1.jpg"))]
    annotations = [{**annotation, "id": 1}, {**annotation, "id": 2, "image_id": 2}]
    file = coco(tmp_path / "photos", images=images, annotations=annotations)
    counts, (row,), (line,) = ingest(tmp_path / "photos", "coco", file)
    assert counts == Ingested(1, 1) and row.image.endswith("b/1.jpg") and line["reason"] == "several photographs have this name"


def test_what_is_no_annotation_is_told(photos: Path) -> None:
    with pytest.raises(BadInput, match=r"photos: no file .*gone\.json; correct datasets\.objects\.photos\.path in pipelines\.yaml"):
        ingest(photos, "coco", photos / "gone.json")
    with pytest.raises(BadInput, match=r"photos: no folder .*gone; correct"):
        ingest(photos, "masks", photos / "gone")
    file = photos.parent / "other.json"
    file.write_text('{"images": []}')
    with pytest.raises(BadInput, match=r"other\.json: not COCO's instances.*'annotations'"):
        ingest(photos, "coco", file)
    with pytest.raises(BadInput, match=r"no object in .* belongs to one of the dataset's photographs; .*rejected\.csv lists the reason"):
        ingest(photos, "coco", coco(photos, images=[]))


def objects_of(photos: Path, rows: list[dict[str, Any]], **changes: Any) -> Objects:
    inputs = make_inputs_of(photos, rows)
    sources = Photographs(sorted(str(file) for file in photos.glob("*.jpg")), (0.5, 1.0), 64)
    return Objects(ObjectSettings(**changes), sources, inputs)


def make_inputs_of(photos: Path, rows: list[ObjectRow]) -> Path:
    save(skimage.data.brick()[:96, :96], photos.parent / "layout" / "train" / "good" / "0.png")
    return make_inputs(photos.parent / "layout", objects=rows).files.objects


def test_an_outlined_object_is_drawn_whole_with_its_photograph(photos: Path) -> None:
    image = str(photos / "cat.jpg")
    mask = box_mask(30, 40, 60, 80)
    objects = objects_of(photos, [to_row(image, "cup", mask)])
    full = np.asarray(Image.open(image))
    for number in range(20):
        drawn = Objects(objects.settings, Photographs([image], (0.5, 1.0), 64), objects.table).draw(generator(number, "object"))
        assert drawn.label == "cup" and drawn.mask.shape == (64, 64) and drawn.picture.shape == (64, 64, 3)
        rows, columns = np.flatnonzero(drawn.mask.any(1)), np.flatnonzero(drawn.mask.any(0))
        assert rows[0] > 0 and columns[0] > 0 and rows[-1] < 63 and columns[-1] < 63
        ratio = (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)
        assert ratio == pytest.approx(40 / 30, rel=0.15)
        assert np.abs(drawn.picture[drawn.mask].mean(0) - full[mask].mean(0)).max() < 6


def test_objects_too_small_too_large_or_cut_are_dropped_with_the_reason(photos: Path) -> None:
    image = str(photos / "cat.jpg")
    only = Photographs([image], (0.5, 1.0), 64)
    for mask, reason, changes in (
        (box_mask(30, 40, 33, 43), "object too small or too large for a square", {}),
        (box_mask(2, 2, 88, 118), "object too small or too large for a square", {}),
        (box_mask(20, 20, 70, 90), "object too small or too large for a square", {"area": (0.01, 0.1)}),
        (box_mask(0, 40, 30, 80), "object cut by the border", {}),
    ):
        objects = objects_of(photos, [to_row(image, "", mask)], **changes)
        with pytest.raises(Dropped, match=reason):
            Objects(objects.settings, only, objects.table).draw(generator(0, "object"))
        from changepair.tasks.synthesis.objects import _outlined

        _outlined.cache_clear()
    allowed = objects_of(photos, [to_row(image, "", box_mask(0, 40, 30, 80))], cut_by_border=True)
    assert Objects(allowed.settings, only, allowed.table).draw(generator(0, "object")).mask.any()


def test_where_nobody_outlined_any_a_segmentation_proposes(photos: Path) -> None:
    objects = objects_of(photos, [to_row(str(photos / "cat.jpg"), "cup", box_mask(30, 40, 60, 80))])
    labels = []
    for number in range(40):
        try:
            drawn = objects.draw(generator(number, "object"))
        except Dropped as dropped:
            assert str(dropped) == "no object proposed"
            continue
        low, high = objects.settings.area
        assert low <= drawn.mask.mean() <= high and not drawn.mask[0].any() and not drawn.mask[:, -1].any()
        labels.append((Path(objects.sources.images[drawn.photo]).stem, drawn.label))
    assert {stem for stem, label in labels if label} == {"cat"} and {stem for stem, label in labels if not label} == {"bird", "dog"}
    none = objects_of(photos, [], proposals="none")
    with pytest.raises(Dropped, match="no object proposed"):
        none.draw(generator(0, "object"))


def test_the_segmentation_finds_a_thing_on_a_plain_ground() -> None:
    picture = np.full((64, 64, 3), 200, dtype=np.uint8)
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 30) ** 2 + (columns - 36) ** 2 < 14**2
    picture[disc] = (30, 60, 90)
    best = max(((mask & disc).sum() / (mask | disc).sum() for mask in segments(picture, 0.01)), default=0)
    assert best > 0.9


def test_segment_anything_from_a_users_folder(tmp_path: Path) -> None:
    """A real model, small, from its configuration, saved and loaded as a user would load theirs; untrained."""
    import torch
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    small = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    grid = {"image_size": 64, "patch_size": 8}
    config = SamConfig(
        vision_config={**small, **grid, "output_channels": 16, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 8},
        prompt_encoder_config={**grid, "hidden_size": 16, "mask_input_channels": 4},
        mask_decoder_config={**small, "iou_head_hidden_dim": 16},
    )
    SamModel(config).save_pretrained(tmp_path / "sam")
    processor = SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 32})
    SamProcessor(processor).save_pretrained(tmp_path / "sam")
    picture = skimage.data.astronaut()[:96, :96]
    masks = propose(picture, ObjectSettings(proposals="sam", sam=str(tmp_path / "sam")))
    assert all(mask.shape == (96, 96) and mask.dtype == bool for mask in masks)
    again = propose(picture, ObjectSettings(proposals="sam", sam=str(tmp_path / "sam")))
    assert len(masks) == len(again) and all((one == other).all() for one, other in zip(masks, again, strict=True))
    with pytest.raises(BadInput, match=r"synthesis\.objects\.sam: '.*nowhere' cannot be loaded as a Segment Anything model"):
        propose(picture, ObjectSettings(proposals="sam", sam=str(tmp_path / "nowhere")))


def test_the_table_keeps_a_mask_to_the_pixel() -> None:
    for number in range(20):
        mask = generator(number, "mask").random((17, 23)) < 0.3
        mask[5, 7] = True
        row = to_row("x.png", "", mask)
        assert (to_mask(row) == mask).all() and row.image == "x.png"
