"""Train a detector that segments a query against its prompt, on change pairs.

The loss is pixel-wise binary cross-entropy, the optimizer AdamW (MetaUAS, arXiv 2505.09265, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.training.step import Batch
from changepair.tasks.training.task import PairTask, train_on_pairs


class SegmentationTask(PairTask):
    """Train on change pairs with pixel-wise binary cross-entropy."""

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        *pairs, mask = batch  # pictures of query and prompt, or their maps
        return F.binary_cross_entropy_with_logits(model(*pairs).float(), mask)


train = partial(train_on_pairs, SegmentationTask)
