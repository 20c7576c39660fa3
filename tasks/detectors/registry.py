"""Registers the detectors by name, as pipelines.yaml calls them: a line each. No torch: reading it stays quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.detectors import (
    inctrl,
    metauas,
    metauas_plus,
    metric_residual,
    multi_scale_residual,
    patch_residual,
    prompt_query,
    subspace,
    winclip,
)
from tasks.training.settings import InCTRLTrainingSettings, PairTrainingSettings, TrainingSettings


@dataclass(frozen=True)
class Training:
    """The training of a detector."""

    settings: type[TrainingSettings]
    module: str
    """Its `train` trains. By name, as it needs torch, and as scores do not depend on how a model was trained."""


@dataclass(frozen=True)
class Published:
    """A detector's checkpoint as its authors published it."""

    settings: Any
    names: tuple[tuple[str, str], ...]
    """What a tensor's name starts with, theirs and ours."""
    home: str
    strict: bool = True
    """Whether a surplus tensor is a fault; where the authors' own loader passes over it, it is none."""


@dataclass(frozen=True)
class Kind:
    """A detector: its settings, how it is built, trained and imported."""

    settings: type[Any]
    build: Callable[[Any, Any], Any]
    """Settings and an encoder (or the detector that it is `upon`) to a detector."""
    training: Training | None = None
    """None for one that needs none, and has no model folder."""
    upon: str | None = None
    """The detector of the same pipeline that it adds to: encoder, weights and resolution are that one's."""
    published: Published | None = None

    @property
    def module(self) -> str:
        """The module of its settings and of how it is built: what depends on this detector depends on that."""
        return self.settings.__module__


SEGMENTATION = Training(PairTrainingSettings, "tasks.training.segmentation")
RANKING = Training(PairTrainingSettings, "tasks.training.ranking")
AT_THE_AUTHORS = "the authors' checkpoint, linked from https://github.com"
DETECTORS: dict[str, Kind] = {
    "patch-residual": Kind(patch_residual.PatchResidualSettings, patch_residual.build),
    "metric-residual": Kind(metric_residual.MetricResidualSettings, metric_residual.build, RANKING),
    "multi-scale-residual": Kind(multi_scale_residual.MultiScaleResidualSettings, multi_scale_residual.build, RANKING),
    "subspace": Kind(subspace.SubspaceSettings, subspace.build),
    "metauas": Kind(
        metauas.MetaUASSettings,
        metauas.build,
        SEGMENTATION,
        published=Published(metauas.PUBLISHED, metauas.PUBLISHED_NAMES, f"{AT_THE_AUTHORS}/gaobb/MetaUAS"),
    ),
    "prompt-query": Kind(prompt_query.PromptQuerySettings, prompt_query.build, SEGMENTATION),
    "metauas+": Kind(metauas_plus.MetaUASPlusSettings, metauas_plus.build, upon="metauas"),
    "inctrl": Kind(
        inctrl.InCTRLSettings,
        inctrl.build,
        Training(InCTRLTrainingSettings, "tasks.training.inctrl"),
        published=Published(inctrl.PUBLISHED, inctrl.PUBLISHED_NAMES, f"{AT_THE_AUTHORS}/mala-lab/InCTRL", strict=False),
    ),
    "winclip": Kind(winclip.WinCLIPSettings, winclip.build),
}


def name_of(settings: Any) -> str:
    """Names the detector that settings are of."""
    return next(name for name, kind in DETECTORS.items() if type(settings) is kind.settings)
