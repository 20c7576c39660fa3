"""Define the training settings in pipelines.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between, FileName
from changepair.tasks.encoders.settings import Resolution


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of every training. The defaults are the MetaUAS paper's (arXiv 2505.09265, section 4.1)."""

    __pydantic_config__ = STRICT

    seed: Annotated[int, Between(0, None)] = 0
    """Seed of the initial weights and of the order of examples."""
    epochs: Annotated[int, Between(1, None)] = 30
    """Number of passes over the training examples."""
    batch_size: Annotated[int, Between(1, None)] = 128
    """Pairs or pictures in each step, over all processes."""
    learning_rate: Annotated[float, Between(0, 1)] = 1e-4
    """Learning rate of AdamW."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """Schedule of the learning rate. `cosine` falls to 0 over the whole training. `one-cycle` rises from a 25th over the first 30 % of the
    steps, then falls to 0."""
    warm_up: Annotated[float, Between(0, 0.5)] = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Between(0, 1)] = 5e-4
    """Weight decay of AdamW."""
    largest_gradient: Annotated[float, Between(0, None)] | None = None
    """Norm that gradients are clipped to; null for no clipping."""
    average: Annotated[float, Between(0, 0.99999)] = 0.0
    """Decay per step of the running mean of weights and batch statistics. The mean is then the model that is evaluated and saved; 0 for no
    mean."""
    keep: Literal["last", "best"] = "last"
    """Which model is saved: after the last epoch, or after the epoch with the lowest held-out loss."""
    patience: Annotated[int, Between(1, None)] | None = None
    """Number of epochs without a lower held-out loss after which training ends early; null to train all epochs."""
    init: Annotated[str, FileName()] | None = None
    """Initial weights: a model folder, such as data/models/<pipeline>/in-use/<detector>, or `packaged`; null for random weights."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of accelerate. `no` is float32. `auto` is bfloat16 if the device multiplies it in hardware, otherwise float32."""
    compile: bool | None = None
    """Whether torch.compile compiles the network, which takes minutes; null compiles on one GPU, for 2,000 steps or more."""
    log_every: Annotated[int, Between(1, None)] = 10
    """Steps between two rows of the training log."""
    checkpoint_every: Annotated[int, Between(1, None)] = 100
    """Steps between two checkpoints."""

    @property
    def learns_from(self) -> Literal["auxiliary", "pairs"]:
        """Whether the training uses the pipeline's change pairs, or the labels of its auxiliary datasets."""
        return "pairs"


@dataclass(frozen=True)
class PairTrainingSettings(TrainingSettings):
    """Settings of a training on change pairs."""

    resolution: Resolution | None = None
    """Pixels a side of the pairs in training; null for the detector's resolution."""
