"""The command `changepair demo`: a page to drop pictures on, and see what is found."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.arguments import listening, token_for
from flows.prediction import options
from flows.prediction.options import load
from flows.prediction.page import KEPT, add_address, gradio_in, serve_page, small, told
from tasks.common.decoding import ENDINGS, Decoded
from tasks.common.errors import BadInput
from tasks.common.places import is_hidden
from tasks.prediction.files import names_of

if TYPE_CHECKING:
    from tasks.prediction.predictor import Prediction, Predictor

EXAMPLES = """examples:
  changepair demo
  changepair demo --kit line-3 --port 7870
"""
MOST_PROMPTS, MOST_QUERIES, MOST_BATCH = 16, 12, 500
HELP = """Drop one or a few pictures of what is **normal**, then those to check. The map is yellow to red where a picture differs
from the normal ones more than they differ among themselves. The score is from 0 (normal) to 1 (anomalous)."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "demo",
        help="open a page to drop pictures on",
        description="Serves a page: normal pictures, pictures to check, and where they differ.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add(parser)
    add_address(parser, 7860)
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> None:
    """Serve the page until stopped. Raises BadInput if the model cannot be loaded, or the address cannot be used."""
    with listening(arguments.host, arguments.port) as own, tempfile.TemporaryDirectory(prefix="changepair-demo-") as work:
        token_for(own)  # reported before anything is loaded
        predictor = load(arguments)
        gradio = gradio_in(Path(work))
        page = make_page(gradio, predictor, Path(work))
        serve_page(gradio, page, own)


@dataclass
class Session:
    """What one visitor has: the detector with its prompts, and what it said last."""

    predictor: Predictor
    names: tuple[str, ...] = ()
    said: tuple[Prediction, ...] = ()


def make_page(gradio: Any, predictor: Predictor, work: Path) -> Any:
    """Builds the page. predictor: its model is everybody's; its prompts, if it has some, are where each visitor starts. work: for files."""
    from tasks.prediction.predictor import Predictor as Kind

    def mine(session: Session | None) -> Session:
        return session or Session(
            Kind(predictor.model, prompted=predictor.prompted, threshold=predictor.threshold, device=predictor.device)
        )

    def prompt(given: list[Any] | None) -> tuple[Session, str]:
        paths = _paths(gradio, given, MOST_PROMPTS, "normal pictures")
        if not paths:
            return mine(None), _ready(mine(None))
        refused: list[str] = []
        normals = [decoded for path in paths if (decoded := _decoded(path, refused)) is not None]
        if not normals:
            raise gradio.Error("; ".join(refused), duration=None, print_exception=False)
        with told(gradio):
            own = Session(Kind(predictor.model, device=predictor.device).prompt(normals, category=predictor.prompted.category))
        return own, _with_refused(_ready(own), refused)

    def check(session: Session | None, given: list[Any] | None, strength: float) -> tuple[Session, str, list[Any]]:
        own = mine(session)
        paths = _paths(gradio, given, MOST_QUERIES, "pictures to check")
        if not paths:
            return own, "", []
        start, refused = time.perf_counter(), list[str]()
        with told(gradio):
            own.said = tuple(own.predictor.each(paths, refuse=_into(refused, paths)))
        own.names = tuple(Path(paths[one.number]).name for one in own.said)
        verdict = _verdict(own, time.perf_counter() - start) if own.said else "No picture can be read."
        return own, _with_refused(verdict, refused), show(own, strength)

    def show(session: Session | None, strength: float) -> list[Any]:
        from tasks.prediction.outputs import line_of, overlay, shown

        pictures = []
        for name, one in zip(session.names, session.said, strict=True) if session else ():
            line = line_of(name, one.score, session.predictor.threshold)  # type: ignore[union-attr]
            drawn = overlay(one.picture, one.map, session.predictor.top, strength)  # type: ignore[union-attr]
            pictures.append((small(drawn), f"{name}: {shown(line.score)}" + (f", {line.verdict}" if line.verdict else "")))
        return pictures

    def batch(session: Session | None, given: list[str] | None, progress: Any = gradio.Progress()) -> tuple[str, str | None]:  # noqa: B008
        files = [Path(path) for path in given or [] if Path(path).suffix.lower() in ENDINGS and not is_hidden(Path(path).name)]
        if not files:
            raise gradio.Error(f"a folder without a picture ({', '.join(ENDINGS)})", duration=None, print_exception=False)
        if len(files) > MOST_BATCH:
            raise gradio.Error(
                f"{len(files)} pictures, more than {MOST_BATCH}; `changepair predict` takes any number", print_exception=False
            )
        own, folder = mine(session), Path(tempfile.mkdtemp(dir=work))
        with told(gradio):
            flagged, refused = _score_folder(own.predictor, files, folder / "answer", lambda share: progress(share))
        archive = shutil.make_archive(str(folder / "answer"), "zip", folder / "answer")
        shutil.rmtree(folder / "answer")
        lines = [f"{len(files) - len(refused)} pictures scored" + (f", **{flagged} anomalous**" if own.predictor.threshold else "")]
        return _with_refused("\n\n".join(lines), refused), archive

    with gradio.Blocks(title="changepair", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        state = gradio.State()
        gradio.Markdown(f"# changepair\n{HELP}")
        with gradio.Row():
            with gradio.Column():
                tray = {"type": "filepath", "columns": 4, "height": 220, "object_fit": "contain", "interactive": True}
                normal = gradio.Gallery(label="Normal pictures", elem_id="normal", **tray)
                ready = gradio.Markdown(_ready(Session(predictor)), elem_id="ready")
                queries = gradio.Gallery(label="Pictures to check", elem_id="queries", **tray)
                go = gradio.Button("Check", variant="primary", elem_id="check")
            with gradio.Column():
                verdict = gradio.Markdown(elem_classes="verdict", elem_id="verdict")
                found = gradio.Gallery(label="Where it differs", columns=2, height=420, format="png", elem_id="found", interactive=False)
                strength = gradio.Slider(0, 1, value=1, step=0.05, label="How strongly the map is laid over", elem_id="strength")
        with gradio.Row():
            gradio.Markdown("Or an example:")
            for name, pair in make_examples(work / "examples").items():
                button = gradio.Button(name, size="sm", elem_id=f"example-{name}")
                button.click(lambda own=pair: own, None, [normal, queries]).then(prompt, normal, [state, ready])
        with gradio.Accordion("A whole folder", open=False):
            folder = gradio.File(label="Pictures", file_count="directory", elem_id="folder", height=120)
            every = gradio.Button("Check all", elem_id="check-all")
            summary = gradio.Markdown(elem_id="summary")
            download = gradio.File(label="Scores, maps and overlays", interactive=False, elem_id="download")
        normal.change(prompt, normal, [state, ready])
        go.click(check, [state, queries, strength], [state, verdict, found])
        strength.release(show, [state, strength], found, trigger_mode="always_last")  # the default drops what comes meanwhile
        every.click(batch, [state, folder], [summary, download])
    return page


def make_examples(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Writes a few pictures of the packaged textures; gives by name a normal one and one to check."""
    import numpy as np
    from PIL import Image

    from tasks.common.randomness import generator
    from tasks.ingestion.texture_defects import CATEGORIES, defective

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


def _paths(gradio: Any, given: list[Any] | None, most: int, what: str) -> list[str]:
    """Gives the paths of a gallery's pictures."""
    paths = [str(path) for path, _caption in given or []]
    if len(paths) > most:
        raise gradio.Error(f"{len(paths)} {what}, more than {most}", print_exception=False)
    return paths


def _decoded(path: str, refused: list[str]) -> Decoded | None:
    """Decode a picture. If that fails, return None and append the reason to `refused`."""
    from tasks.prediction.pictures import as_decoded

    try:
        return as_decoded(path)
    except BadInput as error:
        _into(refused, [path])(0, error)
        return None


def _into(refused: list[str], paths: Sequence[str | Path]) -> Callable[[int, BadInput], None]:
    """Return a function that appends to a list why a picture is left out, with its file name instead of its path."""
    return lambda number, error: refused.append(str(error).replace(str(paths[number]), Path(paths[number]).name))


def _with_refused(words: str, refused: Sequence[str]) -> str:
    return "\n\n".join([words, *(f"Left out: {line}" for line in refused)])


def _ready(session: Session) -> str:
    own = session.predictor
    if not own.ready:
        return "No normal picture yet."
    held = f"{len(own.prompted.prompts)} normal picture{'s' if len(own.prompted.prompts) != 1 else ''} remembered, by {own.model.name}."
    return held if own.threshold is None else f"{held} Threshold {own.threshold}."


def _verdict(session: Session, seconds: float) -> str:
    from tasks.prediction.outputs import shown

    threshold, said = session.predictor.threshold, session.said
    each = f"{1000 * seconds / max(1, len(said)):.0f} ms a picture"
    if threshold is None:
        scores = ", ".join(f"**{shown(one.score)}**" for one in said)
        return f"Score{'s' if len(said) > 1 else ''} {scores} ({each})"
    flagged = sum(threshold.exceeded(one.score) for one in said)
    whole = ("**Anomalous**" if flagged else "**Normal**") if len(said) == 1 else f"**{flagged} of {len(said)} anomalous**"
    return f"{whole}: {', '.join(shown(one.score) for one in said)}, threshold {shown(threshold.value)} ({each})"


def _score_folder(predictor: Predictor, files: Sequence[Path], folder: Path, report: Any) -> tuple[int, list[str]]:
    """Scores pictures and writes scores, maps and overlays; gives how many are anomalous, and why some were left out."""
    from tasks.prediction.outputs import line_of, save, score_table

    flagged, refused = 0, list[str]()

    names = [Path(*name.parts[-2:]) for name in names_of(files)]
    with score_table(folder / "scores.csv") as keep:
        for one in predictor.each(files, refuse=_into(refused, files)):
            line = line_of(files[one.number].name, one.score, predictor.threshold)
            keep(line)
            save(one, names[one.number], folder, predictor.top, maps="png", overlays=True)
            flagged += line.verdict == "anomalous"
            report((one.number + 1) / len(files))
    return flagged, refused
