"""Train UniADet on change pairs.

Its learned parts see no prompt, so they learn what is odd about a single picture. The two pictures of a pair teach it: they show the same
place or texture, and one of them has the artefact. The loss has two parts, and each has its own weights:

1. Pictures: the one with the artefact must score above the other, in each map (RankNet, Burges et al., ICML 2005). The paper has
   cross-entropy. Within a pair, the content of the photograph cancels out. In a cross-entropy it does not.
2. Patches: focal loss (Lin et al., ICCV 2017, gamma 2) plus dice loss, in each map, as in the paper (arXiv 2601.05552).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from changepair.tasks.detectors.detector import upsample
from changepair.tasks.synthesis.changes import UNCHANGED
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.shards import PairRow
from changepair.tasks.training.step import Batch
from changepair.tasks.training.task import PairTask, train_on_pairs

GAMMA = 2.0
IN_NEITHER, IN_QUERY, IN_PROMPT, UNKNOWN = range(4)


class PairsWithPlace(Dataset[tuple[Tensor, Tensor, Tensor, int]]):
    """Change pairs with the picture that has the artefact: IN_NEITHER, IN_QUERY, IN_PROMPT, or UNKNOWN for distractors.

    Training draws the roles of query and prompt at random, and the mask alone does not tell them.
    """

    def __init__(self, pairs: ChangePairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        return *self.pairs[index], place_of_artefact(self.pairs.rows[index])


def place_of_artefact(row: PairRow) -> int:
    """Tell which picture of a pair has the artefact. A distractor may have one in both, at places that no mask shows."""
    if row.kind in UNCHANGED:
        return IN_NEITHER if row.kind == "none" else UNKNOWN
    return IN_PROMPT if row.swapped else IN_QUERY


class OddityTask(PairTask):
    def examples(self, epoch: int) -> Dataset[Any]:
        return PairsWithPlace(self.training)

    def held_out(self) -> Dataset[Any] | None:
        return PairsWithPlace(self.measured) if len(self.measured) else None

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask, place = batch
        of_pictures, of_patches = model(torch.cat([query, prompt]))
        own = torch.where((place == IN_QUERY)[:, None, None], mask, torch.zeros_like(mask))  # a swapped pair's query has no artefact
        maps = [upsample(logits[: len(query)].float(), tuple(mask.shape[-2:])) for logits in of_patches]
        by_patch = torch.stack([focal_loss(logits, own) + dice_loss(logits.sigmoid(), own) for logits in maps]).sum(dim=0)
        of_query, of_prompt = of_pictures.float().chunk(2)
        return (ranking_loss(of_query, of_prompt, place) + by_patch * (place != UNKNOWN)).mean()


def ranking_loss(queries: Tensor, prompts: Tensor, place: Tensor) -> Tensor:
    """Return the loss (B,) of logits (B, L) of pairs, averaged over the L maps. It is 0 unless one picture alone has an artefact."""
    higher = torch.where((place == IN_QUERY)[:, None], queries - prompts, prompts - queries)
    return F.softplus(-higher).mean(dim=1) * ((place == IN_QUERY) | (place == IN_PROMPT))


def focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean over pixels of −(1 − p)^γ log p, where p is the probability of the correct label: (B,), for (B, H, W)."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return ((1.0 - torch.exp(-entropy)) ** GAMMA * entropy).mean(dim=(-2, -1))


def dice_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """Return 1 − (2·Σpm + 1) / (Σp + Σm + 1), (B,), of probabilities and masks (B, H, W). 1 pixel is added, so empty masks have a value."""
    both, either = ((maps * masks).sum(dim=(-2, -1)), (maps + masks).sum(dim=(-2, -1)))
    return 1.0 - (2.0 * both + 1.0) / (either + 1.0)


train = partial(train_on_pairs, OddityTask)
