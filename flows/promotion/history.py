"""Record a pipeline's current model and the decisions before it: in `current` and `history.jsonl`, both for Git.

data/models/<pipeline>/
  candidate/       a folder for each detector that was trained last: the outs of the train stages
  current          JSON, the one truth of which model is in use: DVC's hash of it, commit, metrics, why
  in-use/          that model's files, and in draws.parquet and settings.json what it was measured as
  in-use.dvc       so that DVC pushes, pulls and keeps them; made from `current`, like in-use/
  history.jsonl    one line a decision
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
    """A decision on a model: a line of history.jsonl, and of the one in use the content of `current`."""

    hash: FolderHash  # of in-use/; empty for one that was not put to use
    size: int  # bytes
    files: int
    candidate: Hash  # of what was trained, as `candidate_hash` has it
    commit: str
    metrics: Metrics
    reason: str
    time: Moment
    action: Action = "promoted"
    choice: str = ""  # the detector it is used by, where none is named, and why


def read_current(pipeline: str, checkout: Path = Path()) -> Model | None:
    """Read which model is current; None before the first. Raises BadInput if the file is damaged."""
    file = checkout / folder_of(pipeline) / CURRENT
    return read_record(Model, file, f"take it from Git again, or `changepair promote {pipeline}`") if file.exists() else None


def what_is_missing(folder: Path, model: Model) -> str:
    """Describe what a folder of the current model lacks, by the number and size of its files; empty if nothing."""
    if not folder.is_dir():
        return "its files are not here"
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if (len(files), size) == (model.files, model.size):
        return ""
    return f"its files are not whole: {len(files)} of {model.files} files, {size:,} of {model.size:,} bytes"


def read_history(pipeline: str) -> list[Model]:
    """Read every decision, the oldest first. Raises BadInput."""
    file = folder_of(pipeline) / HISTORY
    decisions = []
    for number, line in enumerate(read_text(file).splitlines() if file.exists() else [], 1):
        try:
            decisions.append(as_record(Model, line))
        except ValueError as error:
            what = f"not as it was written ({error}); take the file from Git again, or choose one side of a merge"
            raise BadInput(f"{file}: line {number}: {what}") from error
    return decisions


def in_use_in_turn(pipeline: str) -> list[Model]:
    """List the promotions that lead to the current model. A rollback undoes those since the model that it returns to."""
    return _in_turn(pipeline)[0]


def taken_back(pipeline: str, candidate: str) -> Model | None:
    """Return the rollback that replaced a model, unless that was promoted again since. candidate: the model's hash."""
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
    """Record the current model, and add it to the history. Raises BadInput, before writing anything, if the history cannot be read."""
    read_history(pipeline)
    write_text(folder_of(pipeline) / CURRENT, json.dumps(asdict(model), indent=1) + "\n")
    _write_history(pipeline, decisions_on(pipeline))


def decisions_on(pipeline: str) -> list[Model]:
    """Read the history, with the current model, which a run that was killed may not have added."""
    past, current = read_history(pipeline), read_current(pipeline)
    return past if current is None or current in past else [*past, current]


def remember_kept(pipeline: str, reason: str) -> None:
    """Record that the candidate was not promoted. The same decision on the same candidate adds no line."""
    past, kept = decisions_on(pipeline), new_model(pipeline, Stored("", 0, 0), reason, "kept")
    if (past[-1].action, past[-1].candidate, past[-1].reason) != (kept.action, kept.candidate, kept.reason):
        _write_history(pipeline, [*past, kept])


def _write_history(pipeline: str, decisions: list[Model]) -> None:
    write_text(folder_of(pipeline) / HISTORY, "".join(json.dumps(asdict(model)) + "\n" for model in decisions))


def new_model(pipeline: str, stored: Stored, reason: str, action: Action, choice: str = "") -> Model:
    metrics: Metrics = json.loads((EVALUATION / pipeline / METRICS_NAME).read_text(encoding="utf-8"))
    return Model(*stored, candidate_hash(pipeline), provenance.commit(), metrics, reason, now(), action, choice)


def candidate_hash(pipeline: str) -> str:
    """Hash the hashes in dvc.lock of the trained detectors' model folders."""
    trained = [f"{folder_of(pipeline).as_posix()}/{CANDIDATE}/{name}" for name in pipeline_named(pipeline).trained]
    locked = provenance.artifacts()
    text = json.dumps({path: locked.get(path) for path in trained})
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def folder_of(pipeline: str) -> Path:
    return MODELS / pipeline


def read_recommendation(folder: Path) -> Recommendation | None:
    """Read decision.json; None if an older version wrote the folder, without the file. Raises BadInput if the file is damaged."""
    file = folder / DECISION_NAME
    hint = "get it again with `dvc checkout --force`, or run `changepair retrain`"
    return read_record(Recommendation, file, hint) if file.is_file() else None
