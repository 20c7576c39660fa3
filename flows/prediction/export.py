"""The command `changepair export`: a detector as one file for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from changepair.flows.prediction import options
from changepair.flows.prediction.options import load, tell

EXAMPLES = """examples:
  changepair export --kit line-3 --out line-3-onnx
  changepair export --model packaged --any-size --out detector      # prompts are an input
  changepair export --kit line-3 --format torch --out line-3-torch
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "write a model as one file for ONNX Runtime or torch.export"
    description = "Writes a detector as one file: with its prompts inside, or, where none are given, as an input."
    parser = options.add_command(commands, "export", export, about, description, EXAMPLES)
    options.add(parser)
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="%(default)s")
    parser.add_argument("--any-size", action="store_true", help="take pictures of any size, and bring them to the resolution inside")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the file and export.json are written")


def export(arguments: argparse.Namespace) -> None:
    """Run the command."""
    predictor = load(arguments)
    from changepair.tasks.prediction.export import NAMES
    from changepair.tasks.prediction.export import export as work

    about = work(predictor, arguments.out, arguments.format, any_size=arguments.any_size)
    inside = f"{about.prompts} {'prompt' if about.prompts == 1 else 'prompts'} inside" if about.prompts else "prompts as an input"
    tell(f"{arguments.out / NAMES[arguments.format]}: {about.detector}, {inside}; at most {about.farthest:.1g} from the detector itself")
