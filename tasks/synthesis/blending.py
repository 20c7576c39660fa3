"""Blend pasted objects into a picture by solving Poisson's equation (Perez et al., "Poisson image editing", SIGGRAPH 2003).

cv2.seamlessClone solves it in the box around the object, and changes pixels outside of the object by up to 200 levels. Here the pixels
outside of the region are fixed, so the mask of the change is exact.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu

from changepair.tasks.common.pictures import Mask, Picture

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
TIE = 1e-6  # levels added before rounding. Machines differ by 1e-12, which would round a tie up or down


def inner(region: Mask, top: int, left: int, height: int, width: int) -> Mask:
    """Return the pixels of a region (H, W) whose four neighbours all lie in a box, or outside of the picture. The box may reach outside."""
    box = np.zeros_like(region)
    box[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    return region & ndimage.binary_erosion(box, border_value=1)


def poisson_blend(picture: Picture, layer: Picture, region: Mask, *, mixed: bool = False) -> Picture:
    """Continue a picture (H, W, 3) into a region (H, W) with the differences between the pixels of a layer (H, W, 3).

    The result has the layer's detail, and the picture's colours at the region's rim (eq. 7 and 11). Pixels outside of the region are
    unchanged. The layer is read in the region and one pixel around it. With `mixed`, each difference is the larger one of layer and picture
    (eq. 13), so the picture's detail shows through. A region that covers the picture has no rim, so the layer is returned.
    """
    if region.all() or not region.any():
        return np.where(region[..., None], layer, picture)
    height, width = region.shape
    y, x = np.nonzero(region)
    place = np.full(region.shape, -1)
    place[y, x] = np.arange(len(y))
    count, wanted = np.zeros(len(y)), np.zeros((len(y), 3))
    rows, columns = [], []
    before, above = picture.astype(np.float64), layer.astype(np.float64)
    for down, right in NEIGHBOURS:
        near_y, near_x = y + down, x + right
        inside = np.flatnonzero((near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width))
        near, here = (near_y[inside], near_x[inside]), (y[inside], x[inside])
        steps = above[here] - above[near]
        if mixed:
            other = before[here] - before[near]
            steps = np.where(np.abs(other) > np.abs(steps), other, steps)
        unknown = place[near] >= 0
        count[inside] += 1
        wanted[inside] += steps + before[near] * ~unknown[:, None]
        rows.append(inside[unknown])
        columns.append(place[near][unknown])
    row, column = np.concatenate(rows), np.concatenate(columns)
    links = sparse.csc_array((np.full(len(row), -1.0), (row, column)), shape=(len(y), len(y)))
    solved = splu((links + sparse.diags_array(count)).tocsc(), permc_spec="MMD_AT_PLUS_A").solve(wanted)
    blended = picture.copy()
    blended[y, x] = np.clip(np.floor(solved + 0.5 + TIE), 0, 255).astype(np.uint8)
    return blended
