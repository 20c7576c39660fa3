"""Read COCO's instances (https://cocodataset.org/#format-data): polygons, and run-length encoded masks, compressed or not."""

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
    """Yield every object of an instances file, in its order. Crowds are rejected. Raises BadInput if the file is not of that format."""
    content = read_json(file)
    try:
        images = {image["id"]: image for image in content["images"]}
        labels = {category["id"]: str(category["name"]) for category in content.get("categories", ())}
        annotations = [dict(annotation) for annotation in content["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{file}: not COCO's instances, which need images, categories and annotations ({type(error).__name__}: {in_short(error)})"
        ) from error
    for annotation in annotations:
        item = f"annotation {annotation.get('id')}"
        try:
            image = images.get(annotation.get("image_id"))
        except TypeError:  # a list or an object, which cannot be an id
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
            except Exception as error:  # the decoder may raise anything on an invalid segmentation
                found = Refused(item, f"its segmentation cannot be read ({in_short(error)})")
            yield found


def _mask(segmentation: Any, height: int, width: int) -> Mask:
    """Decode a segmentation. Values that would make the library access memory beyond its own are checked first."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"its image is {width}x{height} pixels: expected at least 1 and at most {MAX_PIXELS:,} in total")
    if isinstance(segmentation, list):
        polygons = [_polygon(polygon, height, width) for polygon in segmentation]
        if not polygons:
            raise ValueError("it has no polygon")
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))) > 0
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, but the image's is {[height, width]}")
    counts = segmentation["counts"]
    runs = [int(run) for run in counts] if isinstance(counts, list) else _runs(counts.encode() if isinstance(counts, str) else counts)
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its runs cover {sum(runs):,} pixels, but the image has {height * width:,}")
    # Runs go column by column. Each has the other value than the run before, and the first has 0.
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Return a polygon's corners as x, y, x, y, …. They may lie beyond the image's border by at most the image's size."""
    corners = [float(number) for number in polygon]
    if len(corners) < 6 or len(corners) % 2:
        raise ValueError(f"a polygon has {len(corners)} numbers; expected x and y of at least three corners")
    for place, number in enumerate(corners):
        side = (width, height)[place % 2]
        if not -side <= number <= 2 * side:
            raise ValueError(f"a polygon's corner is at {number:g}, but the image is {width}x{height}")
    return corners


def _runs(compressed: bytes) -> list[int]:
    """Read COCO's compressed run lengths (rleFrString in its maskApi.c).

    Each character holds five bits, the lowest first, and a sixth bit that tells whether more follow. From the third run on, each value is a
    difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in compressed:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths contain the invalid character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are truncated")
    return runs
