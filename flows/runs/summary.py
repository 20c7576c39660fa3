"""Summarise a run for the Prefect UI.

The summary has the recommended detector and its metrics, four pictures per target, the gate's decision, and the trend of the metrics over
the last runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from changepair.flows.promotion.history import read_recommendation
from changepair.flows.running.places import EVALUATION, GALLERIES_NAME, REPORT_NAME, SCORES
from changepair.flows.running.steps import picture_url
from changepair.flows.runs.journal import Run
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.reporting.advice import advice_of, next_steps
from changepair.tasks.reporting.galleries import short_name
from changepair.tasks.scoring.metrics import heading
from changepair.tasks.scoring.operating import read_operating
from changepair.tasks.scoring.recommendation import Recommendation
from changepair.tasks.scoring.results import COMPARISONS_NAME, OPERATING_NAME, TABLE_NAME, read_comparisons, read_metrics

RUNS = 8  # rows of the trend


def summary(pipeline: str, outcome: str, decision: str, trained: Sequence[str], runs: Sequence[Run], metrics: Mapping[str, Any]) -> str:
    """Return the summary as Markdown.

    Args:
        outcome: Final state of the run, and the reason.
        decision: The gate's comparison as Markdown, or "".
        trained: Detectors that this pipeline trains.
        runs: Earlier runs, newest first.
        metrics: Metrics of this run, in the format of metrics.json.
    """
    folder = EVALUATION / pipeline
    rows, comparisons = read_metrics(folder / TABLE_NAME), read_comparisons(folder / COMPARISONS_NAME)
    recommended = read_recommendation(folder) or Recommendation("", None, ())
    folders = [name for name, one in read_pipelines().datasets.folders.items() if one.layout == "folder"]
    state, _, reason = outcome.partition(": ")
    lines = [f"# {pipeline}: {state}", "", f"{reason[:1].upper()}{reason[1:]}.", ""]
    for advice in advice_of(recommended, rows, read_operating(folder / OPERATING_NAME), SCORES / pipeline / recommended.detector):
        target = advice.target
        lines += [f"{target}: **{advice.verdict.headline}**", "", advice.verdict.reason, ""]
        lines += [f"Next: {step}\n" for step in next_steps(advice, pipeline, rows, comparisons, trained, folders)[:1]]
        lines += [f"Recommended: {advice.what}. {advice.threshold} {advice.how_good}", "", f"`{advice.command(pipeline)}`", ""]
        gallery = folder / GALLERIES_NAME / short_name(target)
        if gallery.is_file():
            about = f"{target}: a missed anomaly, a false alarm, a borderline picture and a detected anomaly"
            lines += [f"![{about}]({picture_url(gallery)})", ""]
    lines += [
        *_trend(recommended.detector, [*reversed(runs[: RUNS - 1])], metrics),
        decision,
        f"Report: `{folder / REPORT_NAME}`",
        "",
    ]
    return "\n".join(lines)


def _trend(detector: str, runs: Sequence[Run], metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table with the detector's metrics on each target, one row per run, oldest first."""
    each = [{target: _of(detector, detectors) for target, detectors in one.items()} for one in (*(run.metrics for run in runs), metrics)]
    targets = list(dict.fromkeys(target for one in each for target in one))
    if not targets or not detector:
        return
    yield from (f"{detector}:", "", f"| run | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}")
    for name, values in zip((*(f"{run.number}, {run.started[:10]}: {run.state}" for run in runs), "this run"), each, strict=True):
        yield f"| {name} | {' | '.join(values.get(target, '') for target in targets)} |"
    yield ""


def _of(detector: str, detectors: Mapping[str, Mapping[str, float | None]]) -> str:
    """Format a detector's metrics on a target; "" without metrics. `detectors` has the format of metrics.json."""
    return ", ".join(f"{heading(name)} {100 * value:.1f} %" for name, value in detectors.get(detector, {}).items() if value is not None)
