"""Finds the detector that `--model` names where it is a pipeline's: of the model that the pipeline has in use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flows.promotion.history import SETTINGS_NAME, folder_of, read_current
from flows.promotion.store import read_measured_as
from flows.running.places import IN_USE
from flows.settings.pipelines import Detectors, read_pipelines
from flows.settings.reader import nearest, parse
from tasks.common.errors import BadInput
from tasks.detectors.registry import DETECTORS
from tasks.prediction.models import Named, of_pipeline
from tasks.scoring.decision import PromotionSettings, choose
from tasks.scoring.results import DRAWS_NAME, read_draws

SEPARATOR = "/"
"""Between a pipeline and one of its detectors."""


def model_in_use(model: str) -> tuple[Named, str]:
    """Gives the detector of `<pipeline>`, the one that `choose` chooses, or of `<pipeline>/<detector>`; and says in a line which.

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
    name, why = (wanted, "") if wanted else _chosen(pipeline, detectors, folder)
    return of_pipeline(name, detectors, folder), f"{pipeline}: {name} of model {current.candidate[:8]}{why}"


def is_pipeline(model: str) -> bool:
    """Tells whether a pipeline has, or had, a model in use by that name."""
    return folder_of(model.partition(SEPARATOR)[0]).is_dir() and not Path(model).is_dir()


def _chosen(pipeline: str, detectors: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Gives the detector that the model is used by, and says why it is."""
    known = read_pipelines().pipelines.get(pipeline)
    settings = known.promotion if known is not None else PromotionSettings()
    trained = [name for name in detectors if DETECTORS[name].training is not None]
    choice = choose(read_draws(folder / DRAWS_NAME), settings, trained)
    if choice is None:
        raise BadInput(f"{folder}: no {settings.figure} was measured, so name one of its detectors: <pipeline>{SEPARATOR}<detector>")
    return choice.detector, f", chosen of its {len(detectors)} detectors by their figures on its targets ({choice})"
