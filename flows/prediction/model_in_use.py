"""Find the detector, prompts and thresholds of a pipeline's current model.

This serves `--model <pipeline>[/<detector>]`, and `--model <folder>` with the folder `in-use` of another project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from changepair.flows.promotion.history import folder_of, read_current, read_recommendation
from changepair.flows.promotion.store import MeasuredAs, read_measured_as
from changepair.flows.running.places import IN_USE, SETTINGS_NAME
from changepair.flows.running.records import read_record
from changepair.flows.settings.detectors import Detectors
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import nearest, parse
from changepair.tasks.common.decoding import UNKNOWN, Intensity
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import place_of
from changepair.tasks.detectors.registry import DETECTORS, kind_of
from changepair.tasks.prediction.models import Named, of_fetched, of_pipeline
from changepair.tasks.scoring.decision import PromotionSettings, choose
from changepair.tasks.scoring.recommendation import Recommendation, Use
from changepair.tasks.scoring.results import DRAWS_NAME, read_draws

SEPARATOR = "/"  # separates a pipeline from one of its detectors


@dataclass(frozen=True)
class InUse:
    """A detector of a pipeline's current model."""

    pipeline: str
    named: Named
    which: str  # a line that names the detector and why it is used
    recommendation: Recommendation | None
    """Recommendation with prompts and thresholds. None if the user named the detector, or if an older version promoted the model."""

    @property
    def intensity(self) -> Intensity | None:
        """Intensity ranges of target pictures with more than 8 bits. None without such pictures, or if targets differ."""
        found = {use.intensity for use in self.recommendation.uses} if self.recommendation is not None else set()
        return found.pop() if len(found) == 1 and found != {UNKNOWN} else None

    def use_of(self, name: str | None) -> Use | None:
        """Find the use for --category. name: None stands for the only use.

        Returns None for an unknown category if the detector needs no prompts. Otherwise raises BadInput if no use or several match.
        """
        assert self.recommendation is not None
        use = self.recommendation.find(name)
        if use is None and (name is None or self.named.detector.needs_prompts):
            names = ", ".join(use.name for use in self.recommendation.uses)
            wrong = "has several categories" if name is None else f"has no category {name!r}, or several with this name"
            raise BadInput(f"{self.pipeline}: {wrong}; choose one with --category ({names}), or give your own prompts with --prompt")
        return use

    def prompts_of(self, use: Use) -> list[bytes]:
        """Read the prompt files of a use. Raises BadInput if one is missing, or changed after the threshold was set."""
        return [self._read(prompt.image, prompt.sha256) for prompt in use.prompts]

    def _read(self, image: str, sha256: str) -> bytes:
        about, own = f"{image}: prompt of {self.pipeline}", "or give your own prompts with --prompt"
        try:
            data = place_of(image).read_bytes()
        except (OSError, ValueError) as error:
            raise BadInput(f"{about} cannot be read ({error}); fetch it with `dvc pull`, {own}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadInput(f"{about} has changed since the threshold was set; run `changepair retrain {self.pipeline}`, {own}")
        return data


def model_in_use(model: str) -> InUse:
    """Find the detector of `<pipeline>`, as recommended, or of `<pipeline>/<detector>`.

    Raises BadInput if the pipeline has no current model or no such detector, or if files are missing.
    """
    pipeline, _, wanted = model.partition(SEPARATOR)
    folder = folder_of(pipeline) / IN_USE
    current = read_current(pipeline)
    if current is None:
        raise BadInput(f"{pipeline}: has no current model; run `changepair retrain {pipeline}`")
    if not (folder / SETTINGS_NAME).is_file():
        raise BadInput(f"{folder}: is missing; fetch the current model with `dvc pull {folder}.dvc`")
    detectors = _detectors(read_measured_as(pipeline), pipeline, folder)
    if wanted and wanted not in detectors:
        raise BadInput(f"{model}: {pipeline} has no detector {wanted!r}{nearest(wanted, detectors)}")
    recommendation = None if wanted else read_recommendation(folder)
    if wanted:
        name, why = wanted, ""
    else:
        known = read_pipelines().pipelines.get(pipeline) if recommendation is None else None
        name, why = _chosen(detectors, folder, recommendation, known.promotion if known is not None else PromotionSettings())
    if not name:
        raise BadInput(f"{folder}: metrics do not show which detector is best; choose one with --model {pipeline}{SEPARATOR}<detector>")
    if name not in detectors:
        raise BadInput(f"{folder}: the current model has no detector {name!r}; restore it with `dvc checkout --force {folder}.dvc`")
    which = f"{pipeline}: {name} of the current model {current.candidate[:8]}{why}"
    return InUse(pipeline, of_pipeline(name, detectors, folder), which, recommendation)


def model_of_project(folder: Path) -> InUse:
    """Find the detector of a folder `in-use` from another project, fetched for example with `dvc get`.

    Raises BadInput if its detector reads files outside this folder, or if files are missing or damaged.
    """
    detectors = _detectors(read_record(MeasuredAs, folder / SETTINGS_NAME), folder.name, folder)
    recommendation = read_recommendation(folder)
    name, why = _chosen(detectors, folder, recommendation, PromotionSettings())
    if name not in detectors:
        raise BadInput(f"{folder}: the recommended detector is missing; fetch the folder again, or use a model folder in it")
    return InUse(str(folder), of_fetched(name, detectors, folder), f"{folder}: {name}{why}", recommendation)


def is_pipeline(model: str) -> bool:
    """Return whether this names a pipeline with a present or former current model."""
    return folder_of(model.partition(SEPARATOR)[0]).is_dir() and not Path(model).is_dir()


def _detectors(measured_as: MeasuredAs, pipeline: str, folder: Path) -> dict[str, Any]:
    where = ("pipelines", pipeline, "detectors")
    detectors: dict[str, Any] = parse(cast(Any, Detectors), measured_as.detectors, where, folder / SETTINGS_NAME)
    return detectors


def _chosen(
    detectors: Mapping[str, Any], folder: Path, recommendation: Recommendation | None, promotion: PromotionSettings
) -> tuple[str, str]:
    """Return the detector that the model uses, and why. The name is empty if metrics show none.

    promotion: settings for the choice, if an older version wrote the folder without a recommendation.
    """
    if recommendation is not None:
        detector, why = recommendation.detector, str(recommendation)
    else:
        trained = [name for name, one in detectors.items() if DETECTORS[kind_of(one)].training is not None]
        choice = choose(read_draws(folder / DRAWS_NAME), promotion, trained)
        detector, why = ("", "") if choice is None else (choice.detector, str(choice))
    return detector, f", selected from {len(detectors)} detectors ({why.removeprefix(f'{detector}, ')})" if len(detectors) > 1 else ""
