"""Settings of InCTRL and of its training, and how the authors' checkpoints name its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import Between, FileName, NonEmpty
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.encoders.settings import NATURAL, OF_THE_MODEL, EncoderSettings, Resolution, Stages
from changepair.tasks.training.settings import TrainingSettings


@dataclass(frozen=True)
class InCTRLSettings(TrainedSettings):
    """The defaults are the paper's."""

    model: Annotated[str, FileName()] | None = None
    """A model to use as it is: a folder, such as `changepair import inctrl` writes, or `packaged`; null to train one."""
    encoder: EncoderSettings = EncoderSettings("open_clip", "ViT-B-16-plus-240", "laion400m_e32", (7, 9, 11))
    """What turns pictures, and for the prior texts, into features."""
    resolution: Resolution = 240
    """Pixels a side that pictures are trained on and scored at; with holistic `patches` its head has an input a patch of them."""
    stages: Stages = ()
    """Of the encoder's maps, 1 the finest; [] for the last three."""
    holistic: Literal["patches", "quantiles"] = "patches"
    """What the holistic head sees of a picture's residuals: each patch's in its place, as in the paper; or their quantiles and mean, which
    depend on no place and no resolution."""
    texts: bool = True
    """Whether the text prior counts; only encoders of open_clip read texts."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects: for them normal means that one is there, in one sentence."""

    def __post_init__(self) -> None:
        if self.texts and self.encoder.library != "open_clip":
            raise ValueError(f"texts: false, as {self.encoder.name} of {self.encoder.library} reads no texts, not true")


@dataclass(frozen=True)
class InCTRLTrainingSettings(TrainingSettings):
    """The defaults are the InCTRL paper's (arXiv 2403.06495, section 4.1)."""

    epochs: Annotated[int, Between(1, None)] = 10
    """How often every example is learnt from."""
    batch_size: Annotated[int, Between(2, None)] = 48
    """Pictures a step, over all processes; half of them anomalous."""
    learning_rate: Annotated[float, Between(0, 1)] = 1e-3
    """AdamW's."""
    weight_decay: Annotated[float, Between(0, 1)] = 1e-2
    """AdamW's."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Of the adapter and the heads, which are small."""
    examples: Literal["auxiliary", "pairs"] = "auxiliary"
    """What it learns from: the pipeline's auxiliary datasets, with their labels, or its change pairs, where no anomaly was ever seen."""
    held_out: Annotated[float, Between(0, 0.5)] = 0.05
    """Share of the labelled pictures that is never trained on and measured after every epoch; pairs have their own, synthesis.held_out."""
    shots: Annotated[int, Between(1, 64)] = 2
    """Normal prompts of each auxiliary picture, drawn anew every epoch."""
    views: Annotated[tuple[int, ...], Between(1, 64), NonEmpty()] = (1,)
    """How many views of its prompt a pair's query is held against, drawn for each pair among these: the prompt as it came, and others in
    another geometry and light. A detector that is used with several prompts learns what their residuals are like."""

    @property
    def learns_from(self) -> Literal["auxiliary", "pairs"]:
        return self.examples


SCORING = ("resolution",)  # settings that no weight depends on, but with holistic `patches` the size of a head
PUBLISHED = InCTRLSettings(encoder=EncoderSettings("open_clip", "ViT-B-16-plus-240", OF_THE_MODEL, (7, 9, 11)), tiles=(1, 1))
"""As github.com/mala-lab/InCTRL publishes it: there is one for 2, 4 and 8 shots."""
HEAD_LAYERS = (
    ("projection1", "first"),
    ("projection2", "second"),
    ("projection3", "last"),
    ("bn1", "input_norm"),
    ("bn2", "first_norm"),
    ("bn3", "second_norm"),
)
# What a tensor's name starts with, theirs and ours.
PUBLISHED_NAMES = (
    ("adapter.fc.", "adapter."),
    *(
        (f"{theirs}.{layer}.", f"{ours}.{name}.")
        for theirs, ours in (("diff_head_ref", "image_head"), ("diff_head", "holistic_head"))
        for layer, name in HEAD_LAYERS
    ),
    ("", "encoder.network."),  # all the rest is open_clip's
)
