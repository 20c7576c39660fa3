"""Register the kinds of detectors, a line each. It imports no torch, so reading settings stays quick.

A detector of a pipeline has a name; `kind` in its settings says which of these it is, and defaults to the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from changepair.tasks.detectors import (
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
from changepair.tasks.training.settings import InCTRLTrainingSettings, PairTrainingSettings, TrainingSettings


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
    """Builds a detector from its settings and an encoder, or the detector that it is `upon`."""
    training: Training | None = None
    """None for one that needs none, and has no model folder."""
    upon: str | None = None
    """The kind of the detector that it adds to, which its setting `model_of` names: encoder, weights and resolution are that one's."""
    published: Published | None = None

    @property
    def module(self) -> str:
        """The module of its settings and of how it is built: what depends on this detector depends on that."""
        return self.settings.__module__


SEGMENTATION = Training(PairTrainingSettings, "changepair.tasks.training.segmentation")
RANKING = Training(PairTrainingSettings, "changepair.tasks.training.ranking")
KIND = "kind"
"""The key of a detector's kind, in pipelines.yaml and in kits."""
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
        Training(InCTRLTrainingSettings, "changepair.tasks.training.inctrl"),
        published=Published(inctrl.PUBLISHED, inctrl.PUBLISHED_NAMES, f"{AT_THE_AUTHORS}/mala-lab/InCTRL", strict=False),
    ),
    "winclip": Kind(winclip.WinCLIPSettings, winclip.build),
}


def kind_of(settings: Any) -> str:
    """Return the kind of the detector that settings belong to."""
    return next(name for name, kind in DETECTORS.items() if type(settings) is kind.settings)


def base_of(name: str, detectors: Mapping[str, Any]) -> str:
    """Return the name of the detector that has the encoder, weights and resolution of a detector: itself, or the one it is upon.

    detectors: settings by name.
    """
    return str(getattr(detectors[name], "model_of", name))


def missing_base(name: str, detectors: Mapping[str, Any]) -> str:
    """Say what keeps a detector from being built upon the one that its `model_of` names; "" if nothing does."""
    upon, base = DETECTORS[kind_of(detectors[name])].upon, base_of(name, detectors)
    if upon is None or (base in detectors and kind_of(detectors[base]) == upon):
        return ""
    return f"model_of: expected the name of a detector of kind {upon} in the same pipeline, not {base!r}"
