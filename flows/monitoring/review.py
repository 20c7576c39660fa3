"""The command `changepair review`: a page on which people say of a watched line's pictures whether they are normal."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.flows.arguments import listening, token_for
from changepair.flows.prediction.budget import return_freed_memory
from changepair.flows.prediction.options import tell
from changepair.flows.prediction.page import KEPT, add_address, gradio_in, memory_of, serve_page, small, told
from changepair.flows.prediction.sessions import Memory, needs_of_file
from changepair.tasks.common.decoding import FULL, Intensity
from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.prediction.memory import RGB

if TYPE_CHECKING:
    from changepair.flows.monitoring.line import Line
    from changepair.tasks.common.pictures import Picture
    from changepair.tasks.monitoring.record import Judged

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
        description="Serves a page of the pictures that `changepair watch` flagged; what you say of them becomes a dataset.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="of the line, if it is not where watch.record says")
    add_address(parser, 7861)
    parser.set_defaults(run=review)


def review(arguments: argparse.Namespace) -> None:
    """Serve the page until stopped.

    Raises BadInput if no picture of the line was scored yet, if --memory is out of its bounds, or if the address cannot be used.
    """
    from changepair.flows.monitoring.line import Line, line_of
    from changepair.tasks.monitoring.record import Record

    total = memory_of(arguments)
    line = line_of(arguments.pipeline)
    if arguments.record is not None:
        line = Line(line.pipeline, line.settings, Record(arguments.record))
    if not line.record.rows():
        raise BadInput(
            f"{line.record.folder}: nothing was scored there yet; `changepair watch {line.pipeline}` does, --record names another folder"
        )
    with listening(arguments.host, arguments.port) as own, tempfile.TemporaryDirectory(prefix="changepair-review-") as work:
        token_for(own)  # reported before anything is loaded
        return_freed_memory()
        line.verdicts.has_normals([*line.prompts, *line.normals], line.intensity)
        gradio = gradio_in(Path(work))
        tell(f"what you say is kept in {line.verdicts.folder}, a dataset that pipelines.yaml may name")
        serve_page(gradio, make_page(gradio, line, total), own, head=KEYS)


@dataclass
class Sitting:
    """What one visitor is at. It holds no picture."""

    kind: str = FLAGGED
    shown: Judged | None = None
    skipped: set[str] = field(default_factory=set)
    given: list[Judged] = field(default_factory=list)


def waiting(line: Line, kind: str) -> list[Judged]:
    """Lists the pictures of which nobody said anything, the highest score first. kind: FLAGGED, or PASSED."""
    said = line.verdicts.names()
    wanted = "anomalous" if kind == FLAGGED else "normal"
    rows = [row for row in line.record.rows() if row.verdict == wanted and row.name not in said]
    return sorted(rows, key=lambda row: -(row.score or 0.0))


def picture_of(line: Line, row: Judged, memory: Memory) -> Picture | None:
    """Read a picture: the copy of a flagged one, or one that passed from the watched folder. Return None if it was removed or replaced.

    Raises BadInput if it does not fit in the page's memory.
    """
    from changepair.tasks.monitoring.record import key_of

    folder = Path(line.settings.folder).expanduser()
    copy, file = line.record.flagged(row), folder / row.picture
    if row.verdict == "anomalous" and copy.is_file():
        return _read(copy, FULL, memory)
    return _read(file, line.intensity, memory) if file.is_file() and key_of(file, folder) == row.key else None


def _read(file: Path, intensity: Intensity, memory: Memory) -> Picture | None:
    """Read a picture. Return None if it cannot be read. Raises BadInput if it does not fit in the page's memory."""
    from changepair.tasks.prediction.pictures import as_picture

    needs = needs_of_file(file, memory.room())
    memory.claim(needs.decoding + RGB * needs.pixels, file.name)
    try:
        return as_picture(file, intensity=intensity)
    except BadInput:
        return None


def make_page(gradio: Any, line: Line, total: int) -> Any:
    """Build the page. total: bytes of memory for the pictures of all visitors, of which one is read at a time."""
    memory = Memory(total)
    unread: set[str] = set()  # names of pictures that cannot be shown, the same for all visitors

    def turn(sitting: Sitting) -> tuple[Any, ...]:
        """Show the next picture that can be shown."""
        left = waiting(line, sitting.kind)
        sitting.shown = picture = None
        for row in left:
            if row.name in sitting.skipped or row.name in unread:
                continue
            try:
                picture = picture_of(line, row, memory)
            except BadInput as error:
                gradio.Warning(str(error))
            if picture is not None:
                sitting.shown = row
                break
            unread.add(row.name)
        thumbnail = None if picture is None else small(picture)
        del picture  # before the overlay is read
        return sitting, *_drawn(gradio, line, sitting, thumbnail, memory, len(left))

    def begin(kind: str) -> tuple[Any, ...]:
        with memory.turn, told(gradio):
            unread.clear()
            return turn(Sitting(kind))

    def say(sitting: Sitting, defect: str) -> tuple[Any, ...]:
        with memory.turn, told(gradio):
            row = sitting.shown
            picture = None if row is None else picture_of(line, row, memory)
            if row is not None and picture is None:
                gradio.Warning(f"{row.picture}: the picture was removed or replaced, so nothing was recorded")
            elif row is not None and picture is not None:
                line.verdicts.give(row, picture, defect.strip())
                sitting.given.append(row)
            del picture
            return turn(sitting)

    def skip(sitting: Sitting) -> tuple[Any, ...]:
        with memory.turn, told(gradio):
            if sitting.shown is not None:
                sitting.skipped.add(sitting.shown.name)
            return turn(sitting)

    def undo(sitting: Sitting) -> tuple[Any, ...]:
        with memory.turn, told(gradio):
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


def _drawn(gradio: Any, line: Line, sitting: Sitting, picture: Any, memory: Memory, left: int) -> tuple[Any, ...]:
    """Return what the page shows of a picture: how many are left, the picture, its map, its score, and the names of the defects.

    picture: at the size that is shown.
    """
    counts, row = line.verdicts.counts(), sitting.shown
    names = sorted(counts.keys() - {GOOD} | {ANOMALOUS})
    said = f"**{left}** {sitting.kind} to look at, {counts.total()} done: {counts[GOOD]} normal, {counts.total() - counts[GOOD]} anomalous"
    choices = gradio.update(choices=names)
    if row is None:
        whole = "Nothing is left." if not left else f"Nothing is left but {left} that you skipped, or whose picture is gone."
        return said, None, None, whole, choices
    about = f"{row.picture}: {row.score:.6f}, threshold {row.threshold:.6f}, scored {row.time[:16].replace('T', ' ')} UTC"
    file = line.record.overlay(row)
    overlay = _read(file, FULL, memory) if file.is_file() else None
    return said, picture, None if overlay is None else small(overlay), about, choices
