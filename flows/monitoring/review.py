"""The command `changepair review`: a page on which people say of a watched line's pictures whether they are normal."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.arguments import listening, token_for
from flows.prediction.options import tell
from flows.prediction.page import KEPT, add_address, gradio_in, serve_page, small, told
from tasks.common.errors import BadInput
from tasks.ingestion.listing import GOOD

if TYPE_CHECKING:
    from flows.monitoring.line import Line
    from tasks.common.pictures import Picture
    from tasks.monitoring.record import Judged

EXAMPLES = """examples:
  changepair review mine
  changepair review mine --record ~/.changepair/mine.watched/data/watch/mine    # what the deployment scored
"""
FLAGGED, PASSED = "flagged", "passed"
ANOMALOUS = "anomalous"
"""The defect of what nobody named."""
KEYS = """<script>
document.addEventListener("keydown", (event) => {
  const button = {a: "anomalous", n: "normal", s: "skip", u: "undo"}[event.key];
  if (button && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.matches("input, textarea"))
    document.querySelector(`#${button}`)?.click();
});
</script>"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "review",
        help="open a page to say of a watched line's flagged pictures whether they are normal",
        description="Serves a page of the pictures that `changepair score` flagged; what you say of them becomes a dataset.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="of the line, if it is not where watch.record says")
    add_address(parser, 7861)
    parser.set_defaults(run=review)


def review(arguments: argparse.Namespace) -> None:
    """Serve the page until stopped. Raises BadInput if no picture of the line was scored yet, or the address cannot be used."""
    from flows.monitoring.line import Line, line_of
    from tasks.monitoring.record import Record

    line = line_of(arguments.pipeline)
    if arguments.record is not None:
        line = Line(line.pipeline, line.settings, Record(arguments.record))
    if not line.record.rows():
        raise BadInput(
            f"{line.record.folder}: nothing was scored there yet; `changepair score {line.pipeline}` does, --record names another folder"
        )
    with listening(arguments.host, arguments.port) as own, tempfile.TemporaryDirectory(prefix="changepair-review-") as work:
        token_for(own)  # reported before anything is loaded
        line.verdicts.has_normals([*line.prompts, *line.normals], line.intensity)
        gradio = gradio_in(Path(work))
        tell(f"what you say is kept in {line.verdicts.folder}, a dataset that pipelines.yaml may name")
        serve_page(gradio, make_page(gradio, line), own, head=KEYS)


@dataclass
class Sitting:
    """What one visitor is at."""

    kind: str = FLAGGED
    shown: Judged | None = None
    picture: Picture | None = None
    skipped: set[str] = field(default_factory=set)
    given: list[Judged] = field(default_factory=list)


def waiting(line: Line, kind: str) -> list[Judged]:
    """Lists the pictures of which nobody said anything, the highest score first. kind: FLAGGED, or PASSED."""
    said = line.verdicts.names()
    wanted = "anomalous" if kind == FLAGGED else "normal"
    rows = [row for row in line.record.rows() if row.verdict == wanted and row.name not in said]
    return sorted(rows, key=lambda row: -(row.score or 0.0))


def picture_of(line: Line, row: Judged) -> Picture | None:
    """Reads a picture: the copy of a flagged one, or one that passed from the watched folder; None if it is gone, or is another now."""
    from tasks.monitoring.record import key_of
    from tasks.prediction.pictures import as_picture

    folder = Path(line.settings.folder).expanduser()
    copy, file = line.record.flagged(row), folder / row.picture
    try:
        if row.verdict == "anomalous" and copy.is_file():
            return as_picture(copy)
        return as_picture(file, intensity=line.intensity) if file.is_file() and key_of(file, folder) == row.key else None
    except BadInput:
        return None


def make_page(gradio: Any, line: Line) -> Any:
    """Builds the page."""

    def turn(sitting: Sitting) -> tuple[Any, ...]:
        """Shows the next picture that can be shown."""
        left = waiting(line, sitting.kind)
        sitting.shown = sitting.picture = None
        for row in left:
            if row.name in sitting.skipped:
                continue
            picture = picture_of(line, row)
            if picture is not None:
                sitting.shown, sitting.picture = row, picture
                break
            sitting.skipped.add(row.name)
        return sitting, *_drawn(gradio, line, sitting, len(left))

    def begin(kind: str) -> tuple[Any, ...]:
        return turn(Sitting(kind))

    def say(sitting: Sitting, defect: str) -> tuple[Any, ...]:
        if sitting.shown is not None and sitting.picture is not None:
            with told(gradio):
                line.verdicts.give(sitting.shown, sitting.picture, defect.strip())
            sitting.given.append(sitting.shown)
        return turn(sitting)

    def skip(sitting: Sitting) -> tuple[Any, ...]:
        if sitting.shown is not None:
            sitting.skipped.add(sitting.shown.name)
        return turn(sitting)

    def undo(sitting: Sitting) -> tuple[Any, ...]:
        if sitting.given:
            row = sitting.given.pop()
            line.verdicts.withdraw(row)
        return turn(sitting)

    with gradio.Blocks(title=f"changepair: {line.pipeline}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        state = gradio.State()
        gradio.Markdown(f"# {line.pipeline}\nIs it **normal**, or **anomalous**? Keys: n, a, s to skip, u to undo.")
        kind = gradio.Radio([FLAGGED, PASSED], value=FLAGGED, label="Pictures that were", elem_id="kind")
        progress = gradio.Markdown(elem_id="progress")
        with gradio.Row():
            shown = {"interactive": False, "format": "png", "height": 480, "buttons": ["fullscreen"], "elem_classes": "filling"}
            picture = gradio.Image(label="Picture", elem_id="picture", **shown)
            overlay = gradio.Image(label="Where it differs", elem_id="overlay", **shown)
        about = gradio.Markdown(elem_id="about", elem_classes="verdict")
        with gradio.Row(equal_height=True):
            normal = gradio.Button("Normal", elem_id="normal")
            anomalous = gradio.Button("Anomalous", variant="primary", elem_id="anomalous")
            defect = gradio.Dropdown(
                [ANOMALOUS], value=ANOMALOUS, allow_custom_value=True, label="What is wrong with it", elem_id="defect", interactive=True
            )
            skipping = gradio.Button("Skip", elem_id="skip")
            undoing = gradio.Button("Undo", elem_id="undo")
        outputs = [state, progress, picture, overlay, about, defect]
        page.load(begin, kind, outputs, api_name="begin")
        kind.change(begin, kind, outputs, api_name=False)
        normal.click(lambda sitting: say(sitting, GOOD), state, outputs, api_name="normal")
        anomalous.click(say, [state, defect], outputs, api_name="anomalous")
        skipping.click(skip, state, outputs, api_name="skip")
        undoing.click(undo, state, outputs, api_name="undo")
    return page


def _drawn(gradio: Any, line: Line, sitting: Sitting, left: int) -> tuple[Any, ...]:
    """Gives what the page shows of a picture: how many are left, it, its map, its score, and the defects that have a name."""
    from tasks.prediction.pictures import as_picture

    counts, row = line.verdicts.counts(), sitting.shown
    names = sorted(counts.keys() - {GOOD} | {ANOMALOUS})
    said = f"**{left}** {sitting.kind} to look at, {counts.total()} done: {counts[GOOD]} normal, {counts.total() - counts[GOOD]} anomalous"
    choices = gradio.update(choices=names)
    if row is None:
        whole = "Nothing is left." if not left else f"Nothing is left but {left} that you skipped, or whose picture is gone."
        return said, None, None, whole, choices
    about = f"{row.picture}: {row.score:.6f}, threshold {row.threshold:.6f}, scored {row.time[:16].replace('T', ' ')} UTC"
    overlay = line.record.overlay(row)
    return said, small(sitting.picture), small(as_picture(overlay)) if overlay.is_file() else None, about, choices
