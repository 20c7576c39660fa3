"""Reads COCO's instances (https://cocodataset.org/#format-data): polygons, and masks run-length encoded, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from changepair.tasks.common.decoding import MAX_PIXELS
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.pictures import Mask
from changepair.tasks.common.texts import read_json
from changepair.tasks.ingestion.objects.table import Annotated, Refused


def read_coco(file: Path) -> Iterator[Annotated | Refused]:
    """Yield every object of an instances file, in its order. Crowds are refused. Raises BadInput if the file is not of that format."""
    content = read_json(file)
    try:
        images = {image["id"]: image for image in content["images"]}
        labels = {category["id"]: str(category["name"]) for category in content.get("categories", ())}
        annotations = [dict(annotation) for annotation in content["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{file}: not COCO's instances, which have images, categories and annotations ({type(error).__name__}: {in_short(error)})"
        ) from error
    for annotation in annotations:
        item = f"annotation {annotation.get('id')}"
        try:
            image = images.get(annotation.get("image_id"))
        except TypeError:  # a list or an object, which is no id
            image = None
        if image is None:
            yield Refused(item, f"its image_id {annotation.get('image_id')!r} is not among the images")
        elif annotation.get("iscrowd"):
            yield Refused(item, "a crowd, not an object")
        else:
            try:
                label = labels.get(annotation.get("category_id"), "")
                mask = _mask(annotation["segmentation"], int(image["height"]), int(image["width"]))
                found: Annotated | Refused = Annotated(str(image["file_name"]), label, mask)
            except Exception as error:  # the decoder raises anything on what is no segmentation
                found = Refused(item, f"its segmentation cannot be read ({in_short(error)})")
            yield found


def _mask(segmentation: Any, height: int, width: int) -> Mask:
    """Decode a segmentation. Values that would make the library read or write beyond its memory are checked first."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"its image is {width}x{height} pixels: at least 1, at most {MAX_PIXELS:,} in all")
    if isinstance(segmentation, list):
        polygons = [_polygon(polygon, height, width) for polygon in segmentation]
        if not polygons:
            raise ValueError("no polygon in it")
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))) > 0
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
    counts = segmentation["counts"]
    runs = [int(run) for run in counts] if isinstance(counts, list) else _runs(counts.encode() if isinstance(counts, str) else counts)
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its runs are of {sum(runs):,} pixels, the image of {height * width:,}")
    # Columns one after another, each run of the other value than the one before, the first of 0.
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Return x, y, x, y, … of a polygon's corners. They may lie beyond the image's border by at most the image's size."""
    corners = [float(number) for number in polygon]
    if len(corners) < 6 or len(corners) % 2:
        raise ValueError(f"a polygon of {len(corners)} numbers: x and y of three corners at least")
    for place, number in enumerate(corners):
        side = (width, height)[place % 2]
        if not -side <= number <= 2 * side:
            raise ValueError(f"a polygon's corner at {number:g}, of an image of {width}x{height}")
    return corners


def _runs(compressed: bytes) -> list[int]:
    """Read COCO's compressed run lengths (rleFrString in its maskApi.c): five bits a character, the lowest first, and a sixth where more
    follows. From the third run on, each is a difference to the one before the last."""
    runs: list[int] = []
    value = shift = 0
    for character in compressed:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths have the character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut off")
    return runs
