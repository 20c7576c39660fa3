"""Proposes regions that may be objects, where nobody has outlined any."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.synthesis.settings import ObjectSettings

POINTS_A_SIDE = 8  # of the grid of points that Segment Anything is asked about
SCALE = 1.2  # of felzenszwalb's k, in pixels of the side: larger segments from larger pictures


def propose(picture: Picture, settings: ObjectSettings) -> list[Mask]:
    """Proposes masks HxW of regions of an HxWx3 picture, in a fixed order."""
    if settings.proposals == "segmentation":
        return segments(picture, settings.area[0])
    if settings.proposals == "sam":
        return segment_anything(picture, settings.sam)
    return []


def segments(picture: Picture, smallest: float) -> list[Mask]:
    """Gives the segments of an efficient graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004), their rims smoothed.

    smallest: share of the picture under which a segment is merged into a neighbour.
    """
    size = len(picture)
    labels = felzenszwalb(picture, scale=SCALE * size, sigma=size / 160, min_size=max(int(smallest * size * size), 1), channel_axis=2)
    masks = []
    for place, box in enumerate(ndimage.find_objects(labels + 1)):
        if box is None:
            continue
        rows, columns = box
        if rows.start == 0 or columns.start == 0 or rows.stop == size or columns.stop == size:
            smooth = labels[box] == place  # it may be taken only where cut objects may
        else:
            smooth = ndimage.binary_fill_holes(ndimage.binary_opening(labels[box] == place))
        mask = np.zeros(labels.shape, dtype=bool)
        mask[box] = smooth
        masks.append(mask)
    return masks


def segment_anything(picture: Picture, model: str) -> list[Mask]:
    """Asks Segment Anything (Kirillov et al., ICCV 2023; transformers) at a grid of points; masks best first, none twice."""
    answer = _generator(model)(_image(picture), points_per_batch=POINTS_A_SIDE**2, points_per_crop=POINTS_A_SIDE)
    return [np.asarray(mask, dtype=bool) for mask in answer["masks"]]


def _image(picture: Picture) -> Any:
    from PIL import Image

    return Image.fromarray(picture)


@lru_cache(maxsize=1)
def _generator(model: str) -> Any:
    import torch
    from transformers import pipeline

    try:
        return pipeline("mask-generation", model=model, device="cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"synthesis.objects.sam: {model!r} is no Segment Anything model that can be loaded: {str(error).splitlines()[0]}"
        ) from error
