"""The flow of `changepair score <pipeline>`: scores the pictures that have appeared in the pipeline's watched folder since it last ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.events import emit_event
from prefect.states import Completed

from flows.monitoring.events import ALERT_EVENT, DRIFT_EVENT, resource_of
from flows.prediction.model_in_use import SEPARATOR, model_in_use
from flows.promotion.history import read_current
from flows.running.artifacts import show_page, show_picture
from flows.running.locks import one_at_a_time
from flows.running.places import WATCH
from flows.running.steps import HOUR, progress, step
from flows.settings.pipelines import pipeline_named
from tasks.common import stopping
from tasks.common.errors import BadInput
from tasks.common.files import sha256, write_text
from tasks.common.stopping import on_sigterm
from tasks.monitoring.drift import Drift, drift_of
from tasks.monitoring.record import KIT_FOLDER, Judged, Record, arrived, judge
from tasks.monitoring.settings import WatchSettings
from tasks.prediction.files import KIT_NAME, files_of, is_kit
from tasks.prediction.predictor import Predictor

MADE_OF_NAME, TOLD_NAME = "made-of.json", "drift-was-told-of"
MOST_SHOWN = 20
"""Flagged pictures that a run's page lists: the highest."""
QUIET, ALERT, DRIFTED = "Nothing unusual", "Alert", "Drifted"


@dataclass(frozen=True)
class Watched:
    """What a run has seen."""

    judged: tuple[Judged, ...]
    drift: Drift
    alert: float
    """The share above which it alerts."""

    def count(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.judged)

    @property
    def share(self) -> float:
        """Of the pictures that could be read, how many are flagged."""
        read = len(self.judged) - self.count("unreadable")
        return self.count("anomalous") / read if read else 0.0

    @property
    def state(self) -> str:
        if self.drift.found:
            return DRIFTED
        return ALERT if self.share > self.alert else QUIET

    def __str__(self) -> str:
        words = f"{len(self.judged)} new pictures, {self.count('anomalous')} flagged"
        if self.count("unreadable"):
            words += f", {self.count('unreadable')} unreadable"
        if self.share > self.alert:
            words += f": {100 * self.share:.0f} %, more than {100 * self.alert:g} %"
        if self.drift.found:
            words += f"; the scores of what passes have changed since the threshold was set (chance {100 * self.drift.chance:g} % if not)"
        return words


@flow(name="watch", flow_run_name="watch {pipeline}")
def watch(pipeline: str) -> State[None]:
    """Scores what is new. Ends Completed, by the name of what it saw: QUIET, ALERT, DRIFTED."""
    settings = pipeline_named(pipeline).watch
    if settings is None:
        raise BadInput(f"pipelines.yaml: pipelines.{pipeline}.watch: not there; say which folder to watch, and what is normal in it")
    logger = get_run_logger()
    with on_sigterm(), one_at_a_time(f"watch-{pipeline}", f"score {pipeline}", wait=True, tell=logger.warning):
        kit = make_kit(pipeline, settings)
        judged = tuple(score_new(pipeline, settings, kit))
        record = Record(WATCH / pipeline)
        seen = Watched(judged, _drift(record.rows(), kit, settings), settings.alert)
    _show(pipeline, seen, record)
    if seen.state != QUIET:
        logger.warning(f"{pipeline}: {seen.state}: {seen}")
        _announce(pipeline, seen, _name_of(kit))
    return Completed(name=seen.state, message=str(seen))


@step(name="make kit", task_run_name="make kit of {pipeline}", timeout_seconds=HOUR)
def make_kit(pipeline: str, settings: WatchSettings) -> Path:
    """Gives the kit of the model in use, made anew where that, the prompts, or the normal pictures have changed."""
    folder = WATCH / pipeline / KIT_FOLDER
    made_of = _made_of(pipeline, settings)
    file = folder.parent / MADE_OF_NAME
    if is_kit(folder) and file.is_file() and json.loads(file.read_text(encoding="utf-8")) == made_of:
        return folder
    named, which = model_in_use(pipeline if settings.detector is None else f"{pipeline}{SEPARATOR}{settings.detector}")
    predictor = Predictor(named).prompt(files_of([settings.prompts]))
    threshold = predictor.calibrate(files_of([settings.normals]), false_alarms=settings.false_alarms)
    file.unlink(missing_ok=True)
    predictor.save(folder)
    write_text(file, json.dumps(made_of, indent=1) + "\n")
    get_run_logger().info(f"{which}; threshold {threshold}")
    return folder


@step(name="score what is new", task_run_name="score what is new for {pipeline}", timeout_seconds=24 * HOUR)
def score_new(pipeline: str, settings: WatchSettings, kit: Path) -> list[Judged]:
    """Scores and records. What a run before had recorded when it was killed is not scored again."""
    record = Record(WATCH / pipeline)
    pictures = arrived(Path(settings.folder).expanduser(), record, settled=settings.settled)
    if not pictures:
        return []
    report, rows = progress(f"{pipeline}: {len(pictures)} new pictures"), []
    for part in judge(Predictor.load(kit), _name_of(kit), pictures, record):
        rows += part
        report(len(rows) / len(pictures))
        stopping.check(f"score {pipeline}, {len(rows)} of {len(pictures)} new pictures scored")
    return rows


def _name_of(kit: Path) -> str:
    """Gives the hash that the record knows a kit by."""
    return sha256(kit / KIT_NAME)[:16]


def _made_of(pipeline: str, settings: WatchSettings) -> Mapping[str, Any]:
    """Gives all that a kit depends on."""
    current = read_current(pipeline)
    pictures = {name: [_about(file) for file in files_of([getattr(settings, name)])] for name in ("prompts", "normals")}
    about = {"model": current.hash if current else None, "detector": settings.detector, "false_alarms": settings.false_alarms, **pictures}
    content: dict[str, Any] = json.loads(json.dumps(about))
    return content


def _about(file: Path) -> tuple[str, int, int]:
    about = file.stat()
    return str(file), about.st_size, about.st_mtime_ns


def _drift(rows: Sequence[Judged], kit: Path, settings: WatchSettings) -> Drift:
    """Tests all that this kit has let pass."""
    threshold = Predictor.load(kit).threshold
    assert threshold is not None
    own = _name_of(kit)
    return drift_of(threshold, [row.score for row in rows if row.kit == own and row.score is not None], chance=settings.drift)


def _show(pipeline: str, seen: Watched, record: Record) -> None:
    """Shows a run in the Prefect UI: a page, and the highest of the flagged with its map."""
    flagged = sorted((row for row in seen.judged if row.verdict == "anomalous"), key=lambda row: -(row.score or 0.0))
    lines = [f"# {pipeline}: {seen.state}", "", f"{seen}.", ""]
    if flagged:
        lines += ["| score | threshold | picture |", "|---|---|---|"]
        lines += [f"| {row.score:.4f} | {row.threshold:.4f} | {row.picture} |" for row in flagged[:MOST_SHOWN]]
    lines += [f"- {row.picture}: {row.reason}" for row in seen.judged if row.verdict == "unreadable"]
    show_page(pipeline, "watch", "\n".join(lines) + "\n", str(seen))
    if flagged:
        show_picture(pipeline, "flagged", record.overlay_of(flagged[0]), f"{flagged[0].picture}: {flagged[0].score:.4f}")


def _announce(pipeline: str, seen: Watched, kit: str) -> None:
    """Emits an event, which automations may act on: ALERT_EVENT, or DRIFT_EVENT, that once for a kit: what drifted stays so."""
    told = WATCH / pipeline / TOLD_NAME
    if seen.drift.found and told.is_file() and told.read_text(encoding="utf-8") == kit:
        return
    about = {"new": len(seen.judged), "flagged": seen.count("anomalous"), "share": seen.share, "drift": asdict(seen.drift)}
    resource = {"prefect.resource.id": resource_of(pipeline), "prefect.resource.name": pipeline}
    emit_event(DRIFT_EVENT if seen.drift.found else ALERT_EVENT, resource=resource, payload=about)
    if seen.drift.found:
        write_text(told, kit)
