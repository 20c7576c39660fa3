"""Export pairs as COCO instances: `annotations/instances_<split>.json`, and the pictures in `<split>/`.

An image is a query, and `prompt_file_name` names its prompt. A pair with a mask has one annotation, whose segmentation is COCO's compressed
run-length encoding. A category is a kind of change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from changepair.tasks.common.pictures import Mask
from changepair.tasks.ingestion.objects.table import box_of
from changepair.tasks.pairs.export import Written
from changepair.tasks.pairs.reading import SPLITS, PairsFolder, split_of


def write(pairs: PairsFolder, out: Path) -> Written:
    """Write the pictures of the shards unchanged, and the annotations of each split that has pairs."""
    categories = {kind: number for number, kind in enumerate(pairs.kinds, 1)}
    counts = {}
    for split in SPLITS:
        rows = [row for row in pairs.rows if split_of(row) == split]
        if not rows:
            continue
        folder = out / split
        folder.mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for pair in pairs.read(rows):
            row, mask = pair.row, pair.arrays[2]
            names = {"file_name": f"{row.key}.query.png", "prompt_file_name": f"{row.key}.prompt.png"}
            for name, content in zip(names.values(), (pair.query, pair.prompt), strict=True):
                (folder / name).write_bytes(content)
            number = len(images) + 1
            images.append({"id": number, "height": mask.shape[0], "width": mask.shape[1], **names, "pair": _about(asdict(row))})
            if mask.any():
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": categories[row.kind], **_region(mask)})
        described = {
            "info": {"description": f"change pairs: {pairs.name}, {split}"},
            "licenses": [],
            "categories": [{"id": number, "name": kind, "supercategory": "change"} for kind, number in categories.items()],
            "images": images,
            "annotations": annotations,
        }
        file = out / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(described) + "\n", encoding="utf-8")
        counts[split] = len(rows)
    return Written(counts, {})


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "shard"}


def _region(mask: Mask) -> dict[str, Any]:
    """Return the segmentation, area in pixels and box (left, top, width, height) of a mask."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    top, bottom, left, right = box_of(mask)
    segmentation = {"size": [*mask.shape], "counts": encoded["counts"].decode("ascii")}
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
