"""Define the flow `watch`: score new pictures in the watched folder of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from changepair.flows.monitoring.line import ProductionLine, line_of
from changepair.flows.prediction.model_in_use import SEPARATOR, model_in_use
from changepair.flows.promotion.history import read_current
from changepair.flows.running.api import stoppable
from changepair.flows.running.locks import one_at_a_time
from changepair.flows.running.steps import HOUR, progress, show_page, show_picture, step
from changepair.flows.running.workers import Sealed, count_done, for_gpu, on_cluster, wait_for
from changepair.flows.runs.states import ALERT_EVENT, DRIFT_EVENT, LABELLED_EVENT, emit
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256, write_text
from changepair.tasks.monitoring.drift import Drift, drift_of
from changepair.tasks.monitoring.record import KIT_FOLDER, Arrived, Judged, Record, arrived, judge, judge_part, parts_of
from changepair.tasks.prediction.files import KIT_NAME, is_kit
from changepair.tasks.prediction.predictor import Predictor

MADE_OF_NAME, TOLD_NAME, LABELLED_NAME = "made-of.json", "drift-was-told-of", "verdicts-told-of"
MOST_SHOWN = 20  # largest number of flagged pictures on the page of a run, highest scores first
QUIET, ALERT, DRIFTED = "Nothing unusual", "Alert", "Drifted"


@dataclass(frozen=True)
class Watched:
    """Results of a run."""

    judged: tuple[Judged, ...]
    drift: Drift
    alert: float  # share of flagged pictures above which the run alerts

    def count(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.judged)

    @property
    def share(self) -> float:
        """Share of flagged pictures among the readable ones."""
        read = len(self.judged) - self.count("unreadable")
        return self.count("anomalous") / read if read else 0.0

    @property
    def state(self) -> str:
        if self.drift.found:
            return DRIFTED
        return ALERT if self.share > self.alert else QUIET

    def __str__(self) -> str:
        words = f"{len(self.judged)} new picture{'' if len(self.judged) == 1 else 's'}, {self.count('anomalous')} flagged"
        if self.count("unreadable"):
            words += f", {self.count('unreadable')} unreadable"
        if self.share > self.alert:
            words += f"; {100 * self.share:.0f} % flagged is more than the limit of {100 * self.alert:g} %"
        if self.drift.found:
            words += (
                f"; drift: scores of normal pictures changed since the calibration (chance without drift: {100 * self.drift.chance:g} %)"
            )
        return words


@flow(name="watch", flow_run_name="watch {pipeline}")
@stoppable
def watch(pipeline: str) -> State[None]:
    """Score the new pictures. The state is Completed, named QUIET, ALERT or DRIFTED."""
    line, logger = line_of(pipeline), get_run_logger()
    folder = line.record.folder
    with one_at_a_time("scoring", f"score {pipeline}", folder=folder, where=folder, wait=True, tell=logger.warning):
        kit = make_kit(pipeline, line)
        judged = tuple(score_new(pipeline, line, kit))
        line.record.merge(datetime.now(UTC).date().isoformat())
        seen = Watched(judged, _drift(line, kit), line.settings.alert)
        _show(line, seen)
        if seen.state != QUIET:
            logger.warning(f"{pipeline}: {seen.state}: {seen}")
            _announce(line, seen, _name_of(kit))
        _count_verdicts(line, logger.info)
    return Completed(name=seen.state, message=str(seen))


@step(name="update kit", task_run_name="update kit of {pipeline}", timeout_seconds=HOUR)
def make_kit(pipeline: str, line: ProductionLine) -> Path:
    """Return the kit of the current model. Rewrite it if the model, the prompts or the normal pictures changed."""
    settings, folder = line.settings, line.record.folder / KIT_FOLDER
    made_of = _made_of(line)
    file = folder.parent / MADE_OF_NAME
    if is_kit(folder) and file.is_file() and json.loads(file.read_text(encoding="utf-8")) == made_of:
        return folder
    line.check_normals()
    in_use = model_in_use(pipeline if settings.detector is None else f"{pipeline}{SEPARATOR}{settings.detector}")
    logger = get_run_logger()

    def refuse(_number: int, error: BadInput) -> None:
        logger.warning(f"skipped: {error}")

    predictor = Predictor(in_use.named).prompt(line.prompts, intensity=in_use.intensity, refuse=refuse)
    threshold = predictor.calibrate(line.normals, false_alarms=settings.false_alarms, refuse=refuse)
    file.unlink(missing_ok=True)
    predictor.save(folder)
    write_text(file, json.dumps(made_of, indent=1) + "\n")
    logger.info(f"{in_use.which}; threshold {threshold}")
    return folder


@step(name="score new pictures", task_run_name="score new pictures of {pipeline}", timeout_seconds=24 * HOUR)
def score_new(pipeline: str, line: ProductionLine, kit: Path) -> list[Judged]:
    """Score and record the new pictures. Pictures that a killed run recorded are not scored again."""
    pictures = arrived(Path(line.settings.folder).expanduser(), line.record, settled=line.settings.settled)
    if not pictures:
        return []
    report, rows, name = progress(f"{pipeline}: {len(pictures)} new pictures"), [], _name_of(kit)
    divided = on_cluster(read_pipelines().execution)
    for part in _on_cluster(pictures, line.record, kit) if divided else judge(Predictor.load(kit), name, pictures, line.record):
        rows += part
        report(len(rows) / len(pictures))
        stopping.check(f"score {pipeline}, {len(rows)} of {len(pictures)} new pictures scored")
    return rows


def _on_cluster(pictures: Sequence[Arrived], record: Record, kit: Path) -> Iterator[list[Judged]]:
    """Score on the workers, and record the results in the order of the pictures."""
    name = _name_of(kit)
    with for_gpu(read_pipelines().execution):
        parts = [score_part.submit(kit, name, Sealed(part), record.folder) for part in parts_of(pictures)]
    for part in parts:
        wait_for([part], lambda: f"score new pictures, {count_done(parts)} of {len(parts)} parts scored")
        rows: list[Judged] = part.result()
        record.append(rows)
        yield rows


@step(name="score part", timeout_seconds=HOUR)
def score_part(kit: Path, name: str, part: Sealed[Sequence[Arrived]], record: Path) -> list[Judged]:
    """Score a part on a worker. The worker shares the folders with the flow."""
    return judge_part(_loaded(kit, name), name, part.value, Record(record))


@lru_cache(maxsize=1)
def _loaded(kit: Path, name: str) -> Predictor:
    """Load a kit once per worker. name: its hash, which changes with the content of the folder."""
    return Predictor.load(kit)


def _name_of(kit: Path) -> str:
    """Return the hash that identifies a kit in the record."""
    return sha256(kit / KIT_NAME)[:16]


def _made_of(line: ProductionLine) -> Mapping[str, Any]:
    """Return everything that a kit depends on, as JSON."""
    current, settings = read_current(line.pipeline), line.settings
    about: dict[str, Any] = {"model": current.hash if current else None, "detector": settings.detector}
    about["false_alarms"] = settings.false_alarms
    for name, files in (("prompts", line.prompts), ("normals", line.normals)):
        about[name] = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return about


def _drift(line: ProductionLine, kit: Path) -> Drift:
    threshold, own = Predictor.load(kit).threshold, _name_of(kit)
    assert threshold is not None
    scores = [row.score for row in line.record.rows() if row.kit == own and row.score is not None]
    return drift_of(threshold, scores, chance=line.settings.drift)


def _show(line: ProductionLine, seen: Watched) -> None:
    """Show a run in the Prefect UI: a page, and the map of the flagged picture with the highest score."""
    flagged = sorted((row for row in seen.judged if row.verdict == "anomalous"), key=lambda row: -(row.score or 0.0))
    lines = [f"# {line.pipeline}: {seen.state}", "", f"{seen}.", ""]
    if flagged:
        lines += ["| score | threshold | picture |", "|---|---|---|"]
        lines += [f"| {row.score:.6f} | {row.threshold:.6f} | {row.picture} |" for row in flagged[:MOST_SHOWN]]
        lines += ["", f"To label them, run `changepair review {line.pipeline}`."]
    lines += [f"- {row.picture}: {row.reason}" for row in seen.judged if row.verdict == "unreadable"]
    show_page(line.pipeline, "watch", "\n".join(lines) + "\n", str(seen))
    if flagged:
        show_picture(line.pipeline, "flagged", line.record.overlay(flagged[0]), f"{flagged[0].picture}: {flagged[0].score:.6f}")


def _announce(line: ProductionLine, seen: Watched, kit: str) -> None:
    """Emit an event for automations: ALERT_EVENT, or DRIFT_EVENT once per kit."""
    told = line.record.folder / TOLD_NAME
    if seen.drift.found and told.is_file() and told.read_text(encoding="utf-8") == kit:
        return
    about = {"new": len(seen.judged), "flagged": seen.count("anomalous"), "share": seen.share, "drift": asdict(seen.drift)}
    emit(line.pipeline, DRIFT_EVENT if seen.drift.found else ALERT_EVENT, about)
    if seen.drift.found:
        write_text(told, kit)


def _count_verdicts(line: ProductionLine, tell: Callable[[str], None]) -> None:
    """Emit LABELLED_EVENT if there are enough new labels."""
    told, wanted = line.record.folder / LABELLED_NAME, line.settings.retrain_after
    if wanted is None:
        return
    counts = line.verdicts.counts()
    new = counts.total() - (int(told.read_text(encoding="utf-8")) if told.is_file() else 0)
    if new >= wanted:
        tell(f"{line.pipeline}: {new} new labels; requesting a retraining")
        emit(line.pipeline, LABELLED_EVENT, {"new": new, **counts})
        write_text(told, str(counts.total()))
