"""Record a pipeline's current model and earlier decisions in `current` and `history.jsonl`, which Git tracks.

    data/models/<pipeline>/
      candidate/       one folder per detector of the last training: the outs of the train stages
      current          JSON that defines the current model: its DVC hash, commit, metrics and reason
      in-use/          files of the current model; draws.parquet and settings.json record its evaluation
      in-use.dvc       DVC's pointer to in-use/; both are made from `current`
      history.jsonl    one line per decision

`current` is the only source of truth: `settle` in store.py restores in-use/ and in-use.dvc from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from changepair.flows.running import provenance
from changepair.flows.running.places import CANDIDATE, EVALUATION, MODELS
from changepair.flows.running.records import FolderHash, Hash, Metrics, Moment, as_record, read_record
from changepair.flows.runs.journal import now
from changepair.flows.settings.pipelines import pipeline_named
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.common.texts import read_text
from changepair.tasks.scoring.recommendation import Recommendation
from changepair.tasks.scoring.results import DECISION_NAME, METRICS_NAME

CURRENT, HISTORY = "current", "history.jsonl"
Action = Literal["promoted", "kept", "rolled back"]


class Stored(NamedTuple):
    """A folder in DVC's cache."""

    hash: str
    size: int  # bytes
    files: int


@dataclass(frozen=True)
class Model:
    """Decision on a model: a line of history.jsonl. `current` contains the decision on the current model."""

    hash: FolderHash  # of in-use/; empty if the model was not promoted
    size: int  # bytes
    files: int
    candidate: Hash  # of the trained detectors, from `candidate_hash`
    commit: str
    metrics: Metrics
    reason: str
    time: Moment
    action: Action = "promoted"
    choice: str = ""  # the recommended detector, and why


def read_current(pipeline: str, checkout: Path = Path()) -> Model | None:
    """Read the record of the current model; None before the first promotion. Raises BadInput if the file is damaged."""
    file = checkout / folder_of(pipeline) / CURRENT
    return read_record(Model, file, f"restore the file from Git, or run `changepair promote {pipeline}`") if file.exists() else None


def what_is_missing(folder: Path, model: Model) -> str:
    """Describe missing files of the current model, by their number and size; "" if the folder is complete."""
    if not folder.is_dir():
        return "its files are missing"
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if (len(files), size) == (model.files, model.size):
        return ""
    return f"its files are incomplete: {len(files)} of {model.files} files, {size:,} of {model.size:,} bytes"


def read_history(pipeline: str) -> list[Model]:
    """Read every decision, oldest first. Raises BadInput if the file is damaged."""
    file = folder_of(pipeline) / HISTORY
    decisions = []
    for number, line in enumerate(read_text(file).splitlines() if file.exists() else [], 1):
        try:
            decisions.append(as_record(Model, line))
        except ValueError as error:
            what = f"damaged ({error}); restore the file from Git, or resolve its merge conflict"
            raise BadInput(f"{file}: line {number}: {what}") from error
    return decisions


def in_use_in_turn(pipeline: str) -> list[Model]:
    """List the promotions that lead to the current model. A rollback removes the promotions after the model that it restores."""
    return _in_turn(pipeline)[0]


def taken_back(pipeline: str, candidate: str) -> Model | None:
    """Return the rollback that replaced a model, unless the model was promoted again since. `candidate` is the model's hash."""
    return _in_turn(pipeline)[1].get(candidate)


def _in_turn(pipeline: str) -> tuple[list[Model], dict[str, Model]]:
    line: list[Model] = []
    back: dict[str, Model] = {}
    for model in decisions_on(pipeline):
        if model.action == "promoted":
            line.append(model)
            back.pop(model.candidate, None)
        elif model.action == "rolled back":
            while line and line[-1].hash != model.hash:
                back[line.pop().candidate] = model
    return line, back


def write_current(pipeline: str, model: Model) -> None:
    """Record the current model and add it to the history. Raises BadInput, before writing anything, if the history is damaged."""
    read_history(pipeline)
    write_text(folder_of(pipeline) / CURRENT, json.dumps(asdict(model), indent=1) + "\n")
    _write_history(pipeline, decisions_on(pipeline))


def decisions_on(pipeline: str) -> list[Model]:
    """Read the history, including the current model, which a killed run may not have added."""
    past, current = read_history(pipeline), read_current(pipeline)
    return past if current is None or current in past else [*past, current]


def remember_kept(pipeline: str, reason: str) -> None:
    """Record that the candidate was not promoted. A repeated decision on the same candidate adds no line."""
    past, kept = decisions_on(pipeline), new_model(pipeline, Stored("", 0, 0), reason, "kept")
    if (past[-1].action, past[-1].candidate, past[-1].reason) != (kept.action, kept.candidate, kept.reason):
        _write_history(pipeline, [*past, kept])


def _write_history(pipeline: str, decisions: list[Model]) -> None:
    write_text(folder_of(pipeline) / HISTORY, "".join(json.dumps(asdict(model)) + "\n" for model in decisions))


def new_model(pipeline: str, stored: Stored, reason: str, action: Action, choice: str = "") -> Model:
    metrics: Metrics = json.loads((EVALUATION / pipeline / METRICS_NAME).read_text(encoding="utf-8"))
    return Model(*stored, candidate_hash(pipeline), provenance.commit(), metrics, reason, now(), action, choice)


def candidate_hash(pipeline: str) -> str:
    """Return one hash for all trained detectors: of the hashes of their model folders in dvc.lock."""
    trained = [f"{folder_of(pipeline).as_posix()}/{CANDIDATE}/{name}" for name in pipeline_named(pipeline).trained]
    locked = provenance.artifacts()
    text = json.dumps({path: locked.get(path) for path in trained})
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def folder_of(pipeline: str) -> Path:
    return MODELS / pipeline


def read_recommendation(folder: Path) -> Recommendation | None:
    """Read decision.json; None if an older version wrote the folder without it. Raises BadInput if the file is damaged."""
    file = folder / DECISION_NAME
    hint = "restore it with `dvc checkout --force`, or run `changepair retrain`"
    return read_record(Recommendation, file, hint) if file.is_file() else None
