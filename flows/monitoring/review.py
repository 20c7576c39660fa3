"""Serve a page to label the pictures of a watched line: the command `changepair review`."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.flows.arguments import listening, token_for
from changepair.flows.prediction.budget import return_freed_memory
from changepair.flows.prediction.histogram import histogram
from changepair.flows.prediction.options import add_command, tell
from changepair.flows.prediction.page import KEPT, Memory, add_address, gradio_in, memory_of, needs_of_file, serve_page, show_errors, small
from changepair.tasks.common.decoding import FULL, Intensity
from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.prediction.memory import RGB

if TYPE_CHECKING:
    from changepair.flows.monitoring.line import ProductionLine
    from changepair.tasks.common.pictures import Picture
    from changepair.tasks.monitoring.record import Judged

EXAMPLES = """examples:
  changepair review mine
  changepair review mine --record ~/.changepair/mine.watched/data/watch/mine    # results of the deployment
"""
FLAGGED, PASSED = "flagged", "passed"
ANOMALOUS = "anomalous"  # name of an unnamed defect
KEYS = """<script>
document.addEventListener("keydown", (event) => {
  const button = {a: "anomalous", n: "normal", s: "skip", u: "undo"}[event.key];
  if (button && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.matches("input, textarea"))
    document.querySelector(`#${button}`)?.click();
});
</script>"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "Label flagged pictures on a web page"
    description = "Serve a web page to label the pictures that `changepair watch` scored. The labels form a dataset."
    parser = add_command(commands, "review", review, about, description, EXAMPLES)
    parser.add_argument("pipeline", help="name of a pipeline in pipelines.yaml")
    parser.add_argument(
        "--record", type=Path, metavar="FOLDER", help="folder with the results of `changepair watch` (default: the setting watch.record)"
    )
    add_address(parser, 7861, "the pictures of all visitors; larger pictures are refused")


def review(arguments: argparse.Namespace) -> None:
    """Serve the page until stopped.

    Raises BadInput if no picture of the line was scored yet, if --memory is out of bounds, or if the address cannot be used.
    """
    from changepair.flows.monitoring.line import ProductionLine, line_of
    from changepair.tasks.monitoring.record import Record

    total = memory_of(arguments)
    line = line_of(arguments.pipeline)
    if arguments.record is not None:
        line = ProductionLine(line.pipeline, line.settings, Record(arguments.record))
    if not line.record.rows():
        raise BadInput(
            f"{line.record.folder}: contains no scores yet; run `changepair watch {line.pipeline}`, or name another folder with --record"
        )
    with listening(arguments.host, arguments.port) as own, tempfile.TemporaryDirectory(prefix="changepair-review-") as work:
        token_for(own)  # raises before anything is loaded
        return_freed_memory()
        line.verdicts.has_normals([*line.prompts, *line.normals], line.intensity)
        gradio = gradio_in(Path(work))
        tell(f"saving labels to {line.verdicts.folder}; you can use this folder as a dataset in pipelines.yaml")
        serve_page(gradio, make_page(gradio, line, total), own, head=KEYS)


@dataclass
class Sitting:
    """State of one visitor. It holds no picture."""

    kind: str = FLAGGED
    shown: Judged | None = None
    skipped: set[str] = field(default_factory=set)
    given: list[Judged] = field(default_factory=list)


def waiting(line: ProductionLine, kind: str) -> list[Judged]:
    """List the pictures without a label, highest score first. kind: FLAGGED or PASSED."""
    said = line.verdicts.names()
    wanted = "anomalous" if kind == FLAGGED else "normal"
    rows = [row for row in line.record.rows() if row.verdict == wanted and row.name not in said]
    return sorted(rows, key=lambda row: -(row.score or 0.0))


class Page:
    """Handle the events of the page. All visitors share the line and the memory, in which one picture at a time is read."""

    def __init__(self, gradio: Any, line: ProductionLine, total: int) -> None:
        """Create the handlers. The arguments are those of `make_page`."""
        self.gradio, self.line, self.memory = gradio, line, Memory(total)
        self._unread: set[str] = set()  # names of pictures that cannot be shown

    def begin(self, kind: str) -> tuple[Any, ...]:
        """Show the first picture of a kind."""
        with self.memory.turn, show_errors(self.gradio):
            self._unread.clear()
            return self._next(Sitting(kind))

    def say(self, sitting: Sitting, defect: str) -> tuple[Any, ...]:
        """Record the label of a picture, and show the next one."""
        with self.memory.turn, show_errors(self.gradio):
            row = sitting.shown
            if row is not None:
                picture = self._picture(row)
                if picture is None:
                    self.gradio.Warning(f"{row.picture}: the picture was removed or replaced, so no label was saved")
                else:
                    self.line.verdicts.give(row, picture, defect.strip())
                    sitting.given.append(row)
                del picture
            return self._next(sitting)

    def skip(self, sitting: Sitting) -> tuple[Any, ...]:
        """Skip this picture, and show the next one."""
        with self.memory.turn, show_errors(self.gradio):
            if sitting.shown is not None:
                sitting.skipped.add(sitting.shown.name)
            return self._next(sitting)

    def undo(self, sitting: Sitting) -> tuple[Any, ...]:
        """Withdraw the last label of the visitor, and show its picture again."""
        with self.memory.turn, show_errors(self.gradio):
            if sitting.given:
                self.line.verdicts.withdraw(sitting.given.pop())
            return self._next(sitting)

    def _next(self, sitting: Sitting) -> tuple[Any, ...]:
        """Show the next picture that can be shown."""
        left = waiting(self.line, sitting.kind)
        sitting.shown = picture = None
        for row in left:
            if row.name in sitting.skipped or row.name in self._unread:
                continue
            try:
                picture = self._picture(row)
            except BadInput as error:
                self.gradio.Warning(str(error))
            if picture is not None:
                sitting.shown = row
                break
            self._unread.add(row.name)
        thumbnail = None if picture is None else small(picture)
        del picture  # before the overlay is read
        return sitting, *self._drawn(sitting, thumbnail, len(left))

    def _drawn(self, sitting: Sitting, picture: Any, left: int) -> tuple[Any, ...]:
        """Return the progress, the picture, its map, its score, the names of defects, and the histogram.

        picture: in the size of the page. left: number of pictures without a label.
        """
        counts, row = self.line.verdicts.counts(), sitting.shown
        done, good = counts.total(), counts[GOOD]
        said = f"**{left}** {sitting.kind} picture{'' if left == 1 else 's'} left, {done} labelled: {good} normal, {done - good} anomalous"
        choices = self.gradio.update(choices=sorted(counts.keys() - {GOOD} | {ANOMALOUS}))
        if row is None:
            whole = (
                "No pictures are left." if not left else f"No pictures are left, except {left} that you skipped or that no longer exist."
            )
            return said, None, None, whole, choices, ""
        about = f"{row.picture}: score {row.score:.6f}, threshold {row.threshold:.6f}, {row.time[:16].replace('T', ' ')} UTC"
        file = self.line.record.overlay(row)
        overlay = self._read(file, FULL) if file.is_file() else None
        return said, picture, None if overlay is None else small(overlay), about, choices, self._histogram(row)

    def _histogram(self, row: Judged) -> str:
        """Draw the threshold on a histogram of the pictures that passed with the same kit."""
        passed = [one for one in self.line.record.rows() if one.verdict == "normal" and one.kit == row.kit and one.score is not None]
        scores = [one.score for one in passed if one.score is not None]
        return histogram(scores, row.threshold, [row.score or 0.0], f"{len(scores)} passed pictures") if scores else ""

    def _picture(self, row: Judged) -> Picture | None:
        """Read a picture: the copy of a flagged one, or a passed one in the watched folder. Return None if it was removed or replaced.

        Raises BadInput if it does not fit in the memory of the page.
        """
        from changepair.tasks.monitoring.record import key_of

        folder, copy = Path(self.line.settings.folder).expanduser(), self.line.record.flagged(row)
        file = folder / row.picture
        if row.verdict == "anomalous" and copy.is_file():
            return self._read(copy, FULL)
        return self._read(file, self.line.intensity) if file.is_file() and key_of(file, folder) == row.key else None

    def _read(self, file: Path, intensity: Intensity) -> Picture | None:
        from changepair.tasks.prediction.pictures import as_picture

        needs = needs_of_file(file, self.memory.room())
        self.memory.claim(needs.decoding + RGB * needs.pixels, file.name)
        try:
            return as_picture(file, intensity=intensity)
        except BadInput:
            return None


def make_page(gradio: Any, line: ProductionLine, total: int) -> Any:
    """Build the page. total: memory for the pictures of all visitors, in bytes."""
    own = Page(gradio, line, total)
    with gradio.Blocks(title=f"changepair review: {line.pipeline}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        state = gradio.State()
        gradio.Markdown(
            f"# Review: {line.pipeline}\nIs the picture **normal** or **anomalous**? Keys: n normal, a anomalous, s skip, u undo."
        )
        kind = gradio.Radio([FLAGGED, PASSED], value=FLAGGED, label="Pictures to label", elem_id="kind")
        progress = gradio.Markdown(elem_id="progress")
        with gradio.Row():
            shown = {"interactive": False, "format": "png", "height": 480, "buttons": ["fullscreen"], "elem_classes": "filling"}
            picture = gradio.Image(label="Picture", elem_id="picture", **shown)
            overlay = gradio.Image(label="Anomaly map", elem_id="overlay", **shown)
        about = gradio.Markdown(elem_id="about", elem_classes="verdict")
        with gradio.Row(equal_height=True):
            normal = gradio.Button("Normal", elem_id="normal")
            anomalous = gradio.Button("Anomalous", variant="primary", elem_id="anomalous")
            defect = gradio.Dropdown(
                [ANOMALOUS], value=ANOMALOUS, allow_custom_value=True, label="Defect", elem_id="defect", interactive=True
            )
            skipping = gradio.Button("Skip", elem_id="skip")
            undoing = gradio.Button("Undo", elem_id="undo")
        drawn = gradio.HTML(elem_id="histogram")
        outputs = [state, progress, picture, overlay, about, defect, drawn]
        page.load(own.begin, kind, outputs, api_name="begin")
        kind.change(own.begin, kind, outputs, api_name=False)
        normal.click(lambda sitting: own.say(sitting, GOOD), state, outputs, api_name="normal")
        anomalous.click(own.say, [state, defect], outputs, api_name="anomalous")
        skipping.click(own.skip, state, outputs, api_name="skip")
        undoing.click(own.undo, state, outputs, api_name="undo")
    return page
