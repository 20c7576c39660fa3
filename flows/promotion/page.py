"""Writes in-use.html: which model of a pipeline is in use, what changed by the last decision on it, and the decisions before.

The report cannot say it: it follows from its inputs, as an artifact of DVC does, and is made before the gate decides. It links to this
page, which is made from `current` and `history.jsonl` and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from changepair.flows.promotion.history import Model, decisions_on, folder_of, read_current
from changepair.tasks.common.files import write_text
from changepair.tasks.scoring.figures import heading

PAGE_NAME = "in-use.html"
LISTED = 20  # decisions, the newest first; `changepair history` has all


@dataclass(frozen=True)
class Change:
    """A figure of a detector on a target, 0..1: of the model that was in use, and of the one that was decided on; None if one has none."""

    target: str
    detector: str
    figure: str
    before: float | None
    now: float | None


def write_page(pipeline: str) -> None:
    """Writes the page anew, unless it is what it would be, or no model is in use yet."""
    current = read_current(pipeline)
    if current is None:
        return
    decisions = decisions_on(pipeline)
    file, page = folder_of(pipeline) / PAGE_NAME, _rendered(pipeline, current, decisions)
    if not file.is_file() or file.read_bytes() != page.encode():
        write_text(file, page)


def in_use_before(decisions: list[Model]) -> Model | None:
    """Gives the model that was in use when the last decision was made. decisions: the oldest first."""
    return next((model for model in reversed(decisions[:-1]) if model.action != "kept"), None)


def changes(before: Model, now: Model) -> Iterator[Change]:
    """Yields the figures of two models, as each was measured when it was decided on: for each target, detector and figure of either."""
    for target in dict.fromkeys([*now.figures, *before.figures]):
        sides = [model.figures.get(target, {}) for model in (before, now)]
        for detector in dict.fromkeys([*sides[1], *sides[0]]):
            own = [side.get(detector, {}) for side in sides]
            for figure in dict.fromkeys([*own[1], *own[0]]):
                values = [side.get(figure) for side in own]
                if values != [None, None]:
                    yield Change(target, detector, heading(figure), *values)


def _rendered(pipeline: str, current: Model, decisions: list[Model]) -> str:
    from jinja2 import Environment, FileSystemLoader  # for the end of a run alone

    last, before = decisions[-1], in_use_before(decisions)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template(PAGE_NAME)
    return template.render(
        pipeline=pipeline,
        current=current,
        last=last,
        before=before,
        changes=[] if before is None else list(changes(before, last)),
        decisions=decisions[: -LISTED - 1 : -1],
        left_out=max(0, len(decisions) - LISTED),
    )
