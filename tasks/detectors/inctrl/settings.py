"""Define the settings of InCTRL and of its training, and map the tensor names of the authors' checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import Between, FileName, NonEmpty
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import NATURAL, OF_THE_MODEL, EncoderSettings, Resolution, Stages
from changepair.tasks.training.settings import TrainingSettings


@dataclass(frozen=True)
class InCTRLSettings(TrainedSettings):
    """Settings of InCTRL. The defaults follow the paper (Zhu and Pang, CVPR 2024, arXiv 2403.06495)."""

    model: Annotated[str, FileName()] | None = None
    """Trained model to use: a model folder, such as `changepair import inctrl` writes, or its URL. `null` trains one."""
    encoder: EncoderSettings = EncoderSettings("open_clip", "ViT-B-16-plus-240", "laion400m_e32", (7, 9, 11))
    """Network that turns pictures, and for the text prior also texts, into features. The default is the paper's CLIP with its layers 7, 9
    and 11."""
    resolution: Resolution = 240
    """Side in pixels of the square that a picture is resized to, in training and scoring. With `holistic: patches` it fixes the size of the
    holistic head, which has an input for each patch."""
    stages: Stages = ()
    """Feature maps of the encoder to compare, 1 for the finest. `[]` selects the last three."""
    holistic: Literal["patches", "quantiles"] = "patches"
    """Input of the holistic head. `patches` gives it the residual of each patch at its position, as in the paper. `quantiles` gives it the
    quantiles and the mean of the residuals, which depend on neither position nor resolution."""
    texts: bool = True
    """Whether the text prior contributes to the score. Only encoders of open_clip read texts."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects. They have no flaws, so the text prior compares a sentence for their presence with one for their
    absence (InCTRL, section 3.2)."""

    def __post_init__(self) -> None:
        if self.texts and self.encoder.library != "open_clip":
            raise ValueError(f"texts: false, because {self.encoder.name} of {self.encoder.library} reads no texts, not true")


@dataclass(frozen=True)
class InCTRLTrainingSettings(TrainingSettings):
    """Settings of InCTRL's training. The defaults follow the paper (arXiv 2403.06495, section 4.1)."""

    epochs: Annotated[int, Between(1, None)] = 10
    """Number of passes over the examples."""
    batch_size: Annotated[int, Between(2, None)] = 48
    """Pictures a step, over all processes. Half of them are anomalous."""
    learning_rate: Annotated[float, Between(0, 1)] = 1e-3
    """Learning rate of AdamW."""
    weight_decay: Annotated[float, Between(0, 1)] = 1e-2
    """Weight decay of AdamW."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision of the adapter and the heads. They are small, so float32 (`no`) costs little."""
    examples: Literal["auxiliary", "pairs"] = "auxiliary"
    """Examples to learn from. `auxiliary` uses the pipeline's auxiliary datasets with their labels. `pairs` uses its change pairs, which
    need no real anomaly."""
    held_out: Annotated[float, Between(0, 0.5)] = 0.05
    """Share of the labelled pictures that training never sees, and that the loss is measured on after every epoch. `synthesis.held_out`
    sets the share of pairs."""
    shots: Annotated[int, Between(1, 64)] = 2
    """Normal prompts for each auxiliary picture. They are drawn again every epoch."""
    views: Annotated[tuple[int, ...], Between(1, 64), NonEmpty()] = (1,)
    """Numbers of prompt views that a pair's query is compared with; each pair draws one of them. The first view is the prompt, the others
    change its geometry and light. Training with several views teaches the residuals that several prompts have."""

    @property
    def learns_from(self) -> Literal["auxiliary", "pairs"]:
        return self.examples


SCORING = ("resolution",)  # settings that no weight depends on, except that `resolution` sizes a head with holistic `patches`
PUBLISHED = InCTRLSettings(encoder=EncoderSettings("open_clip", "ViT-B-16-plus-240", OF_THE_MODEL, (7, 9, 11)), tiles=(1, 1))
"""Settings of the models at github.com/mala-lab/InCTRL. The authors publish one for each of 2, 4 and 8 shots."""
HEAD_LAYERS = (
    ("projection1", "first"),
    ("projection2", "second"),
    ("projection3", "last"),
    ("bn1", "input_norm"),
    ("bn2", "first_norm"),
    ("bn3", "second_norm"),
)
# Prefixes of tensor names, the authors' and ours.
PUBLISHED_NAMES = (
    ("adapter.fc.", "adapter."),
    *(
        (f"{theirs}.{layer}.", f"{ours}.{name}.")
        for theirs, ours in (("diff_head_ref", "image_head"), ("diff_head", "holistic_head"))
        for layer, name in HEAD_LAYERS
    ),
    ("", "encoder.network."),  # all the rest is open_clip's
)
