"""Serve a page that compares uploaded pictures: the command `changepair demo`."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.flows.arguments import listening, token_for
from changepair.flows.prediction import options
from changepair.flows.prediction.budget import return_freed_memory
from changepair.flows.prediction.histogram import histogram
from changepair.flows.prediction.options import load
from changepair.flows.prediction.page import (
    KEPT,
    SHOWN,
    Memory,
    add_address,
    gradio_in,
    memory_of,
    needs_of_file,
    serve_page,
    show_errors,
    small,
)
from changepair.tasks.common.decoding import ENDINGS, Decoded
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.places import is_hidden
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.prediction.files import names_of

if TYPE_CHECKING:
    from changepair.flows.prediction.examples import Example
    from changepair.tasks.common.pictures import Picture
    from changepair.tasks.prediction.predictor import Prediction, Predictor, Refuse

EPILOG = """examples:
  changepair demo
  changepair demo --kit line-3 --port 7870
"""
MOST_PROMPTS, MOST_QUERIES, MOST_BATCH = 16, 12, 500
KEPT_BYTES = 2 * 3 * SHOWN**2  # largest size of a picture and its overlay in a session
HELP = """Upload one or a few **normal** pictures, then the pictures to check. The score ranges from 0 (normal) to 1 (anomalous).
The map is yellow to red where a picture differs from the normal ones more than they differ among themselves."""
NO_THRESHOLD = """Without a threshold there is no verdict. To set one, run
`changepair predict --prompt … --calibrate … --write-kit FOLDER`, then `changepair demo --kit FOLDER`."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "Open a web page to try a model"
    description = "Serve a web page that compares uploaded pictures with normal ones and shows anomaly maps."
    parser = options.add_command(commands, "demo", demo, about, description, EPILOG)
    options.add(parser)
    add_address(parser, 7860)


def demo(arguments: argparse.Namespace) -> None:
    """Serve the page until the process is stopped.

    Raises BadInput if the model cannot be loaded, if --memory is too small for it, or if the address cannot be used.
    """
    total = memory_of(arguments)
    with listening(arguments.host, arguments.port) as own, tempfile.TemporaryDirectory(prefix="changepair-demo-") as work:
        token_for(own)  # raises before anything is loaded
        return_freed_memory()
        predictor = load(arguments)
        gradio = gradio_in(Path(work))
        packaged = arguments.kit is None and arguments.tiles is None and arguments.model in (None, PACKAGED)
        page = make_page(gradio, predictor, Path(work), total, packaged=packaged)
        serve_page(gradio, page, own)


@dataclass(frozen=True)
class Shown:
    """A scored picture, in the size of the page."""

    score: float
    caption: str
    picture: Picture  # HxWx3, at most SHOWN pixels per side
    drawn: Picture  # the same with its map as an overlay


@dataclass(eq=False)
class Session:
    """State of one visitor: the detector with prompts, and the last results."""

    predictor: Predictor
    prompts: int = 0  # size of the features of the visitor's own prompts in bytes
    shown: tuple[Shown, ...] = ()
    files: tuple[str, ...] = ()  # SHA-256 of the files of the visitor's own prompts
    dropped: bool = False  # whether the visitor's own prompts were dropped to free memory for other visitors

    @property
    def size(self) -> int:
        """Memory that this visitor keeps, in bytes."""
        return self.prompts + sum(one.picture.nbytes + one.drawn.nbytes for one in self.shown)

    def drop(self) -> None:
        """Drop the results and the visitor's own prompts."""
        self.shown = ()
        if self.prompts:
            del self.predictor
            self.prompts, self.files, self.dropped = 0, (), True


class Page:
    """Handle the events of the page. All visitors share one model and the memory."""

    def __init__(self, gradio: Any, predictor: Predictor, work: Path, total: int) -> None:
        """Measure the costs of the detector. The arguments are those of `make_page`."""
        from changepair.tasks.prediction.costs import Costs, bytes_of

        self.gradio, self.predictor, self.work = gradio, predictor, work
        self.costs = Costs.of(predictor, prompts=max(MOST_PROMPTS, len(predictor.prompted.prompts)))
        self.memory = Memory(total, bytes_of([predictor]) + self.costs.activations)

    def prompt(self, given: list[Any] | None, session: Session | None = None) -> tuple[Session, str]:
        """Use a visitor's normal pictures as prompts. Return the session and a note on the prompts.

        A session that already has these prompts is kept, with its threshold. Unreadable pictures are skipped. Raises gradio.Error if no
        picture can be read, if there are more than MOST_PROMPTS, or if they do not fit in memory.
        """
        paths = self._paths(given, MOST_PROMPTS, "normal pictures")
        if session is not None and paths and session.files == _hashes(paths):
            return session, _ready(session.predictor)
        if not paths:
            own = self._own(None)
            return own, _ready(own.predictor)
        refused: list[str] = []
        with show_errors(self.gradio), self.memory.turn:
            needs = [needs_of_file(Path(path), self.memory.room()) for path in paths]
            self.memory.claim(self.costs.prompting(needs), "normal pictures")
            normals = [decoded for path in paths if (decoded := _decoded(path, refused)) is not None]
            if not normals:
                raise BadInput("; ".join(refused))
            prompted = copy(self.predictor).prompt(normals, category=self.predictor.prompted.category)
            own = Session(prompted, sum(part.nbytes for part in prompted.prompted.memory), files=_hashes(paths))
            self.memory.keep(own)
        return own, _with_refused(_ready(prompted), refused)

    def example(self, example: Example, files: tuple[str, str], strength: float) -> tuple[Any, ...]:
        """Use the normal picture of an example as the prompt, set a threshold, and check the other picture of the example.

        files: paths of both pictures. Returns the normal pictures, the pictures to check, the session, the note on the prompts, and the
        other results of `check`.
        """
        from changepair.flows.prediction.examples import RATE

        normal, query = ([(file, None)] for file in files)
        session, _note = self.prompt(normal)
        with show_errors(self.gradio), self.memory.turn:
            normals = example.normals()
            size = self.costs.predicting(session.predictor, [needs_of_file(Path(files[0]), self.memory.room(session))] * len(normals))
            self.memory.claim(size, "normal pictures", session)
            threshold = session.predictor.calibrate(normals, false_alarms=RATE)
        session, verdict, shown, drawn = self.check(session, query, strength)
        result = example.result(threshold.exceeded(session.shown[0].score))
        return list(files[:1]), list(files[1:]), session, _ready(session.predictor), f"{verdict}\n\n{result}", shown, drawn

    def check(self, session: Session | None, given: list[Any] | None, strength: float) -> tuple[Session, str, list[Any], str]:
        """Score a visitor's pictures. Return the session, the verdict, the overlays with captions, and the histogram.

        strength: opacity of the maps, from 0 to 1. Pictures that are too large or unreadable are skipped. Raises gradio.Error if there are
        more than MOST_QUERIES, or no prompts.
        """
        paths = self._paths(given, MOST_QUERIES, "pictures to check")
        refused: list[str] = []
        with show_errors(self.gradio), self.memory.turn:
            own = self._own(session)
            if not paths:
                return own, "", [], ""
            start, refuse = time.perf_counter(), _into(refused, paths)
            predictions = self._each(own, paths, refuse, keeps=KEPT_BYTES * len(paths))
            own.shown = tuple(_shown(one, Path(paths[one.number]).name, own.predictor) for one in predictions)
            self.memory.keep(own)
            verdict = _verdict(own, time.perf_counter() - start) if own.shown else "No picture could be read."
        return own, _with_refused(verdict, refused), self.show(own, strength), _histogram(own)

    def show(self, session: Session | None, strength: float) -> list[Any]:
        """Draw the last results: the overlays with captions. strength: opacity of the maps, from 0 to 1."""
        from changepair.tasks.prediction.outputs import blended

        shown = session.shown if session else ()
        return [(small(blended(one.drawn, one.picture, strength)), one.caption) for one in shown]

    def batch(self, session: Session | None, given: list[str] | None, progress: Callable[[float], Any]) -> tuple[str, str | None]:
        """Score the pictures of a folder. Return a summary and the path of a ZIP file with scores, maps and overlays.

        Hidden files and files without the extension of a picture are ignored. Raises gradio.Error if no pictures remain, if there are more
        than MOST_BATCH, or if there are no prompts.
        """
        files = [Path(path) for path in given or [] if Path(path).suffix.lower() in ENDINGS and not is_hidden(Path(path).name)]
        if not files:
            raise self.gradio.Error(f"the folder contains no pictures ({', '.join(ENDINGS)})", duration=None, print_exception=False)
        if len(files) > MOST_BATCH:
            many = f"{len(files)} pictures are more than the limit of {MOST_BATCH}; use `changepair predict` for more"
            raise self.gradio.Error(many, print_exception=False)
        folder, refused = Path(tempfile.mkdtemp(dir=self.work)), list[str]()
        with show_errors(self.gradio), self.memory.turn:
            own = self._own(session)
            flagged = _save(own.predictor, files, self._each(own, files, _into(refused, files)), folder / "results", progress)
        archive = shutil.make_archive(str(folder / "results"), "zip", folder / "results")
        shutil.rmtree(folder / "results")
        scored = f"{len(files) - len(refused)} pictures scored" + (f", **{flagged} anomalous**" if own.predictor.threshold else "")
        return _with_refused(scored, refused), archive

    def _own(self, session: Session | None) -> Session:
        if session is not None and session.dropped:
            raise BadInput("your normal pictures were dropped to free memory for other visitors; upload them again")
        return session or Session(copy(self.predictor))

    def _paths(self, given: list[Any] | None, most: int, what: str) -> list[str]:
        """Return the paths of the pictures in a gallery."""
        paths = [str(path) for path, _caption in given or []]
        if len(paths) > most:
            raise self.gradio.Error(f"{len(paths)} {what} are more than the limit of {most}", print_exception=False)
        return paths

    def _each(self, own: Session, files: Sequence[str | Path], refuse: Refuse, keeps: int = 0) -> Iterator[Prediction]:
        """Score pictures as `Predictor.each` does, one at a time if they do not fit in memory together.

        refuse: called for each picture that is too large or unreadable. keeps: bytes of predictions that the caller keeps.
        """
        memory, costs = self.memory, self.costs
        needs = [needs_of_file(Path(file), memory.room(own)) for file in files]
        together = costs.predicting(own.predictor, needs) + keeps
        if together <= memory.room(own):
            memory.claim(together, "pictures", own)
            yield from own.predictor.each(files, refuse=refuse)
            return
        for number, (file, need) in enumerate(zip(files, needs, strict=True)):
            try:
                memory.claim(costs.predicting(own.predictor, [need]) + keeps, str(file), own)
            except BadInput as error:
                refuse(number, error)
                continue
            for one in own.predictor.each([file], refuse=lambda _place, error, number=number: refuse(number, error)):  # type: ignore[misc]
                yield replace(one, number=number)


def make_page(gradio: Any, predictor: Predictor, work: Path, total: int, *, packaged: bool = False) -> Any:
    """Build the page. Raises BadInput if `total` is too small for the detector.

    All visitors use `predictor`, and start with its prompts if it has any. `work` is a folder for files. `total` is the memory in bytes
    for the detector, and for the pictures and prompts of all visitors. `packaged` says whether the detector is the packaged one. The
    outcomes of the examples are known for this detector only.
    """
    from changepair.flows.prediction.examples import EXAMPLES, NORMALS, RATE  # scipy and scikit-image

    own = Page(gradio, predictor, work, total)
    (work / "examples").mkdir(parents=True)

    def batch(session: Session | None, given: list[str] | None, progress: Any = gradio.Progress()) -> tuple[str, str | None]:  # noqa: B008
        return own.batch(session, given, progress)

    with gradio.Blocks(title="changepair demo", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        state = gradio.State()
        gradio.Markdown(f"# changepair\n{HELP}")
        gradio.Markdown(f"**Examples.** The threshold comes from {NORMALS} normal pictures, for a false-alarm rate of {100 * RATE:g} %.")
        with gradio.Row():
            buttons = [
                gradio.Button(f"{one.title}: {one.outcome}" if packaged else one.title, size="sm", elem_id=f"example-{one.texture}")
                for one in EXAMPLES
            ]
        with gradio.Row():
            with gradio.Column():
                tray = {"type": "filepath", "columns": 4, "fit_columns": False, "height": 220, "object_fit": "contain", "interactive": True}
                normal = gradio.Gallery(label="Normal pictures", elem_id="normal", **tray)
                ready = gradio.Markdown(_ready(predictor), elem_id="ready")
                queries = gradio.Gallery(label="Pictures to check", elem_id="queries", **tray)
                go = gradio.Button("Check", variant="primary", elem_id="check")
            with gradio.Column():
                verdict = gradio.Markdown(elem_classes="verdict", elem_id="verdict")
                grid = {"columns": 2, "fit_columns": False, "object_fit": "contain", "format": "png", "interactive": False}
                found = gradio.Gallery(label="Anomaly maps", elem_id="found", **grid)
                strength = gradio.Slider(0, 1, value=1, step=0.05, label="Opacity of the map", elem_id="strength")
                drawn = gradio.HTML(elem_id="histogram")
        with gradio.Accordion("Check a folder", open=False):
            folder = gradio.File(label="Pictures", file_count="directory", elem_id="folder", height=120)
            every = gradio.Button("Check all", elem_id="check-all")
            summary = gradio.Markdown(elem_id="summary")
            download = gradio.File(label="Scores, maps and overlays", interactive=False, elem_id="download")
        for button, example in zip(buttons, EXAMPLES, strict=True):
            files = example.write(work / "examples")
            click = lambda strength, example=example, files=files: own.example(example, files, strength)  # noqa: E731
            button.click(click, strength, [normal, queries, state, ready, verdict, found, drawn], api_name=False)
        normal.change(own.prompt, [normal, state], [state, ready], api_name="prompt")
        go.click(own.check, [state, queries, strength], [state, verdict, found, drawn])
        # With the default trigger mode, values that arrive during a run are lost.
        strength.release(own.show, [state, strength], found, trigger_mode="always_last")
        every.click(batch, [state, folder], [summary, download])
    return page


def _decoded(path: str, refused: list[str]) -> Decoded | None:
    """Decode a picture. If this fails, return None and append the reason to `refused`."""
    from changepair.tasks.prediction.pictures import as_decoded

    try:
        return as_decoded(path)
    except BadInput as error:
        _into(refused, [path])(0, error)
        return None


def _into(refused: list[str], paths: Sequence[str | Path]) -> Refuse:
    """Return a function that appends to a list why a picture is skipped, with its file name instead of its path."""
    return lambda number, error: refused.append(str(error).replace(str(paths[number]), Path(paths[number]).name))


def _with_refused(words: str, refused: Sequence[str]) -> str:
    return "\n\n".join([words, *(f"Skipped: {line}" for line in refused)])


def _ready(predictor: Predictor) -> str:
    if not predictor.ready:
        return "No normal pictures yet."
    count = len(predictor.prompted.prompts)
    held = f"{count} normal picture{'s' if count != 1 else ''} loaded. Detector: {predictor.model.name}."
    return f"{held} {NO_THRESHOLD}" if predictor.threshold is None else f"{held} Threshold: {predictor.threshold}."


def _hashes(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(sha256(Path(path)) for path in paths)


def _histogram(session: Session) -> str:
    """Draw the threshold on a histogram of the normal pictures that set it; "" without a threshold."""
    threshold, scores = session.predictor.threshold, [one.score for one in session.shown]
    if threshold is None or not scores:
        return ""
    return histogram(threshold.normals, threshold.value, scores, f"{len(threshold.normals)} normal pictures that set the threshold")


def _verdict(session: Session, seconds: float) -> str:
    from changepair.tasks.prediction.outputs import shown

    threshold, scores = session.predictor.threshold, [one.score for one in session.shown]
    each = f"{1000 * seconds / max(1, len(scores)):.0f} ms per picture"
    if threshold is None:
        listed = ", ".join(f"**{shown(score)}**" for score in scores)
        return f"Score{'s' if len(scores) > 1 else ''} {listed} ({each})"
    flagged = sum(threshold.exceeded(score) for score in scores)
    whole = ("**Anomalous**" if flagged else "**Normal**") if len(scores) == 1 else f"**{flagged} of {len(scores)} anomalous**"
    return f"{whole}: score{'s' if len(scores) > 1 else ''} {', '.join(map(shown, scores))}, threshold {shown(threshold.value)} ({each})"


def _shown(one: Prediction, name: str, predictor: Predictor) -> Shown:
    """Draw a prediction in the size of the page."""
    import numpy as np

    from changepair.tasks.common.sheets import heated
    from changepair.tasks.prediction.outputs import line_of, shown

    line = line_of(name, one.score, predictor.threshold)
    caption = f"{name}: {shown(line.score)}" + (f", {line.verdict}" if line.verdict else "")
    picture, drawn = (np.asarray(small(pixels)) for pixels in (one.picture, heated(one.picture, one.map, predictor.top)))
    return Shown(one.score, caption, picture, drawn)


def _save(
    predictor: Predictor, files: Sequence[Path], predictions: Iterator[Prediction], folder: Path, report: Callable[[float], None]
) -> int:
    """Write scores, maps and overlays. Return the number of anomalous pictures."""
    from changepair.tasks.prediction.outputs import line_of, save, score_table

    flagged = 0
    names = [Path(*name.parts[-2:]) for name in names_of(files)]
    with score_table(folder / "scores.csv") as keep:
        for one in predictions:
            line = line_of(files[one.number].name, one.score, predictor.threshold)
            keep(line)
            save(one, names[one.number], folder, predictor.top, maps="png", overlays=True)
            flagged += line.verdict == "anomalous"
            report((one.number + 1) / len(files))
    return flagged
