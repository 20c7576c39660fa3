"""Find the detector that `--model` names where it is a pipeline's, and how the pipeline's model in use is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flows.promotion.history import SETTINGS_NAME, folder_of, read_current
from flows.promotion.recommended import read_recommendation
from flows.promotion.store import read_measured_as
from flows.running.places import IN_USE
from flows.settings.pipelines import Detectors, read_pipelines
from flows.settings.reader import nearest, parse
from tasks.common.decoding import FULL, Intensity
from tasks.common.errors import BadInput
from tasks.common.places import place_of
from tasks.detectors.registry import DETECTORS
from tasks.prediction.models import Named, of_pipeline
from tasks.scoring.decision import PromotionSettings, choose
from tasks.scoring.recommendation import Recommendation, Use
from tasks.scoring.results import DRAWS_NAME, read_draws

SEPARATOR = "/"
"""Between a pipeline and one of its detectors."""


@dataclass(frozen=True)
class InUse:
    """A detector of a pipeline's model in use."""

    pipeline: str
    named: Named
    which: str
    """Which detector it is, in a line."""
    recommendation: Recommendation | None
    """Its prompts and thresholds; None for a detector that the user named, and for a model that an older version promoted."""

    @property
    def intensity(self) -> Intensity | None:
        """The range by which the targets' pictures of more than 8 bits were scaled; None where there are none, or several ranges."""
        found = {use.intensity for use in self.recommendation.uses} if self.recommendation is not None else set()
        return found.pop() if len(found) == 1 and found != {FULL} else None

    def use_of(self, name: str | None) -> Use | None:
        """Find the use that --category names; None names the only one. Raises BadInput if there is no such, or there are several.

        None for a category that only a detector without prompts can be told.
        """
        assert self.recommendation is not None
        use = self.recommendation.find(name)
        if use is None and (name is None or self.named.detector.needs_prompts):
            names = ", ".join(use.name for use in self.recommendation.uses)
            wrong = "has several categories" if name is None else f"has no category {name!r}, or several of that name"
            raise BadInput(f"{self.pipeline}: {wrong}; choose one with --category: {names}. Or give prompts of your own with --prompt")
        return use

    def prompts_of(self, use: Use) -> list[bytes]:
        """Read the prompts of a use. Raises BadInput if one is missing, or is another picture than when the threshold was set."""
        return [self._read(prompt.image, prompt.sha256) for prompt in use.prompts]

    def _read(self, image: str, sha256: str) -> bytes:
        try:
            data = place_of(image).read_bytes()
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{image}: a prompt of {self.pipeline}, and cannot be read ({error}); get it with `dvc pull`, or give prompts of your own "
                "with --prompt"
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadInput(
                f"{image}: a prompt of {self.pipeline} that has changed since its threshold was set; run `changepair retrain "
                f"{self.pipeline}`, or give prompts of your own with --prompt"
            )
        return data


def model_in_use(model: str) -> InUse:
    """Find the detector of `<pipeline>`, which its decision says, or of `<pipeline>/<detector>`.

    Raises BadInput if the pipeline has no model in use, no such detector, or the files are not here.
    """
    pipeline, _, wanted = model.partition(SEPARATOR)
    folder = folder_of(pipeline) / IN_USE
    current = read_current(pipeline)
    if current is None:
        raise BadInput(f"{pipeline}: no model of it is in use; `changepair retrain {pipeline}` makes one")
    if not (folder / SETTINGS_NAME).is_file():
        raise BadInput(f"{folder}: not here; get the model in use with `dvc pull {folder}.dvc`")
    detectors: Any = parse(
        cast(Any, Detectors), read_measured_as(pipeline).detectors, ("pipelines", pipeline, "detectors"), folder / SETTINGS_NAME
    )
    if wanted and wanted not in detectors:
        raise BadInput(f"{model}: {pipeline} has no detector {wanted!r}{nearest(wanted, detectors)}")
    recommendation = None if wanted else read_recommendation(folder)
    name, why = _chosen(pipeline, detectors, folder, recommendation) if not wanted else (wanted, "")
    if name not in detectors:
        raise BadInput(f"{folder}: the model in use has no detector {name!r}; get it again with `dvc checkout --force {folder}.dvc`")
    which = f"{pipeline}: {name} of model {current.candidate[:8]}{why}"
    return InUse(pipeline, of_pipeline(name, detectors, folder), which, recommendation)


def is_pipeline(model: str) -> bool:
    """Tell whether a pipeline has, or had, a model in use by that name."""
    return folder_of(model.partition(SEPARATOR)[0]).is_dir() and not Path(model).is_dir()


def _chosen(pipeline: str, detectors: Mapping[str, Any], folder: Path, recommendation: Recommendation | None) -> tuple[str, str]:
    """Give the detector that the model is used by, and why."""
    if recommendation is not None:
        detector, why = recommendation.detector, str(recommendation)
    else:
        known = read_pipelines().pipelines.get(pipeline)
        settings = known.promotion if known is not None else PromotionSettings()
        trained = [name for name in detectors if DETECTORS[name].training is not None]
        choice = choose(read_draws(folder / DRAWS_NAME), settings, trained)
        detector, why = ("", "") if choice is None else (choice.detector, str(choice))
    if not detector:
        raise BadInput(f"{folder}: no metric tells which detector is the best; name one: {pipeline}{SEPARATOR}<detector>")
    return detector, f", chosen of its {len(detectors)} detectors ({why})"
