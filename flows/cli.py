"""The command `changepair`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.needs import needs
from flows.pipelines import enabled_pipeline, read_pipelines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="changepair", description="Make change pairs, train anomaly detectors on them, prove them across domains."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    listing = commands.add_parser("pipelines", help="list the pipelines of pipelines.yaml and check the file")
    listing.set_defaults(run=lambda _arguments: list_pipelines())
    running = commands.add_parser("retrain", help="run what is out of date of a pipeline's stages")
    running.add_argument("pipeline")
    running.set_defaults(run=lambda arguments: retrain(arguments.pipeline))
    importing = commands.add_parser("import", help="turn an authors' checkpoint into a model folder")
    importing.add_argument("detector", choices=["metauas", "inctrl"])
    importing.add_argument("checkpoint", type=Path)
    importing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to write")
    importing.set_defaults(run=lambda arguments: import_model(arguments.detector, arguments.checkpoint, arguments.out))
    arguments = parser.parse_args()

    from flows.stage import exit_on_bad_input

    exit_on_bad_input(lambda: arguments.run(arguments))


def list_pipelines() -> None:
    read = read_pipelines()
    table = Table(title="pipelines.yaml is valid")
    for title in ("pipeline", "enabled", "schedule", "trained on", "targets", "detectors"):
        table.add_column(title)
    for name, pipeline in read.pipelines.items():
        enabled = "yes" if name in read.enabled else "no"
        lists = (pipeline.sources or pipeline.auxiliary, pipeline.targets, list(pipeline.detectors))
        table.add_row(name, enabled, pipeline.schedule or "by hand", *(", ".join(names) or "nothing" for names in lists))
    console = Console()
    console.print(table)
    for name, pipeline in read.pipelines.items():
        missing = needs(pipeline, read.datasets)
        if missing:
            console.print(f"\n[bold]{name}[/bold] is missing:")
        for line in missing:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def retrain(pipeline: str) -> None:
    enabled_pipeline(pipeline)  # a mistake is told before a server is started

    from flows.api import one_api
    from flows.retrain import retrain as flow

    with one_api():
        flow(pipeline)


def import_model(detector: str, checkpoint: Path, folder: Path) -> None:
    from tasks.checkpoints_of_others import IMPORTERS

    tensors = IMPORTERS[detector](checkpoint, folder)
    Console().print(f"{tensors} tensors of {checkpoint} are now {folder}; say model: {folder} under detectors.{detector}", soft_wrap=True)
