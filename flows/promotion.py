"""Which model of a pipeline is in use, and what was in use before.

data/models/<pipeline>/
  candidate/       what was trained last: the out of the train stage
  current          JSON, the one truth of which model is in use: DVC's hash of it, commit, figures, why
  in-use/          that model's files, and in draws.parquet and settings.json what it was measured as
  in-use.dvc       so that DVC pushes, pulls and keeps them; made from `current`, like in-use/
  history.jsonl    one line a decision
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_data.hashfile.tree import Tree

from flows import provenance
from flows.pipelines import Pipeline, enabled_pipeline
from flows.settings import parse, read_yaml
from flows.stage import CANDIDATE, EPISODES, EVALUATION, MODELS
from tasks.detector_settings import TRAINED, DetectorSettings
from tasks.errors import BadInput
from tasks.evaluation.promotion import Decision, decide, same_episodes
from tasks.evaluation.results import DRAWS_NAME, METRICS_NAME, read_draws
from tasks.files import write_text
from tasks.sampling.episodes import EpisodeFiles

CURRENT, IN_USE, POINTER, HISTORY = "current", "in-use", "in-use.dvc", "history.jsonl"
SETTINGS_NAME = "settings.json"
Action = Literal["promoted", "kept", "rolled back"]


class Stored(NamedTuple):
    """A folder in DVC's cache."""

    hash: str
    size: int  # bytes
    files: int


@dataclass(frozen=True)
class Model:
    """A decision on a model: a line of history.jsonl, and of the one in use the content of `current`."""

    hash: str
    """Of in-use/, as DVC has it; empty for one that was not put to use."""
    size: int
    """Bytes."""
    files: int
    candidate: str
    """Hash of data/models/<pipeline>/candidate, by which dvc.lock names it."""
    commit: str
    figures: Mapping[str, Any]
    """As metrics.json has them."""
    reason: str
    time: str
    action: Action = "promoted"


@dataclass(frozen=True)
class Outcome:
    """What the gate came to."""

    state: Literal["Promoted", "Kept", "In use already"]
    reason: str
    decision: Decision = field(default_factory=lambda: Decision(True, ""))


def gate(pipeline: str) -> Outcome:
    """Holds the candidate against the model in use, on the same episodes, and puts it to use unless it may be worse. Raises BadInput if
    the model in use cannot be had; that leaves it as it is."""
    settings = enabled_pipeline(pipeline)
    current = read_current(pipeline)
    if current is None:
        reason = "the first model of this pipeline"
        take(pipeline, reason)
        return Outcome("Promoted", reason)
    settle(pipeline, current)
    if current.candidate == _candidate_hash(pipeline) and _measured_as(pipeline)["detectors"] == _own_settings(pipeline)["detectors"]:
        return Outcome("In use already", f"this model is in use, since {current.time}")
    detectors = _judged(settings)
    new, in_use = (read_draws(folder / DRAWS_NAME) for folder in (EVALUATION / pipeline, _folder(pipeline) / IN_USE))
    own, measured_as = _own_settings(pipeline), _measured_as(pipeline)
    equal = all(own[part] == measured_as[part] for part in ("evaluation", "code"))
    if not (equal and same_episodes(new, in_use, settings.promotion.figure, detectors)):
        in_use = _measured_again(pipeline, settings, measured_as["detectors"])
    decision = decide(new, in_use, settings.promotion, detectors)
    if decision.promoted:
        take(pipeline, decision.reason)
        return Outcome("Promoted", decision.reason, decision)
    _remember_kept(pipeline, decision.reason)
    return Outcome("Kept", decision.reason, decision)


def promote(pipeline: str) -> str:
    """Puts the candidate to use whatever its figures; gives what to tell. Raises BadInput if it is not evaluated as it is now."""
    enabled_pipeline(pipeline)
    with Repo() as repo:
        stale = repo.status(targets=[f"train@{pipeline}", f"evaluate@{pipeline}"])
    if stale:
        raise BadInput(f"{next(iter(stale))} is out of date; run `changepair retrain {pipeline}`, which promotes by itself, first")
    model = take(pipeline, "by hand")
    return f"{pipeline}: model {model.candidate[:8]} is in use"


def rollback(pipeline: str) -> str:
    """Puts the model to use that was in use before; gives what to tell. Raises BadInput if there is none, or its files are gone."""
    enabled_pipeline(pipeline)
    line = _in_use_in_turn(pipeline)
    if len(line) < 2:
        raise BadInput(f"{_folder(pipeline) / HISTORY}: {pipeline} has no model before the one in use, so there is none to go back to")
    before = line[-2]
    settle(pipeline, before)
    reason = f"rolled back from {line[-1].candidate[:8]}"
    model = replace(before, action="rolled back", time=_now(), reason=reason)
    _use(pipeline, model)
    return f"{pipeline}: model {model.candidate[:8]} is in use again"


def take(pipeline: str, reason: str) -> Model:
    """Puts the candidate to use. Its files go into DVC's cache first and `current` is replaced last but for the copy: killed anywhere, one
    of the two models is in use, whole."""
    folder = _folder(pipeline)
    with tempfile.TemporaryDirectory(prefix=".taken-", dir=folder) as work:
        taken = Path(work) / IN_USE
        shutil.copytree(folder / CANDIDATE, taken)
        shutil.copyfile(EVALUATION / pipeline / DRAWS_NAME, taken / DRAWS_NAME)
        write_text(taken / SETTINGS_NAME, json.dumps(_own_settings(pipeline), indent=1, sort_keys=True, default=str) + "\n")
        with Repo() as repo, repo.lock:
            staged, meta, made = build(repo.cache.local, str(taken), repo.fs, "md5")
            transfer(staged, repo.cache.local, {made.hash_info}, shallow=False)
    model = _model(pipeline, Stored(str(made.hash_info.value), int(meta.size or 0), int(meta.nfiles or 0)), reason, "promoted")
    _use(pipeline, model)
    settle(pipeline, model)
    return model


def settle(pipeline: str, model: Model) -> None:
    """Makes in-use/ hold the model, from DVC's cache or its remote. Raises BadInput if neither has it, and leaves in-use/ as it was."""
    folder = _folder(pipeline)
    pointer = folder / POINTER
    # Frozen: DVC keeps and moves the files, and never takes a change to them, or their absence, for news.
    wanted = f"frozen: true\nouts:\n- md5: {model.hash}\n  size: {model.size}\n  nfiles: {model.files}\n  hash: md5\n  path: {IN_USE}\n"
    before = pointer.read_text(encoding="utf-8") if pointer.is_file() else None
    if before != wanted:
        write_text(pointer, wanted)
    try:
        with Repo() as repo:
            if not _cached(repo, model):
                repo.fetch(targets=[str(pointer)])
                if not _cached(repo, model):  # and a checkout would empty in-use/
                    raise DvcException("not in the remote")
            repo.checkout(targets=[str(pointer)], force=True)
    except DvcException as error:
        if before is not None and before != wanted:
            write_text(pointer, before)
        raise BadInput(
            f"{folder / CURRENT}: model {model.candidate[:8]} is neither in DVC's cache nor in a remote; get it with `dvc pull {pointer}` "
            f"where it is, or put the new one to use with `changepair promote {pipeline}`"
        ) from error


def _cached(repo: Repo, model: Model) -> bool:
    """Whether every file of the model is in DVC's cache."""
    cache = repo.cache.local
    try:
        return all(cache.exists(entry.value) for _key, _meta, entry in Tree.load(cache, HashInfo("md5", model.hash)))
    except FileNotFoundError:
        return False


def read_current(pipeline: str, checkout: Path = Path()) -> Model | None:
    """The model in use; None before the first. Raises BadInput if the file is not what was written."""
    file = checkout / _folder(pipeline) / CURRENT
    if not file.is_file():
        return None
    try:
        return Model(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{file}: not as it was written ({error}); take it from Git again, or `changepair promote {pipeline}`") from error


def read_history(pipeline: str) -> list[Model]:
    """Every decision, the oldest first."""
    file = _folder(pipeline) / HISTORY
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        return [Model(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise BadInput(f"{file}: a line is not as it was written ({error}); take the file from Git again") from error


def _in_use_in_turn(pipeline: str) -> list[Model]:
    """The models that lead to the one in use: a rollback takes back the promotion before it."""
    line: list[Model] = []
    for model in _decisions(pipeline):
        if model.action == "promoted":
            line.append(model)
        elif model.action == "rolled back":
            del line[-1:]
    return line


def _use(pipeline: str, model: Model) -> None:
    write_text(_folder(pipeline) / CURRENT, json.dumps(asdict(model), indent=1) + "\n")
    _write_history(pipeline, _decisions(pipeline))


def _decisions(pipeline: str) -> list[Model]:
    """The history, and in it the model in use, which a run that was killed may not have written there."""
    past, current = read_history(pipeline), read_current(pipeline)
    return past if current is None or current in past else [*past, current]


def _remember_kept(pipeline: str, reason: str) -> None:
    """The same decision on the same candidate again adds no line."""
    past, kept = _decisions(pipeline), _model(pipeline, Stored("", 0, 0), reason, "kept")
    if (past[-1].action, past[-1].candidate, past[-1].reason) != (kept.action, kept.candidate, kept.reason):
        _write_history(pipeline, [*past, kept])


def _write_history(pipeline: str, decisions: list[Model]) -> None:
    write_text(_folder(pipeline) / HISTORY, "".join(json.dumps(asdict(model)) + "\n" for model in decisions))


def _model(pipeline: str, stored: Stored, reason: str, action: Action) -> Model:
    figures = json.loads((EVALUATION / pipeline / METRICS_NAME).read_text(encoding="utf-8"))
    return Model(stored.hash, stored.size, stored.files, _candidate_hash(pipeline), provenance.commit(), figures, reason, _now(), action)


def _judged(settings: Pipeline) -> list[str]:
    """The detectors that must pass."""
    if settings.promotion.detectors is not None:
        return list(settings.promotion.detectors)
    return [name for name in settings.detectors if name in TRAINED] or list(settings.detectors)


def _own_settings(pipeline: str) -> dict[str, Any]:
    """What the candidate was measured as: with which settings, and by which code."""
    section = read_yaml()["pipelines"][pipeline]
    code = {path: md5 for path, md5 in provenance.hashes(f"evaluate@{pipeline}", "deps").items() if path.startswith("tasks/")}
    return {"detectors": section["detectors"], "evaluation": section["evaluation"], "code": code}


def _measured_as(pipeline: str) -> dict[str, Any]:
    """The same of the model in use."""
    found: dict[str, Any] = json.loads((_folder(pipeline) / IN_USE / SETTINGS_NAME).read_text(encoding="utf-8"))
    return found


def _measured_again(pipeline: str, settings: Pipeline, detectors: Any) -> Any:
    """The draws of the model in use on the episodes of now. detectors: its own section of pipelines.yaml."""
    from flows.evaluate import measure

    own = parse(DetectorSettings, detectors, ("pipelines", pipeline, "detectors"), _folder(pipeline) / IN_USE / SETTINGS_NAME)
    _results, measured = measure(own, settings.evaluation, EpisodeFiles.of(EPISODES, pipeline), _folder(pipeline) / IN_USE)
    return measured.draws


def _candidate_hash(pipeline: str) -> str:
    return provenance.hashes(f"train@{pipeline}", "outs")[(_folder(pipeline) / CANDIDATE).as_posix()]


def _folder(pipeline: str) -> Path:
    return MODELS / pipeline


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
