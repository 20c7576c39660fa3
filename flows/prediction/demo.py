"""The command `changepair demo`: a page to drop pictures on, and see what is found."""

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
from changepair.flows.prediction.options import load
from changepair.flows.prediction.page import KEPT, SHOWN, Memory, add_address, gradio_in, memory_of, needs_of_file, serve_page, small, told
from changepair.tasks.common.decoding import ENDINGS, Decoded
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_hidden
from changepair.tasks.prediction.files import names_of

if TYPE_CHECKING:
    from changepair.tasks.common.pictures import Picture
    from changepair.tasks.prediction.predictor import Prediction, Predictor, Refuse

EXAMPLES = """examples:
  changepair demo
  changepair demo --kit line-3 --port 7870
"""
MOST_PROMPTS, MOST_QUERIES, MOST_BATCH = 16, 12, 500
KEPT_BYTES = 2 * 3 * SHOWN**2  # largest size of what a session keeps of a picture
HELP = """Drop one or a few pictures of what is **normal**, then those to check. The map is yellow to red where a picture differs
from the normal ones more than they differ among themselves. The score is from 0 (normal) to 1 (anomalous)."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "open a page to drop pictures on"
    description = "Serves a page: normal pictures, pictures to check, and where they differ."
    parser = options.add_command(commands, "demo", demo, about, description, EXAMPLES)
    options.add(parser)
    add_address(parser, 7860)


def demo(arguments: argparse.Namespace) -> None:
    """Serve the page until stopped.

    Raises BadInput if the model cannot be loaded, if --memory is too small for it, or if the address cannot be used.
    """
    total = memory_of(arguments)
    with listening(arguments.host, arguments.port) as own, tempfile.TemporaryDirectory(prefix="changepair-demo-") as work:
        token_for(own)  # reported before anything is loaded
        return_freed_memory()
        predictor = load(arguments)
        gradio = gradio_in(Path(work))
        page = make_page(gradio, predictor, Path(work), total)
        serve_page(gradio, page, own)


@dataclass(frozen=True)
class Shown:
    """A scored picture, at the size that the page shows."""

    score: float
    caption: str
    picture: Picture  # hxwx3, at most SHOWN pixels a side
    drawn: Picture  # the same with its map


@dataclass(eq=False)
class Session:
    """What one visitor has: the detector with its prompts, and the last results."""

    predictor: Predictor
    prompts: int = 0  # bytes of the features of the visitor's own prompts
    shown: tuple[Shown, ...] = ()
    dropped: bool = False  # whether the visitor's own prompts were dropped, because other visitors needed the memory

    @property
    def size(self) -> int:
        """Bytes that are kept for this visitor."""
        return self.prompts + sum(one.picture.nbytes + one.drawn.nbytes for one in self.shown)

    def drop(self) -> None:
        """Forget the results, and the visitor's own prompts."""
        self.shown = ()
        if self.prompts:
            del self.predictor
            self.prompts, self.dropped = 0, True


class Page:
    """The steps of the page, and what all visitors share: one model, and the memory."""

    def __init__(self, gradio: Any, predictor: Predictor, work: Path, total: int) -> None:
        """As for `make_page`."""
        from changepair.tasks.prediction.costs import Costs, bytes_of

        self.gradio, self.predictor, self.work = gradio, predictor, work
        self.costs = Costs.of(predictor, prompts=max(MOST_PROMPTS, len(predictor.prompted.prompts)))
        self.memory = Memory(total, bytes_of([predictor]) + self.costs.activations)

    def prompt(self, given: list[Any] | None) -> tuple[Session, str]:
        """Remember a visitor's normal pictures."""
        paths = self._paths(given, MOST_PROMPTS, "normal pictures")
        if not paths:
            own = self._own(None)
            return own, _ready(own.predictor)
        refused: list[str] = []
        with told(self.gradio), self.memory.turn:
            needs = [needs_of_file(Path(path), self.memory.room()) for path in paths]
            self.memory.claim(self.costs.prompting(needs), "normal pictures")
            normals = [decoded for path in paths if (decoded := _decoded(path, refused)) is not None]
            if not normals:
                raise BadInput("; ".join(refused))
            prompted = copy(self.predictor).prompt(normals, category=self.predictor.prompted.category)
            own = Session(prompted, sum(part.nbytes for part in prompted.prompted.memory))
            self.memory.keep(own)
        return own, _with_refused(_ready(prompted), refused)

    def check(self, session: Session | None, given: list[Any] | None, strength: float) -> tuple[Session, str, list[Any]]:
        """Score a visitor's pictures."""
        paths = self._paths(given, MOST_QUERIES, "pictures to check")
        refused: list[str] = []
        with told(self.gradio), self.memory.turn:
            own = self._own(session)
            if not paths:
                return own, "", []
            start, refuse = time.perf_counter(), _into(refused, paths)
            predictions = self._each(own, paths, refuse, keeps=KEPT_BYTES * len(paths))
            own.shown = tuple(_shown(one, Path(paths[one.number]).name, own.predictor) for one in predictions)
            self.memory.keep(own)
            verdict = _verdict(own, time.perf_counter() - start) if own.shown else "No picture can be read."
        return own, _with_refused(verdict, refused), self.show(own, strength)

    def show(self, session: Session | None, strength: float) -> list[Any]:
        """Draw the last results. strength: of the maps, 0 to 1."""
        from changepair.tasks.prediction.outputs import blended

        shown = session.shown if session else ()
        return [(small(blended(one.drawn, one.picture, strength)), one.caption) for one in shown]

    def batch(self, session: Session | None, given: list[str] | None, progress: Callable[[float], Any]) -> tuple[str, str | None]:
        """Score the pictures of a folder, and pack the results into an archive."""
        files = [Path(path) for path in given or [] if Path(path).suffix.lower() in ENDINGS and not is_hidden(Path(path).name)]
        if not files:
            raise self.gradio.Error(f"a folder without a picture ({', '.join(ENDINGS)})", duration=None, print_exception=False)
        if len(files) > MOST_BATCH:
            many = f"{len(files)} pictures, more than {MOST_BATCH}; `changepair predict` takes any number"
            raise self.gradio.Error(many, print_exception=False)
        folder, refused = Path(tempfile.mkdtemp(dir=self.work)), list[str]()
        with told(self.gradio), self.memory.turn:
            own = self._own(session)
            flagged = _save(own.predictor, files, self._each(own, files, _into(refused, files)), folder / "answer", progress)
        archive = shutil.make_archive(str(folder / "answer"), "zip", folder / "answer")
        shutil.rmtree(folder / "answer")
        scored = f"{len(files) - len(refused)} pictures scored" + (f", **{flagged} anomalous**" if own.predictor.threshold else "")
        return _with_refused(scored, refused), archive

    def _own(self, session: Session | None) -> Session:
        if session is not None and session.dropped:
            raise BadInput("your normal pictures were dropped, because other visitors needed the memory; give them again")
        return session or Session(copy(self.predictor))

    def _paths(self, given: list[Any] | None, most: int, what: str) -> list[str]:
        """Return the paths of a gallery's pictures."""
        paths = [str(path) for path, _caption in given or []]
        if len(paths) > most:
            raise self.gradio.Error(f"{len(paths)} {what}, more than {most}", print_exception=False)
        return paths

    def _each(self, own: Session, files: Sequence[str | Path], refuse: Refuse, keeps: int = 0) -> Iterator[Prediction]:
        """Score pictures as `Predictor.each`, one at a time if they do not fit in memory together.

        refuse: called for each picture that does not fit alone, or cannot be read. keeps: bytes that the caller keeps of the predictions.
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


def make_page(gradio: Any, predictor: Predictor, work: Path, total: int) -> Any:
    """Build the page. Raises BadInput if `total` is too small for the detector.

    predictor: the model of all visitors; each visitor starts with its prompts, if it has some. work: a folder for files. total: bytes of
    memory for the detector, and for the pictures and prompts of all visitors.
    """
    own = Page(gradio, predictor, work, total)

    def batch(session: Session | None, given: list[str] | None, progress: Any = gradio.Progress()) -> tuple[str, str | None]:  # noqa: B008
        return own.batch(session, given, progress)

    with gradio.Blocks(title="changepair", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        state = gradio.State()
        gradio.Markdown(f"# changepair\n{HELP}")
        with gradio.Row():
            with gradio.Column():
                tray = {"type": "filepath", "columns": 4, "height": 220, "object_fit": "contain", "interactive": True}
                normal = gradio.Gallery(label="Normal pictures", elem_id="normal", **tray)
                ready = gradio.Markdown(_ready(predictor), elem_id="ready")
                queries = gradio.Gallery(label="Pictures to check", elem_id="queries", **tray)
                go = gradio.Button("Check", variant="primary", elem_id="check")
            with gradio.Column():
                verdict = gradio.Markdown(elem_classes="verdict", elem_id="verdict")
                found = gradio.Gallery(label="Where it differs", columns=2, height=420, format="png", elem_id="found", interactive=False)
                strength = gradio.Slider(0, 1, value=1, step=0.05, label="How strongly the map is laid over", elem_id="strength")
        with gradio.Row():
            gradio.Markdown("Or an example:")
            for name, example in make_examples(work / "examples").items():
                button = gradio.Button(name, size="sm", elem_id=f"example-{name}")
                button.click(lambda pair=example: pair, None, [normal, queries]).then(own.prompt, normal, [state, ready])
        with gradio.Accordion("A whole folder", open=False):
            folder = gradio.File(label="Pictures", file_count="directory", elem_id="folder", height=120)
            every = gradio.Button("Check all", elem_id="check-all")
            summary = gradio.Markdown(elem_id="summary")
            download = gradio.File(label="Scores, maps and overlays", interactive=False, elem_id="download")
        normal.change(own.prompt, normal, [state, ready])
        go.click(own.check, [state, queries, strength], [state, verdict, found])
        strength.release(own.show, [state, strength], found, trigger_mode="always_last")  # the default drops what comes meanwhile
        every.click(batch, [state, folder], [summary, download])
    return page


def make_examples(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Write a few pictures of the packaged textures. Return a normal one and one to check, by name."""
    import numpy as np
    from PIL import Image

    from changepair.tasks.common.randomness import generator
    from changepair.tasks.ingestion.texture_defects import CATEGORIES, defective

    folder.mkdir(parents=True)
    pairs = {}
    for name, category in CATEGORIES.items():
        defect = next(iter(category.defects))
        pictures = {
            f"{name}-normal": category.texture(generator(0, "demo", name), "train"),
            f"{name}-{defect}": defective(category, defect, generator(0, "demo", name, defect))[0],
        }
        for file, pixels in pictures.items():
            Image.fromarray(np.rint(pixels).astype(np.uint8)).save(folder / f"{file}.png")
        normal, query = (str(folder / f"{file}.png") for file in pictures)
        pairs[name] = ([normal], [query])
    return pairs


def _decoded(path: str, refused: list[str]) -> Decoded | None:
    """Decode a picture. If that fails, return None and append the reason to `refused`."""
    from changepair.tasks.prediction.pictures import as_decoded

    try:
        return as_decoded(path)
    except BadInput as error:
        _into(refused, [path])(0, error)
        return None


def _into(refused: list[str], paths: Sequence[str | Path]) -> Refuse:
    """Return a function that appends to a list why a picture is left out, with its file name instead of its path."""
    return lambda number, error: refused.append(str(error).replace(str(paths[number]), Path(paths[number]).name))


def _with_refused(words: str, refused: Sequence[str]) -> str:
    return "\n\n".join([words, *(f"Left out: {line}" for line in refused)])


def _ready(predictor: Predictor) -> str:
    if not predictor.ready:
        return "No normal picture yet."
    count = len(predictor.prompted.prompts)
    held = f"{count} normal picture{'s' if count != 1 else ''} remembered, by {predictor.model.name}."
    return held if predictor.threshold is None else f"{held} Threshold {predictor.threshold}."


def _verdict(session: Session, seconds: float) -> str:
    from changepair.tasks.prediction.outputs import shown

    threshold, scores = session.predictor.threshold, [one.score for one in session.shown]
    each = f"{1000 * seconds / max(1, len(scores)):.0f} ms a picture"
    if threshold is None:
        listed = ", ".join(f"**{shown(score)}**" for score in scores)
        return f"Score{'s' if len(scores) > 1 else ''} {listed} ({each})"
    flagged = sum(threshold.exceeded(score) for score in scores)
    whole = ("**Anomalous**" if flagged else "**Normal**") if len(scores) == 1 else f"**{flagged} of {len(scores)} anomalous**"
    return f"{whole}: {', '.join(map(shown, scores))}, threshold {shown(threshold.value)} ({each})"


def _shown(one: Prediction, name: str, predictor: Predictor) -> Shown:
    """Draw a prediction, and make it as small as the page shows it."""
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
    """Write scores, maps and overlays. Return how many pictures are anomalous."""
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
