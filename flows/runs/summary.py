"""Sums a run up for who looks at the Prefect UI and at nothing else: what to use and how good it is, four pictures a target, what became of
the model, and how the figure went over the last runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.running.artifacts import picture_url
from flows.running.places import EVALUATION, REPORT_NAME
from flows.runs.journal import Run
from tasks.reporting.advice import FIGURE, advice_of, next_steps
from tasks.reporting.galleries import GALLERIES_NAME, short_name
from tasks.scoring.figures import heading
from tasks.scoring.operating import OPERATING_NAME, read_operating
from tasks.scoring.results import FIGURES_NAME, read_figures

RUNS = 8
"""Of the trend."""


def summary(pipeline: str, outcome: str, decision: str, trained: Sequence[str], runs: Sequence[Run], figures: Mapping[str, Any]) -> str:
    """Gives the summary as Markdown. outcome: the state that the run ends in, and why. decision: the gate's comparison, as Markdown, or "".
    trained: the detectors that were, here. runs: earlier ones, the newest first. figures: this run's, as metrics.json has them."""
    folder = EVALUATION / pipeline
    rows = read_figures(folder / FIGURES_NAME)
    state, _, reason = outcome.partition(": ")
    lines = [f"# {pipeline}: {state}", "", f"{reason[:1].upper()}{reason[1:]}.", ""]
    for advice in advice_of(rows, read_operating(folder / OPERATING_NAME)):
        target = advice.figure.target
        lines += [f"**{target}**: use **{advice.what}**. {advice.how_good} {advice.at_the_threshold}", ""]
        lines += [f"- {step}" for step in next_steps(advice, rows, trained)]
        lines += ["", *_picture(folder, target)]
    lines += [*_trend([*reversed(runs[: RUNS - 1])], figures), decision, f"Whole report: `{folder / REPORT_NAME}`", ""]
    return "\n".join(lines)


def _picture(folder: Path, target: str) -> Iterator[str]:
    file = folder / GALLERIES_NAME / short_name(target)
    if file.is_file():
        yield f"![{target}: the first picture that was missed, false alarm, borderline one, and one found]({picture_url(file)})"
        yield ""


def _trend(runs: Sequence[Run], figures: Mapping[str, Any]) -> Iterator[str]:
    """Gives a table: a line a run, the best detector's figure on each target, the newest last."""
    best = [{target: best_of(detectors) for target, detectors in each.items()} for each in (*(run.figures for run in runs), figures)]
    targets = list(dict.fromkeys(target for each in best for target in each))
    if not targets:
        return
    yield f"| run | {' | '.join(targets)} |"
    yield f"|---|{'---|' * len(targets)}"
    for name, values in zip((*(f"{run.number}, {run.started[:10]}: {run.state}" for run in runs), "this one"), best, strict=True):
        yield f"| {name} | {' | '.join(values.get(target, '') for target in targets)} |"
    yield ""


def best_of(detectors: Mapping[str, Mapping[str, float | None]]) -> str:
    """Says which of a target's detectors is the best, and its figures; empty if none has FIGURE. detectors: as metrics.json has them."""
    values = {name: value for name, figures in detectors.items() if (value := figures.get(FIGURE)) is not None}
    if not values:
        return ""
    name = max(values, key=lambda one: values[one])
    figures = [f"{heading(figure)} {100 * value:.1f} %" for figure, value in detectors[name].items() if value is not None]
    return ", ".join((name, *figures))
