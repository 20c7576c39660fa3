"""Decide whether a retrained model replaces the current one, and promote or roll back a model by hand."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
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
from changepair.flows.running.unchanged import refuse_other_settings
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
from changepair.tasks.scoring.recommendation import less_robust
from changepair.tasks.scoring.results import DECISION_NAME, DRAWS_NAME, DrawRow, read_draws, results_of
from changepair.tasks.scoring.settings import EvaluationSettings

NO_MEASURE = ("batch_size", "shown", "perturbations", "perturbed")  # settings of the evaluation that draws do not depend on
BY_HAND = "promotion.automatic is false: `changepair promote {}` makes it the current model"


@dataclass(frozen=True)
class Outcome:
    """Decision of the promotion gate."""

    state: RunState
    reason: str
    decision: Decision = Decision(True, "")


def gate(pipeline: str) -> Outcome:
    """Compare the candidate with the current model on the same episodes, and promote it unless it may be worse.

    Raises BadInput and changes nothing if files of the current model are missing.
    """
    settings = enabled_pipeline(pipeline)
    refuse_other_settings(stage for stage in planned() if stage.of[:1] == (pipeline,))
    current = read_current(pipeline)
    if current is None:
        reason = "first model of this pipeline"
        by_hand = Outcome(RunState.KEPT, f"{reason}; {BY_HAND.format(pipeline)}")
        return _promoted(pipeline, reason) if settings.promotion.automatic else by_hand
    settle(pipeline, current)
    own, measured_as = _measured_as(pipeline, settings), read_measured_as(pipeline)
    if current.candidate == candidate_hash(pipeline) and _same_detectors(pipeline, measured_as, settings):
        return _again(pipeline, current, settings.promotion.automatic)
    candidate = candidate_hash(pipeline)
    back = taken_back(pipeline, candidate) if candidate != current.candidate else None  # without training, all candidates have one hash
    if back is not None:  # otherwise the next run would undo a person's decision
        return _kept(pipeline, f"this model was rolled back at {_when(back.time)}; `changepair promote {pipeline}` promotes it again")
    detectors = judged(settings)
    new, in_use = (read_draws(folder / DRAWS_NAME) for folder in (EVALUATION / pipeline, folder_of(pipeline) / IN_USE))
    evaluation = {**as_json(EvaluationSettings()), **measured_as.evaluation}  # defaults for settings that were added later
    equal = all(evaluation[key] == value for key, value in own.evaluation.items()) and own.code == measured_as.code
    if not (equal and same_episodes(new, in_use, settings.promotion.metric, detectors)):
        in_use = measure_in_use(pipeline, settings, measured_as.detectors)
    decision = decide(new, in_use, settings.promotion, detectors)
    if not decision.promoted:
        return _kept(pipeline, decision.reason, decision)
    fragile = _fragile(pipeline)
    if fragile:
        return _kept(pipeline, f"{fragile}; {decision.reason}", decision)
    if not settings.promotion.automatic:
        return _kept(pipeline, f"{decision.reason}; {BY_HAND.format(pipeline)}", decision)
    return _promoted(pipeline, decision.reason, decision)


def _again(pipeline: str, current: Model, automatic: bool) -> Outcome:
    """Keep the current model. If only its recommendation has changed, promote it with the new one."""
    since = f"already the current model, since {_when(current.time)}"
    new, old = (folder / DECISION_NAME for folder in (EVALUATION / pipeline, folder_of(pipeline) / IN_USE))
    if old.is_file() and old.read_bytes() == new.read_bytes():
        return Outcome(RunState.IN_USE, since)
    if current.action == "rolled back" or not automatic:  # a person chooses
        return Outcome(RunState.IN_USE, f"{since}; `changepair promote {pipeline}` adopts the new recommendation and thresholds")
    fragile = _fragile(pipeline)
    return Outcome(RunState.IN_USE, f"{since}; {fragile}") if fragile else _promoted(pipeline, "same model with a new recommendation")


def _fragile(pipeline: str) -> str:
    """Explain why the candidate is not promoted automatically: it does not withstand a mild perturbation that the current model withstands.

    Return "" if it does, or if the current model was not measured under these perturbations.
    """
    new, old = (read_recommendation(folder) for folder in (EVALUATION / pipeline, folder_of(pipeline) / IN_USE))
    lost = less_robust(new, old) if new is not None and old is not None else ""
    return f"{lost}; `changepair promote {pipeline}` adopts the new model" if lost else ""


def _promoted(pipeline: str, reason: str, decision: Decision | None = None) -> Outcome:
    model = take(pipeline, reason)
    return Outcome(
        RunState.PROMOTED, f"{reason}; active detector: {model.choice}" if model.choice else reason, decision or Decision(True, "")
    )


def _kept(pipeline: str, reason: str, decision: Decision | None = None) -> Outcome:
    remember_kept(pipeline, reason)
    return Outcome(RunState.KEPT, reason, decision or Decision(False, reason))


def _when(time: str) -> str:
    return f"{time[:16].replace('T', ' ')} UTC"


def promote(pipeline: str) -> str:
    """Promote the candidate regardless of its metrics; return a message. Raises BadInput if its evaluation is out of date."""
    enabled_pipeline(pipeline)
    provenance.locked()  # reports an invalid dvc.lock more clearly than DVC
    own_stages = [stage for stage in planned() if stage.kind in ("train", "score", "metrics") and stage.of[0] == pipeline]
    with Repo() as repo:
        stale = repo.status(targets=[stage.name for stage in own_stages])
    if stale:
        raise BadInput(f"{next(iter(stale))} is out of date; run `changepair retrain {pipeline}` first")
    refuse_other_settings(own_stages)
    model = take(pipeline, "by hand")
    return f"{pipeline}: model {model.candidate[:8]} is now current" + (f"; active detector: {model.choice}" if model.choice else "")


def rollback(pipeline: str) -> str:
    """Restore the model before the current one; return a message. Raises BadInput if it does not exist, or its files are missing."""
    enabled_pipeline(pipeline)
    line = in_use_in_turn(pipeline)
    others = [model for model in line[:-1] if model.hash != line[-1].hash]
    if not others:
        raise BadInput(f"{folder_of(pipeline) / HISTORY}: {pipeline} has no model before the current one, so it cannot be rolled back")
    before = others[-1]
    settle(pipeline, before)
    model = replace(before, action="rolled back", time=now(), reason=f"rolled back from {line[-1].candidate[:8]}")
    write_current(pipeline, model)
    done = f"{pipeline}: model {model.candidate[:8]} is current again"
    read, branch = read_pipelines(), branch_of(pipeline)
    if read.pipelines[pipeline].schedule is None or read.runs.results != "branch" or provenance.branch() == branch:
        return done
    return (
        f"{done} in this checkout. Scheduled runs continue from their result branch; to roll back there, run `git fetch`, "
        f"`git switch {branch}`, `changepair rollback {pipeline}`, `git commit -am 'Rolled back'` and `git push`"
    )


def take(pipeline: str, reason: str) -> Model:
    """Promote the candidate: store its files in DVC's cache, replace `current`, then check out.

    If this is killed at any point, one of the two models is current and complete.
    """
    settings = enabled_pipeline(pipeline)
    stored = store_candidate(pipeline, settings.trained, _measured_as(pipeline, settings))
    model = new_model(pipeline, stored, reason, "promoted", str(read_recommendation(EVALUATION / pipeline) or ""))
    write_current(pipeline, model)
    settle(pipeline, model)
    return model


def judged(settings: Pipeline) -> list[str]:
    """List the detectors that the gate compares: those of `promotion.detectors`, else the trained ones, else all."""
    return list(settings.promotion.detectors or ()) or settings.trained or list(settings.detectors)


@step(name="evaluate current model", task_run_name="evaluate current model of {pipeline}", timeout_seconds=12 * HOUR)
def measure_in_use(pipeline: str, settings: Pipeline, detectors: Any) -> list[DrawRow]:
    """Evaluate the current model on the present episodes. `detectors` is its recorded section of pipelines.yaml."""
    from changepair.tasks.scoring.batch_scoring import Scoring, score_detector  # imports torch in three seconds, which few runs need
    from changepair.tasks.scoring.measure import measure

    folder, files = folder_of(pipeline) / IN_USE, EpisodeFiles.of(EPISODES, pipeline)
    own = _detectors_in_use(pipeline, detectors)
    checkpoints, evaluation = CHECKPOINTS / pipeline / "gate", replace(settings.evaluation, perturbations=())
    with tempfile.TemporaryDirectory(prefix="changepair-") as work:
        scores = Path(work)
        chosen = [name for name in judged(settings) if name in own]
        for name in chosen:
            score_detector(name, Scoring(own, evaluation, files, folder, scores, checkpoints))
        measured = measure({name: scores / name for name in chosen}, files, evaluation)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return results_of(measured, protocols_of(files.episodes)).draws


def _detectors_in_use(pipeline: str, section: Any) -> dict[str, Any]:
    detectors: dict[str, Any] = parse(
        cast(Any, Detectors), section, ("pipelines", pipeline, "detectors"), folder_of(pipeline) / IN_USE / SETTINGS_NAME
    )
    return detectors


def _same_detectors(pipeline: str, measured_as: MeasuredAs, settings: Pipeline) -> bool:
    """Return whether the current model's settings equal today's, after renamed keys and defaults are resolved."""
    try:
        return _detectors_in_use(pipeline, measured_as.detectors) == settings.detectors
    except BadInput:  # a detector is no longer installed
        return False


def _measured_as(pipeline: str, settings: Pipeline) -> MeasuredAs:
    """Return the settings and the code of the candidate's evaluation."""
    kinds = {name: kind_of(settings.detectors[name]) for name in judged(settings)}
    code = {name: code_of(*roots("score", kind)).digest for name, kind in kinds.items()}
    detectors = {name: {KIND: kind_of(one), **as_json(one)} for name, one in settings.detectors.items()}
    evaluation = {name: value for name, value in as_json(settings.evaluation).items() if name not in NO_MEASURE}
    return MeasuredAs(detectors, evaluation, {**code, "metrics": code_of(*roots("metrics")).digest})
