"""Define the options that select detector, prompts and threshold, and load a predictor from them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from changepair.flows.running.places import SETTINGS_NAME
from changepair.tasks.common.decoding import FULL, Intensity, Range
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.imports import uncollected
from changepair.tasks.common.tiles import MOST
from changepair.tasks.prediction.files import KIT_NAME, files_of, is_kit

if TYPE_CHECKING:
    from changepair.flows.prediction.model_in_use import InUse
    from changepair.tasks.prediction.predictor import Predictor

SEVERAL = "file, folder or pattern"


Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], None]


def add_command(commands: Commands, name: str, run: Run, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Add a command that calls `run`. summary: its line in the list of commands. epilog: examples, printed unchanged."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=summary, description=description, epilog=epilog, formatter_class=shape)
    parser.set_defaults(run=run)
    return parser


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="PICTURE", help=f"normal pictures to compare with: {SEVERAL}; repeatable"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a pipeline, for detector, prompts and threshold of its current model; <pipeline>/<detector> for another of its detectors, "
        "without prompts and threshold; a model folder or kit; or the name of a detector (default: robust-residual)",
    )
    parser.add_argument("--kit", type=Path, metavar="FOLDER", help="a kit: a folder with model, prompts and threshold")
    parser.add_argument(
        "--category",
        metavar="WORD",
        help="category of the pictures: selects prompts and threshold of a pipeline, and is the text for text-prompted detectors",
    )
    parser.add_argument(
        "--intensity",
        type=_intensity,
        metavar="LOW,HIGH",
        help="black and white values of pictures with more than 8 bits, or `full` for the range of the sample type (default: chosen from "
        "the prompts)",
    )
    parser.add_argument(
        "--tiles",
        type=_tiles,
        metavar="RxC",
        help="split each picture into R rows and C columns; 1x1 for whole pictures (default: setting of the detector)",
    )


def load(arguments: argparse.Namespace, *, ready: bool = False, refuse: Callable[[int, BadInput], None] | None = None) -> Predictor:
    """Load a kit, or a model with its prompts, and print which model of a pipeline is used.

    The current model of a pipeline comes with prompts and threshold, unless the user gives prompts. --tiles also applies to later prompts.

    ready: whether to raise BadInput if a pipeline has several categories and --category is missing. Otherwise the predictor has no prompts.
    refuse: called for each unreadable prompt, which is then skipped. Without it, BadInput is raised.

    Raises BadInput for contradictory options, and if something cannot be loaded.
    """
    kit, prompts, tiles = arguments.kit, arguments.prompt, arguments.tiles
    if kit is not None:
        for option in ("prompt", "model", "tiles", "category", "intensity"):
            if getattr(arguments, option):
                raise BadInput(f"--{option}: cannot be combined with --kit, because the kit includes it; remove one of both options")
        if not is_kit(kit):
            raise BadInput(f"{kit}: is not a kit, because {KIT_NAME} is missing; create one with `changepair predict --write-kit`")
    files = files_of(prompts)
    with uncollected(freeze=True):
        from changepair.tasks.detectors.detector import ANY_CATEGORY
        from changepair.tasks.prediction.predictor import Predictor

    if kit is not None:
        return Predictor.load(kit)
    in_use = _in_use(arguments.model)
    if in_use is None:
        predictor = Predictor.load("packaged" if arguments.model is None else arguments.model)
        if tiles is not None and predictor.prompted.prompts and not files:
            raise BadInput(f"--tiles: {arguments.model} is a kit and includes it; remove the option, or give new prompts with --prompt")
    else:
        tell(in_use.which)
        predictor = Predictor(in_use.named)
    if tiles is not None:
        predictor = Predictor(predictor.model.with_tiles(tiles))
    if arguments.intensity is not None and not files:
        raise BadInput("--intensity: needs --prompt, because prompts and pictures share one range; add --prompt, or remove the option")
    if in_use is not None and in_use.recommendation is not None:
        if not files:
            return _as_recommended(predictor, in_use, arguments, ready)
        tell(f"{in_use.pipeline}: the threshold of the pipeline does not apply to your own prompts; set one with --calibrate")
    if not files and (predictor.detector.needs_prompts or arguments.category is None):
        return predictor
    intensity = arguments.intensity or (None if in_use is None else in_use.intensity)
    category = ANY_CATEGORY if arguments.category is None else arguments.category
    predictor.prompt(files, category=category, intensity=intensity, refuse=refuse)
    for kind, chosen in (("integer", predictor.prompted.intensity.integer), ("float", predictor.prompted.intensity.floating)):
        if chosen is not None and arguments.intensity is None:
            tell(f"intensity range of {kind} samples with more than 8 bits: {chosen}; --intensity sets another range")
    return predictor


def check_normals(normals: Sequence[Path], prompts: Sequence[Path], false_alarms: float) -> None:
    """Raise BadInput if there are too few normal pictures for a threshold. Prompts do not count. No model is loaded."""
    from changepair.tasks.prediction.calibration import check_count

    taken = set(map(os.path.realpath, prompts))
    others = [file for file in normals if os.path.realpath(file) not in taken]
    check_count(len(others), false_alarms, prompts=len(normals) - len(others))


def tell(line: str) -> None:
    """Print a line to standard error. Standard output has only the scores."""
    print(f"changepair: {line}", file=sys.stderr, flush=True)


def _in_use(model: str | None) -> InUse | None:
    """Find the current model of a pipeline, or of another project, if --model names one."""
    of_project = model is not None and (Path(model) / SETTINGS_NAME).is_file()
    if model is None or not (of_project or Path("pipelines.yaml").is_file()):
        return None
    from changepair.flows.prediction.model_in_use import is_pipeline, model_in_use, model_of_project

    if of_project:
        return model_of_project(Path(model))
    return model_in_use(model) if is_pipeline(model) else None


def _as_recommended(predictor: Predictor, in_use: InUse, arguments: argparse.Namespace, ready: bool) -> Predictor:
    """Set the recommended prompts and threshold for --category."""
    from changepair.tasks.detectors.detector import ANY_CATEGORY

    category, tiles, about = arguments.category, arguments.tiles, in_use.pipeline
    try:
        use = in_use.use_of(category)
    except BadInput as error:
        if ready or category is not None:
            raise
        tell(f"{error}. The start continues without prompts")
        return predictor
    if use is None:
        tell(f"{about}: {category!r} is not a category of its targets, so no threshold applies")
        return predictor.prompt([], category=category)
    if use.prompts or not predictor.detector.needs_prompts:
        predictor.prompt(in_use.prompts_of(use), category=use.word or ANY_CATEGORY, intensity=use.intensity)
    if tiles is not None and use.threshold is not None:
        tell(f"{about}: the threshold for {use.name} does not apply with --tiles; set one with --calibrate")
    elif use.threshold is None:
        tell(f"{about}: no threshold for {use.name}: {use.reason}")
    else:
        predictor.threshold = use.threshold
        tell(f"{about}: {use.name}: {len(use.prompts)} prompt{'' if len(use.prompts) == 1 else 's'}, threshold {use.threshold}")
    return predictor


def _intensity(text: str) -> Intensity:
    """Parse an intensity range."""
    if text == "full":
        return FULL
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"must be two increasing numbers, for example 0,4095, or full; not {text!r}")
    return Intensity(Range(low, high), Range(low, high))


def _tiles(text: str) -> tuple[int, int]:
    """Parse rows and columns."""
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal() and 1 <= int(rows) <= MOST and 1 <= int(columns) <= MOST):
        raise argparse.ArgumentTypeError(f"must be rows x columns, for example 3x4, each from 1 to {MOST}; not {text!r}")
    return int(rows), int(columns)
