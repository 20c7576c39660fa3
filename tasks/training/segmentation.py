"""Trains what segments a query against its prompt, on change pairs: pixel-wise binary cross-entropy, AdamW (MetaUAS, arXiv 2505.09265,
section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.training.on_pairs import PairTask, train_on_pairs
from changepair.tasks.training.step import Batch


class SegmentationCourse(PairTask):
    """Queries and prompts in, logits out, held against the masks."""

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        return F.binary_cross_entropy_with_logits(model(query, prompt).float(), mask)


train = partial(train_on_pairs, SegmentationCourse)
