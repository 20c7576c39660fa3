"""Whether one file found can be used: opens it, decodes it whole, measures it, and holds its mask against it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.files import sha256
from tasks.ingestion.folder import Found, Rejected
from tasks.ingestion.manifest import ANOMALOUS, NORMAL

MAX_PIXELS = 100_000_000
"""The most a picture may hold, in pixels (10,000 x 10,000, 300 MB decoded). A larger one is taken for a decompression bomb."""


def check(found: Found, dataset: str, licence: str) -> dict[str, Any] | Rejected:
    """The manifest row of a picture (manifest.SCHEMA), or why it is left out."""
    reason, size = _fault(found.image)
    if reason:
        return Rejected(found.image, reason)
    if found.mask is not None:
        reason = _mask_fault(found.mask, size)
        if reason:
            return Rejected(found.image, reason)
    return {
        "image": found.image.as_posix(),
        "sha256": sha256(found.image),
        "height": size[1],
        "width": size[0],
        "dataset": dataset,
        "category": found.category,
        "split": found.split,
        "label": NORMAL if found.defect == "good" else ANOMALOUS,
        "defect": found.defect,
        "mask": found.mask.as_posix() if found.mask is not None else None,
        "licence": licence,
    }


def _fault(file: Path) -> tuple[str | None, tuple[int, int]]:
    """What is wrong with a picture file (None if nothing), and its width and height in pixels."""
    if file.stat().st_size == 0:
        return "the file is empty (0 bytes)", (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides, below
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    return f"{width}x{height} pixels when decoded, over the {MAX_PIXELS:,} allowed: a decompression bomb?", (0, 0)
                image.load()
    except Image.DecompressionBombError:
        return f"over the {MAX_PIXELS:,} pixels allowed when decoded: a decompression bomb?", (0, 0)
    except Exception as error:  # a decoder may raise anything on hostile bytes
        detail = " ".join(str(error).split()).replace(str(file), file.name)
        return f"cannot be decoded, so it is truncated or no picture ({detail or type(error).__name__})", (0, 0)
    return None, (width, height)


def _mask_fault(mask: Path, size: tuple[int, int]) -> str | None:
    if not mask.is_file():
        return f"has no mask {mask.parent.name}/{mask.name}, though its category has ground_truth"
    reason, mask_size = _fault(mask)
    if reason:
        return f"its mask {mask.name}: {reason}"
    if mask_size != size:
        return f"its mask {mask.name} is {mask_size[0]}x{mask_size[1]} pixels, the picture {size[0]}x{size[1]}"
    with Image.open(mask) as image:
        if not np.asarray(image.convert("L")).any():
            return f"its mask {mask.name} marks nothing"
    return None
