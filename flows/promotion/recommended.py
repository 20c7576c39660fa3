"""Read the decision on a pipeline's model: decision.json of an evaluation, or of the current model."""

from __future__ import annotations

from pathlib import Path

from changepair.flows.running.records import read_record
from changepair.tasks.common.errors import BadInput
from changepair.tasks.scoring.recommendation import DECISION_NAME, Recommendation


def read_recommendation(folder: Path) -> Recommendation:
    """Read decision.json. Raises BadInput if the file is missing or damaged."""
    try:
        return read_record(Recommendation, folder / DECISION_NAME)
    except BadInput as error:
        raise BadInput(f"{error}; get it again with `dvc checkout --force`, or run `changepair retrain`") from error
