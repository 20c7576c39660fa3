"""Defines how each detector is trained, as pipelines.yaml asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName
from changepair.tasks.encoders.settings import Resolution


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of every training. The defaults are the MetaUAS paper's (arXiv 2505.09265, section 4.1)."""

    __pydantic_config__ = STRICT

    seed: Annotated[int, Between(0, None)] = 0
    """Of the weights and of the order of examples."""
    epochs: Annotated[int, Between(1, None)] = 30
    """How often every example is learnt from."""
    batch_size: Annotated[int, Between(1, None)] = 128
    """Pairs or pictures a step, over all processes."""
    learning_rate: Annotated[float, Between(0, 1)] = 1e-4
    """AdamW's."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """Of the learning rate: cosine falls to 0 over the whole training; one-cycle rises from a 25th over the first 30 %, then falls to 0."""
    warm_up: Annotated[float, Between(0, 0.5)] = 0.0
    """Share of the steps over which the learning rate rises from 0, before its schedule."""
    weight_decay: Annotated[float, Between(0, 1)] = 5e-4
    """AdamW's."""
    largest_gradient: Annotated[float, Between(0, None)] | None = None
    """Norm that gradients are clipped to; null for none."""
    average: Annotated[float, Between(0, 0.99999)] = 0.0
    """Decay a step of the running mean of the weights and of the batch statistics, which is what is measured and kept; 0 for none."""
    keep: Literal["last", "best"] = "last"
    """The model after the last epoch, or after the one with the lowest loss on held-out examples."""
    patience: Annotated[int, Between(1, None)] | None = None
    """Epochs without a lower loss on held-out examples, after which training ends early; null to go to the end."""
    init: Annotated[str, FileName()] | None = None
    """What to start from: a model folder, such as data/models/<pipeline>/in-use/<detector>, or `packaged`; null to start at random."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """What accelerate computes in: `no` is float32, `auto` bfloat16 where the device multiplies it in hardware, else float32."""
    compile: bool | None = None
    """Whether torch.compile makes the network faster, which takes it minutes; null for where that pays: on one GPU, from 2,000 steps on."""
    log_every: Annotated[int, Between(1, None)] = 10
    """Steps between two lines of the training log."""
    checkpoint_every: Annotated[int, Between(1, None)] = 100
    """Steps between two checkpoints."""

    @property
    def learns_from(self) -> Literal["auxiliary", "pairs"]:
        """The pipeline's change pairs, or its auxiliary datasets with their labels."""
        return "pairs"


@dataclass(frozen=True)
class PairTrainingSettings(TrainingSettings):
    """Of those that learn from change pairs alone."""

    resolution: Resolution | None = None
    """Pixels a side that pairs are learnt from at; null for the detector's own."""
