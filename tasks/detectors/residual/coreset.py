"""Select the patches of prompts that a bounded memory keeps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from changepair.tasks.common.onednn import linear
from changepair.tasks.detectors.patches import nearest_cosine
from changepair.tasks.encoders.encoder import Features

TIE = 1e-6  # difference of cosines up to which the first patch counts; the mean of two patches is equally far from both
CANDIDATES = 512  # patches that one pass over all patches compares with each other


def bounded(memory: Features, size: int) -> Features:
    """Keep at most `size` patches of each stage, of all prompts together. The memory itself is returned if no stage has more.

    `memory` is (K, C, h, w) for each stage, of unit length. A stage with more patches becomes (1, C, 1, size), one prompt.
    """
    if all(len(stage) * stage.shape[2:].numel() <= size for stage in memory):
        return memory
    kept = list[Tensor]()
    for stage in memory:
        patches = stage.movedim(1, -1).flatten(0, 2)  # (N, C)
        kept.append(stage if len(patches) <= size else patches[coreset(patches, size)].mT[None, :, None])
    return kept


@torch.no_grad()
def coreset(patches: Tensor, size: int) -> Tensor:
    """Select patches so that every patch is near a selected one: indices (size,) in the order of selection.

    Greedy selection of PatchCore (Roth et al., CVPR 2022, algorithm 1). Each step adds the patch whose highest cosine with a selected
    patch is lowest. At unit length, this is the patch at the greatest Euclidean distance. PatchCore starts with a random patch, and
    compares patches in a random projection. Here the first patch is the one farthest from the mean, all channels count, and the first of
    equal patches is taken. `patches` is (N, C), of unit length, with at least `size` patches.

    A pass over all patches selects several. Highest cosines only rise, so a candidate below the earlier value of every other patch is next.
    """
    with torch.autocast(patches.device.type, enabled=False):  # in full precision, as a cosine decides
        return _coreset(patches.float(), size)


def _coreset(patches: Tensor, size: int) -> Tensor:
    cosines = patches @ patches.mean(dim=0)
    order = [int((cosines <= cosines.amin() + TIE).int().argmax())]
    highest = _highest(patches, order)
    while len(order) < size:
        lowest = highest.topk(min(CANDIDATES + 1, len(patches)), largest=False)
        places = lowest.indices[:-1].sort().values
        found = _among(patches[places], highest[places], float(lowest.values[-1]), size - len(order))
        new = places[found].tolist() or [int(highest.argmin())]  # none if all candidates are equal to the next patch
        highest = torch.maximum(highest, _highest(patches, new))
        order += new
    return torch.tensor(order, device=patches.device)


def _highest(patches: Tensor, selected: list[int]) -> Tensor:
    """Return the highest cosine of each patch with the selected ones, (N,); infinity for these themselves."""
    highest = nearest_cosine(patches.mT[None, :, :, None], patches[selected].mT[None, :, :, None]).flatten()
    highest[selected] = torch.inf
    return highest


def _among(candidates: Tensor, highest: Tensor, limit: float, most: int) -> list[int]:
    """Select candidates one by one, at most `most`, while the lowest of their highest cosines is below the limit."""
    cosines, values = linear(candidates, candidates).cpu().numpy(), highest.cpu().numpy()
    found = list[int]()
    while len(found) < most and values[place := int(values.argmin())] < limit:
        found.append(place)
        values = np.maximum(values, cosines[place])
        values[place] = np.inf
    return found
