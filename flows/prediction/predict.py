"""The command `changepair predict`: score pictures, set thresholds, write kits."""

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
  changepair predict --prompt normals/ parts/ --out answer --maps png --overlays
  changepair predict --prompt normal.png --calibrate normals/ --false-alarms 0.01 --write-kit line-3
  changepair predict --kit line-3 part.png && echo good
"""
EXIT_CODES = (
    "exit code: 0 where every picture is normal, or there is no threshold; 1 where one is anomalous; 2 for bad input, and where a picture "
    "could not be read"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "score pictures against normal ones, and say where they differ"
    description = "Scores pictures against one or a few normal ones: 0 normal … 1 anomalous, and where."
    parser = options.add_command(commands, "predict", predict, about, description, f"{EXAMPLES}\n{EXIT_CODES}")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=f"what to score: {SEVERAL}")
    options.add(parser)
    parser.add_argument(
        "--calibrate", action="append", default=[], metavar="PICTURE", help=f"normal pictures that set the threshold: {SEVERAL}"
    )
    parser.add_argument(
        "--false-alarms", type=float, default=0.01, metavar="RATE", help="highest rate of normal pictures that are flagged (%(default)s)"
    )
    parser.add_argument("--write-kit", type=Path, metavar="FOLDER", help="keep model, prompts and threshold as a kit")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where scores.csv, maps and overlays are written")
    parser.add_argument("--maps", choices=("png", "npy"), help="write each anomaly map: 16-bit grey PNG (65535 is 1), or float32")
    parser.add_argument("--overlays", action="store_true", help="write each picture with its map laid over it")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of what is printed (%(default)s)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures scored at once; scores at other sizes agree within 5e-6 (%(default)s)",
    )


DARK = 64  # value from 0 to 255 that the brightest pixel of a picture has to reach, where the prompts' range was chosen from their samples


def predict(arguments: argparse.Namespace) -> None:
    """Run the command; exit with 1 or 2 as in EXIT_CODES."""
    try:
        _predict(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has stopped, `head` for example
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
            tell(f"{prompting} of the normal pictures {'is a prompt' if prompting == 1 else 'are prompts'} and cannot set a threshold")
        tell(f"threshold {threshold}")
    if arguments.write_kit is not None:
        predictor.save(arguments.write_kit)
        tell(f"{arguments.write_kit}: a kit; use it with `changepair predict --kit {arguments.write_kit} <pictures>`")
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
        raise BadInput("no picture to score; name files, folders or patterns after the options")
    if arguments.calibrate and not (arguments.pictures or arguments.write_kit):
        raise BadInput("--calibrate: the threshold would be lost; keep it with --write-kit, or name pictures to hold against it")
    if (arguments.maps or arguments.overlays) and arguments.out is None:
        raise BadInput(f"{'--maps' if arguments.maps else '--overlays'}: say with --out which folder they are written to")
    check_options(arguments, {"batch_size": COUNT})


def _lines(
    arguments: argparse.Namespace, predictor: Predictor, pictures: list[Path], refuse: Callable[[int, BadInput], None]
) -> Iterator[OutputRow]:
    """Score the pictures one by one, and write their maps and overlays."""
    from changepair.tasks.common.decoding import FULL, UNKNOWN
    from changepair.tasks.prediction.outputs import line_of, save

    names = list(names_of(pictures))
    ranged = predictor.prompted.intensity not in (UNKNOWN, FULL)
    for prediction in predictor.each(pictures, batch_size=arguments.batch_size, refuse=refuse):
        highest = int(prediction.picture.max())
        if ranged and highest < DARK:
            tell(
                f"{pictures[prediction.number]}: its highest sample is {highest / 255:.1%} of the prompts' range; if its file has fewer "
                "bits than the prompts', convert it"
            )
        if arguments.out is not None:
            name = names[prediction.number]
            save(prediction, name, arguments.out, predictor.top, maps=arguments.maps, overlays=arguments.overlays)
        yield line_of(str(pictures[prediction.number]), prediction.score, predictor.threshold)


def _printer(form: str, *, calibrated: bool) -> Callable[[OutputRow], None]:
    """Return a function that prints a line at once."""
    from changepair.tasks.prediction.outputs import csv_lines, shown

    if form == "json":
        return lambda line: print(json.dumps(asdict(line), ensure_ascii=False), flush=True)
    if form == "csv":
        return csv_lines(sys.stdout)
    print(" score    " + ("verdict    " if calibrated else "") + "picture")
    return lambda line: print(f"{shown(line.score)}  " + (f"{line.verdict:<9}  " if calibrated else "") + line.picture, flush=True)
