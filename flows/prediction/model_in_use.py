"""Finds the detector that `--model` names where it is a pipeline's: of the model that the pipeline has in use."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from flows.promotion.history import folder_of, read_current
from flows.promotion.store import IN_USE, SETTINGS_NAME, read_measured_as
from flows.settings.pipelines import Detectors
from flows.settings.reader import nearest, parse
from tasks.common.errors import BadInput
from tasks.prediction.models import Named, of_pipeline
from tasks.scoring.results import DRAWS_NAME, read_draws

SEPARATOR = "/"
"""Between a pipeline and one of its detectors."""
FIGURE = "image_auroc"


def model_in_use(model: str) -> tuple[Named, str]:
    """Gives the detector of `<pipeline>`, the one that was best on its targets, or of `<pipeline>/<detector>`; and says in a line which.

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
    name, why = (wanted, "") if wanted else _best(folder)
    return of_pipeline(name, detectors, folder), f"{pipeline}: {name} of model {current.candidate[:8]}{why}"


def is_pipeline(model: str) -> bool:
    """Tells whether a pipeline has, or had, a model in use by that name."""
    return folder_of(model.partition(SEPARATOR)[0]).is_dir() and not Path(model).is_dir()


def _best(folder: Path) -> tuple[str, str]:
    """Chooses the detector whose image AUROC is the highest, over all targets and shots that it was measured at."""
    figures: dict[str, list[float]] = defaultdict(list)
    for row in read_draws(folder / DRAWS_NAME):
        if row.figure == FIGURE:
            figures[row.detector].append(row.value)
    if not figures:
        raise BadInput(f"{folder}: no image AUROC was measured, so name one of its detectors: <pipeline>{SEPARATOR}<detector>")
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    best = max(means, key=lambda name: means[name])
    return best, f", the best of its {len(means)} detectors on its targets (image AUROC {100 * means[best]:.1f} %)"
