"""Reads COCO's instances (https://cocodataset.org/#format-data): polygons, and masks run-length encoded, compressed or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from tasks.common.errors import BadInput
from tasks.common.pictures import Mask
from tasks.ingestion.objects.table import Annotated, Refused


def read_coco(file: Path) -> Iterator[Annotated | Refused]:
    """Yields every object of an instances file, in its order. Crowds are refused: they are many objects in one mask.

    Raises BadInput if the file is not of that format.
    """
    try:
        content = json.loads(file.read_bytes())
        images = {image["id"]: image for image in content["images"]}
        labels = {category["id"]: str(category["name"]) for category in content.get("categories", ())}
        annotations = content["annotations"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file}: not COCO's instances, which have images, categories and annotations ({type(error).__name__}: {error})"
        ) from error
    for annotation in annotations:
        item = f"annotation {annotation.get('id')}"
        image = images.get(annotation.get("image_id"))
        if image is None:
            yield Refused(item, f"its image_id {annotation.get('image_id')!r} is not among the images")
        elif annotation.get("iscrowd"):
            yield Refused(item, "a crowd, not an object")
        else:
            try:
                mask = _mask(annotation["segmentation"], int(image["height"]), int(image["width"]))
            except Exception as error:  # the decoder raises anything on what is no segmentation
                yield Refused(item, f"its segmentation cannot be read ({' '.join(str(error).split()) or type(error).__name__})")
            else:
                yield Annotated(str(image["file_name"]), labels.get(annotation.get("category_id"), ""), mask)


def _mask(segmentation: Any, height: int, width: int) -> Mask:
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("no polygon in it")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
        compressed = isinstance(segmentation["counts"], (str, bytes))
        encoded = segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(encoded) > 0
