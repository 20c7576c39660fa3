"""Score pictures, set thresholds and write kits: the command `changepair predict`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from changepair.flows.arguments import COUNT, check_options
from changepair.flows.prediction import options
from changepair.flows.prediction.options import SEVERAL, check_normals, load, tell
from changepair.tasks.common.errors import BadInput
from changepair.tasks.prediction.files import files_of, names_of

if TYPE_CHECKING:
    from changepair.tasks.prediction.outputs import OutputRow
    from changepair.tasks.prediction.predictor import Predictor

ANOMALOUS_EXIT, REFUSED_EXIT = 1, 2
EXAMPLES = """examples:
  changepair predict --prompt normal.png part.png
  changepair predict --prompt normals/ parts/ --out results --maps png --overlays
  changepair predict --prompt normal.png --calibrate normals/ --false-alarms 0.01 --write-kit line-3
  changepair predict --kit line-3 part.png && echo good
"""
EXIT_CODES = """\
exit codes:
  0  every picture is normal, or there is no threshold
  1  at least one picture is anomalous
  2  the input is invalid, or a picture cannot be read
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "Score pictures and locate defects"
    description = "Compare pictures with one or a few normal ones. Scores range from 0 (normal) to 1 (anomalous)."
    parser = options.add_command(commands, "predict", predict, about, description, f"{EXAMPLES}\n{EXIT_CODES}")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=f"pictures to score: {SEVERAL}")
    options.add(parser)
    parser.add_argument(
        "--calibrate", action="append", default=[], metavar="PICTURE", help=f"normal pictures that set the threshold: {SEVERAL}; repeatable"
    )
    parser.add_argument(
        "--false-alarms", type=float, default=0.01, metavar="RATE", help="target false-alarm rate for --calibrate (default: %(default)s)"
    )
    parser.add_argument("--write-kit", type=Path, metavar="FOLDER", help="save model, prompts and threshold as a kit")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for scores.csv, maps and overlays")
    parser.add_argument("--maps", choices=("png", "npy"), help="write anomaly maps as 16-bit grey PNG (65535 is 1) or as float32 arrays")
    parser.add_argument("--overlays", action="store_true", help="write each picture with its anomaly map as an overlay")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="output format (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures scored at once; it changes scores by at most 5e-6 (default: %(default)s)",
    )


DARK = 64  # from 0 to 255; a picture whose brightest pixel is below may have fewer bits than the prompts that set the range


def predict(arguments: argparse.Namespace) -> None:
    """Run the command. Exits with 1 or 2, as in EXIT_CODES."""
    try:
        _predict(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _predict(arguments: argparse.Namespace) -> None:
    _check(arguments)
    pictures = files_of(arguments.pictures)
    normals = files_of(arguments.calibrate)
    if normals:
        check_normals(normals, files_of(arguments.prompt), arguments.false_alarms)
    refused: list[BadInput] = []

    def refuse(number: int, error: BadInput) -> None:
        refused.append(error)
        tell(str(error))

    predictor = load(arguments, ready=True, refuse=refuse)
    of_prompts = len(refused)
    if normals:
        threshold = predictor.calibrate(normals, false_alarms=arguments.false_alarms, batch_size=arguments.batch_size, refuse=refuse)
        prompting = len(normals) - (len(refused) - of_prompts) - len(threshold.normals)
        if prompting:
            tell(f"{prompting} of the normal pictures {'is a prompt' if prompting == 1 else 'are prompts'} and cannot set the threshold")
        tell(f"threshold {threshold}")
    if arguments.write_kit is not None:
        predictor.save(arguments.write_kit)
        tell(f"saved kit {arguments.write_kit}; next: `changepair predict --kit {arguments.write_kit} <pictures>`")
    flagged = 0
    if pictures:
        from changepair.tasks.prediction.outputs import score_table

        show = _printer(arguments.format, calibrated=predictor.threshold is not None)
        with nullcontext(lambda line: None) if arguments.out is None else score_table(arguments.out / "scores.csv") as keep:
            for line in _lines(arguments, predictor, pictures, refuse):
                show(line)
                keep(line)
                flagged += line.verdict == "anomalous"
    if refused:
        sys.exit(REFUSED_EXIT)
    if flagged:
        sys.exit(ANOMALOUS_EXIT)


def _check(arguments: argparse.Namespace) -> None:
    if not (arguments.pictures or arguments.calibrate or arguments.write_kit):
        raise BadInput("no pictures given; name files, folders or patterns after the options")
    if arguments.calibrate and not (arguments.pictures or arguments.write_kit):
        raise BadInput("--calibrate: nothing would use the threshold; save it with --write-kit, or name pictures to score")
    if (arguments.maps or arguments.overlays) and arguments.out is None:
        raise BadInput(f"{'--maps' if arguments.maps else '--overlays'}: needs --out <folder>")
    check_options(arguments, {"batch_size": COUNT})


def _lines(
    arguments: argparse.Namespace, predictor: Predictor, pictures: list[Path], refuse: Callable[[int, BadInput], None]
) -> Iterator[OutputRow]:
    """Score pictures, and write their maps and overlays."""
    from changepair.tasks.common.decoding import FULL, UNKNOWN
    from changepair.tasks.prediction.outputs import line_of, save

    names = list(names_of(pictures))
    ranged = predictor.prompted.intensity not in (UNKNOWN, FULL)
    for prediction in predictor.each(pictures, batch_size=arguments.batch_size, refuse=refuse):
        highest = int(prediction.picture.max())
        if ranged and highest < DARK:
            tell(
                f"{pictures[prediction.number]}: its highest value is only {highest / 255:.1%} of the intensity range of the prompts; "
                "if the file has fewer bits than the prompts, convert it"
            )
        if arguments.out is not None:
            name = names[prediction.number]
            save(prediction, name, arguments.out, predictor.top, maps=arguments.maps, overlays=arguments.overlays)
        yield line_of(str(pictures[prediction.number]), prediction.score, predictor.threshold)


def _printer(form: str, *, calibrated: bool) -> Callable[[OutputRow], None]:
    """Return a function that prints a row immediately."""
    from changepair.tasks.prediction.outputs import csv_lines, shown

    if form == "json":
        return lambda line: print(json.dumps(asdict(line), ensure_ascii=False), flush=True)
    if form == "csv":
        return csv_lines(sys.stdout)
    heading = [" score    " + ("verdict    " if calibrated else "") + "picture"]  # printed with the first row, so not before an error

    def show(line: OutputRow) -> None:
        print(*heading, f"{shown(line.score)}  " + (f"{line.verdict:<9}  " if calibrated else "") + line.picture, sep="\n", flush=True)
        heading.clear()

    return show
