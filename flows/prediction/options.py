"""The options that say with which detector and prompts a command works, and what they load."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.decoding import FULL, Intensity, Range
from tasks.common.errors import BadInput
from tasks.common.tiles import MOST
from tasks.prediction.files import KIT_NAME, files_of, is_kit

if TYPE_CHECKING:
    from tasks.prediction.predictor import Predictor

SEVERAL = "a file, a folder or a pattern"


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--prompt", action="append", default=[], metavar="PICTURE", help=f"what is normal: {SEVERAL}; may be given again")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a model folder; a pipeline, for the best detector of its model in use, or <pipeline>/<detector>; or a detector by name. "
        "The one that comes with the package, if none is given",
    )
    parser.add_argument("--kit", type=Path, metavar="FOLDER", help="a kit: model, prompts and threshold in one")
    parser.add_argument("--category", metavar="WORD", help="what the pictures show, for detectors that read")
    parser.add_argument(
        "--intensity",
        type=_intensity,
        metavar="LOW,HIGH",
        help="the samples that are black and white in pictures of more than 8 bits, or `full` for the range of their type; chosen by the "
        "prompts, if none is given",
    )
    parser.add_argument(
        "--tiles",
        type=_tiles,
        metavar="RxC",
        help="cut each picture into so many rows and columns; 1x1 for whole; by default as the detector's settings say",
    )


def load(arguments: argparse.Namespace) -> Predictor:
    """Load what the options name: a kit, or a model and its prompts. Report which model is used where the user did not say.

    Without a prompt the predictor may not be ready; --tiles holds for prompts that it gets later, too. Raise BadInput for options that
    contradict each other, and for what cannot be loaded.
    """
    kit, prompts, tiles = arguments.kit, arguments.prompt, arguments.tiles
    if kit is not None:
        for option, value in (
            ("--prompt", prompts),
            ("--model", arguments.model),
            ("--tiles", tiles),
            ("--category", arguments.category),
            ("--intensity", arguments.intensity),
        ):
            if value:
                raise BadInput(f"{option}: a kit has its own; leave it out, or --kit")
        if not is_kit(kit):
            raise BadInput(f"{kit}: no kit, as it has no {KIT_NAME}; `changepair predict --write-kit` writes one")
    files = files_of(prompts)
    from tasks.prediction.predictor import Predictor

    if kit is not None:
        return Predictor.load(kit)
    predictor = _of_model(arguments.model)
    if tiles is not None:
        if predictor.prompted.prompts and not files:
            raise BadInput(f"--tiles: {arguments.model} is a kit and has its own; leave it out, or give new prompts with --prompt")
        predictor = Predictor(predictor.model.with_tiles(tiles))
    if arguments.intensity is not None and not files:
        raise BadInput("--intensity: goes with --prompt; without prompts pictures of more than 8 bits are read by the range of their type")
    if not files and (predictor.detector.needs_prompts or arguments.category is None):
        return predictor
    category = {} if arguments.category is None else {"category": arguments.category}
    return predictor.prompt(files, intensity=arguments.intensity, **category)


def tell(line: str) -> None:
    """Prints a line for the user beside the answer, which alone goes to standard output."""
    print(f"changepair: {line}", file=sys.stderr, flush=True)


def _of_model(model: str | None) -> Predictor:
    from tasks.prediction.predictor import Predictor

    if model is not None and Path("pipelines.yaml").is_file():
        from flows.prediction.model_in_use import is_pipeline, model_in_use

        if is_pipeline(model):
            named, which = model_in_use(model)
            tell(which)
            return Predictor(named)
    return Predictor.load("packaged" if model is None else model)


def _intensity(text: str) -> Intensity:
    """Read a range."""
    if text == "full":
        return FULL
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"two numbers, such as 0,4095, or full, not {text!r}")
    return Intensity(Range(low, high), Range(low, high))


def _tiles(text: str) -> tuple[int, int]:
    """Reads rows and columns."""
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal() and 1 <= int(rows) <= MOST and 1 <= int(columns) <= MOST):
        raise argparse.ArgumentTypeError(f"rows x columns, such as 3x4, each 1 to {MOST}, not {text!r}")
    return int(rows), int(columns)
