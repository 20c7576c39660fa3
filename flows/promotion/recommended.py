"""Read the decision on a pipeline's model: decision.json of an evaluation, or of the current model."""

from __future__ import annotations

from pathlib import Path

from changepair.flows.running.records import read_record
from changepair.tasks.common.errors import BadInput
from changepair.tasks.scoring.recommendation import DECISION_NAME, Recommendation


def read_recommendation(folder: Path) -> Recommendation | None:
    """Read decision.json. Return None if an older version wrote the folder, without the file.

    Raises BadInput if the file is damaged.
    """
    file = folder / DECISION_NAME
    if not file.is_file():
        return None
    try:
        return read_record(Recommendation, file)
    except BadInput as error:
        raise BadInput(f"{error}; get it again with `dvc checkout --force`, or run `changepair retrain`") from error
