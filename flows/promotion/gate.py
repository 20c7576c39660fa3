"""The gate decides whether a retrained model takes the place of the one in use; and both decisions can be made by hand."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from dvc.repo import Repo

from changepair.flows.plan import planned, roots
from changepair.flows.promotion.history import (
    HISTORY,
    Model,
    candidate_hash,
    folder_of,
    in_use_in_turn,
    new_model,
    read_current,
    read_recommendation,
    remember_kept,
    taken_back,
    write_current,
)
from changepair.flows.promotion.store import MeasuredAs, read_measured_as, settle, store_candidate
from changepair.flows.running import provenance
from changepair.flows.running.places import CHECKPOINTS, EPISODES, EVALUATION, IN_USE, SETTINGS_NAME
from changepair.flows.running.steps import HOUR, step
from changepair.flows.runs.journal import now
from changepair.flows.runs.states import RunState
from changepair.flows.settings.detectors import Detectors
from changepair.flows.settings.pipelines import Pipeline, enabled_pipeline, read_pipelines
from changepair.flows.settings.reader import as_json, parse
from changepair.flows.settings.runs import branch_of
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.detectors.registry import KIND, kind_of
from changepair.tasks.sampling.episodes import EpisodeFiles, protocols_of
from changepair.tasks.scoring.decision import Decision, decide, same_episodes
from changepair.tasks.scoring.results import DECISION_NAME, DRAWS_NAME, DrawRow, read_draws, results_of

BY_HAND = "promotion.automatic is false: `changepair promote {}` makes it the current model"


@dataclass(frozen=True)
class Outcome:
    """A decision of the gate."""

    state: RunState
    reason: str
    decision: Decision = field(default_factory=lambda: Decision(True, ""))


def gate(pipeline: str) -> Outcome:
    """Holds the candidate against the model in use, on the same episodes, and puts it to use unless it may be worse. Raises BadInput if
    the model in use cannot be had; that leaves it as it is."""
    settings = enabled_pipeline(pipeline)
    current = read_current(pipeline)
    if current is None:
        reason = "the first model of this pipeline"
        if not settings.promotion.automatic:
            return Outcome(RunState.KEPT, f"{reason}; {BY_HAND.format(pipeline)}")
        return Outcome(RunState.PROMOTED, _with_choice(take(pipeline, reason)))
    settle(pipeline, current)
    own, measured_as = _measured_as(pipeline, settings), read_measured_as(pipeline)
    if current.candidate == candidate_hash(pipeline) and measured_as.detectors == own.detectors:
        return _again(pipeline, current, settings.promotion.automatic)
    candidate = candidate_hash(pipeline)
    back = taken_back(pipeline, candidate) if candidate != current.candidate else None  # where nothing is trained, all have one name
    if back is not None:  # else the next run would undo what a person decided
        return _kept(pipeline, f"this model was rolled back, {_when(back.time)}; `changepair promote {pipeline}` puts it to use again")
    detectors = judged(settings)
    new, in_use = (read_draws(folder / DRAWS_NAME) for folder in (EVALUATION / pipeline, folder_of(pipeline) / IN_USE))
    equal = own.evaluation == measured_as.evaluation and own.code == measured_as.code
    if not (equal and same_episodes(new, in_use, settings.promotion.figure, detectors)):
        in_use = measure_in_use(pipeline, settings, measured_as.detectors)
    decision = decide(new, in_use, settings.promotion, detectors)
    if decision.promoted and settings.promotion.automatic:
        return Outcome(RunState.PROMOTED, _with_choice(take(pipeline, decision.reason)), decision)
    reason = f"{decision.reason}; {BY_HAND.format(pipeline)}" if decision.promoted else decision.reason
    return _kept(pipeline, reason, decision)


def _again(pipeline: str, current: Model, automatic: bool) -> Outcome:
    """Keep the current model. If its decision has changed, promote it with the new one."""
    since = f"this model is in use, since {_when(current.time)}"
    new, old = (folder / DECISION_NAME for folder in (EVALUATION / pipeline, folder_of(pipeline) / IN_USE))
    if old.is_file() and old.read_bytes() == new.read_bytes():
        return Outcome(RunState.IN_USE, since)
    if current.action == "rolled back" or not automatic:  # a person chooses
        return Outcome(RunState.IN_USE, f"{since}, used as then; `changepair promote {pipeline}` takes the new prompts and thresholds")
    return Outcome(RunState.PROMOTED, _with_choice(take(pipeline, "the same model with a new decision")))


def _kept(pipeline: str, reason: str, decision: Decision | None = None) -> Outcome:
    remember_kept(pipeline, reason)
    return Outcome(RunState.KEPT, reason, decision or Decision(False, reason))


def _when(time: str) -> str:
    """Gives a time of ISO 8601 as people read it."""
    return f"{time[:16].replace('T', ' ')} UTC"


def _with_choice(model: Model) -> str:
    return f"{model.reason}; used by {model.choice}" if model.choice else model.reason


def promote(pipeline: str) -> str:
    """Puts the candidate to use whatever its figures; gives what to tell. Raises BadInput if it is not evaluated as it is now."""
    enabled_pipeline(pipeline)
    provenance.locked()  # tells better than DVC what is wrong with dvc.lock
    own_stages = [stage for stage in planned() if stage.kind in ("train", "score", "figures") and stage.of[0] == pipeline]
    with Repo() as repo:
        stale = repo.status(targets=[stage.name for stage in own_stages])
    if stale:
        raise BadInput(f"{next(iter(stale))} is out of date; run `changepair retrain {pipeline}`, which promotes by itself, first")
    model = take(pipeline, "by hand")
    return f"{pipeline}: model {model.candidate[:8]} is in use" + (f", by {model.choice}" if model.choice else "")


def rollback(pipeline: str) -> str:
    """Puts the model to use that was in use before; gives what to tell. Raises BadInput if there is none, or its files are gone."""
    enabled_pipeline(pipeline)
    line = in_use_in_turn(pipeline)
    others = [model for model in line[:-1] if model.hash != line[-1].hash]
    if not others:
        raise BadInput(f"{folder_of(pipeline) / HISTORY}: {pipeline} has no model before the one in use, so there is none to go back to")
    before = others[-1]
    settle(pipeline, before)
    reason = f"rolled back from {line[-1].candidate[:8]}"
    model = replace(before, action="rolled back", time=now(), reason=reason)
    write_current(pipeline, model)
    return f"{pipeline}: model {model.candidate[:8]} is in use again{_of_scheduled_runs(pipeline)}"


def _of_scheduled_runs(pipeline: str) -> str:
    """Explain how to roll back the results branch of scheduled runs; empty if there is none."""
    read = read_pipelines()
    branch = branch_of(pipeline)
    if read.pipelines[pipeline].schedule is None or read.runs.results != "branch" or provenance.branch() == branch:
        return ""
    return (
        f" in this checkout. Scheduled runs go on from their own results: `git fetch`, `git switch {branch}`, "
        f"`changepair rollback {pipeline}`, `git commit -am 'Rolled back'`, `git push`"
    )


def take(pipeline: str, reason: str) -> Model:
    """Puts the candidate to use. Its files go into DVC's cache first and `current` is replaced last but for the copy: killed anywhere, one
    of the two models is in use, whole."""
    settings = enabled_pipeline(pipeline)
    stored = store_candidate(pipeline, settings.trained, _measured_as(pipeline, settings))
    model = new_model(pipeline, stored, reason, "promoted", str(read_recommendation(EVALUATION / pipeline) or ""))
    write_current(pipeline, model)
    settle(pipeline, model)
    return model


def judged(settings: Pipeline) -> list[str]:
    """Lists the detectors that must pass: those that are named, else those that are trained, else all."""
    return list(settings.promotion.detectors or ()) or settings.trained or list(settings.detectors)


@step(name="measure model in use", task_run_name="measure model in use of {pipeline}", timeout_seconds=12 * HOUR)
def measure_in_use(pipeline: str, settings: Pipeline, detectors: Any) -> list[DrawRow]:
    """Gives the draws of the model in use on the episodes of now. detectors: its own section of pipelines.yaml."""
    from changepair.tasks.scoring.batch_scoring import (  # with torch and the encoders: three seconds, which few runs need
        Scoring,
        score_detector,
    )
    from changepair.tasks.scoring.measure import measure

    folder, files = folder_of(pipeline) / IN_USE, EpisodeFiles.of(EPISODES, pipeline)
    own = parse(cast(Any, Detectors), detectors, ("pipelines", pipeline, "detectors"), folder / SETTINGS_NAME)
    checkpoints = CHECKPOINTS / pipeline / "gate"
    with tempfile.TemporaryDirectory(prefix="changepair-") as work:
        scores = Path(work)
        chosen = [name for name in judged(settings) if name in own]
        for name in chosen:
            score_detector(name, Scoring(own, settings.evaluation, files, folder, scores, checkpoints))
        measured = measure({name: scores / name for name in chosen}, files, settings.evaluation)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return results_of(measured, protocols_of(files.episodes)).draws


def _measured_as(pipeline: str, settings: Pipeline) -> MeasuredAs:
    """Gives what the candidate is measured as."""
    kinds = {name: kind_of(settings.detectors[name]) for name in judged(settings)}
    code = {name: code_of(*roots("score", kind)).digest for name, kind in kinds.items()}
    detectors = {name: {KIND: kind_of(one), **as_json(one)} for name, one in settings.detectors.items()}
    evaluation = {name: value for name, value in as_json(settings.evaluation).items() if name not in ("batch_size", "shown")}
    return MeasuredAs(detectors, evaluation, {**code, "figures": code_of(*roots("figures")).digest})
