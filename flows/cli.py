"""The command `changepair`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

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
    arguments = parser.parse_args()

    from flows.stage import exit_on_bad_input

    exit_on_bad_input(lambda: arguments.run(arguments))


def list_pipelines() -> None:
    read = read_pipelines()
    table = Table(title="pipelines.yaml is valid")
    for title in ("pipeline", "enabled", "schedule", "sources", "targets", "detectors"):
        table.add_column(title)
    for name, pipeline in read.pipelines.items():
        enabled = "yes" if name in read.enabled else "no"
        lists = (pipeline.sources, pipeline.targets, list(pipeline.detectors))
        table.add_row(name, enabled, pipeline.schedule or "by hand", *(", ".join(names) for names in lists))
    Console().print(table)


def retrain(pipeline: str) -> None:
    enabled_pipeline(pipeline)  # a mistake is told before a server is started

    from flows.api import one_api
    from flows.retrain import retrain as flow

    with one_api():
        flow(pipeline)
