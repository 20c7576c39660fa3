"""Export a detector as one file for other programs: the command `changepair export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from changepair.flows.prediction import options
from changepair.flows.prediction.options import load, tell

EXAMPLES = """examples:
  changepair export --kit line-3 --out line-3-onnx
  changepair export --model packaged --any-size --out detector      # the prompts are an input
  changepair export --kit line-3 --format torch --out line-3-torch
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "Export a model to ONNX or torch.export"
    description = "Export a detector as one file. Its prompts are part of the file or, if you give none, an input."
    parser = options.add_command(commands, "export", export, about, description, EXAMPLES)
    options.add(parser)
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="file format (default: %(default)s)")
    parser.add_argument("--any-size", action="store_true", help="accept pictures of any size, and resize them inside the model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the model file and export.json")


def export(arguments: argparse.Namespace) -> None:
    """Run the command."""
    predictor = load(arguments)
    from changepair.tasks.prediction.export import NAMES
    from changepair.tasks.prediction.export import export as work

    about = work(predictor, arguments.out, arguments.format, any_size=arguments.any_size)
    inside = f"{about.prompts} {'prompt' if about.prompts == 1 else 'prompts'} included" if about.prompts else "prompts are an input"
    tell(f"exported {about.detector} to {arguments.out / NAMES[arguments.format]}: {inside}; scores differ by at most {about.farthest:.1g}")
