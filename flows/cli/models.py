"""Add the commands that change the current model and import checkpoints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from changepair.flows.cli.command import PIPELINE, Commands
from changepair.flows.settings.pipelines import enabled_pipeline
from changepair.tasks.detectors.registry import DETECTORS

TITLE = "manage models"
EXAMPLES = {
    "promote": "changepair promote mine",
    "rollback": "changepair rollback mine",
    "history": "changepair history mine",
    "import": "changepair import metauas metauas-256.ckpt --out data/imported/metauas-256",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    for name, what, work in (
        ("promote", "Promote the latest model regardless of metrics", promote),
        ("rollback", "Restore the previous current model", rollback),
        ("history", "List promotions, rejections and rollbacks of models", history),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("pipeline", help=PIPELINE)
        command.set_defaults(run=lambda arguments, work=work: work(arguments.pipeline))
    importing = commands.add_parser("import", help="Convert an authors' checkpoint to a model folder")
    importing.add_argument("detector", choices=[name for name, kind in DETECTORS.items() if kind.published is not None])
    importing.add_argument("checkpoint", type=Path, help="checkpoint file that the authors of the detector published")
    importing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="model folder to write")
    importing.set_defaults(run=lambda arguments: import_model(arguments.detector, arguments.checkpoint, arguments.out))


def promote(pipeline: str) -> None:
    from changepair.flows.promotion.gate import promote as work

    Console().print(work(pipeline), soft_wrap=True)


def rollback(pipeline: str) -> None:
    from changepair.flows.promotion.gate import rollback as work

    Console().print(work(pipeline), soft_wrap=True)


def history(pipeline: str) -> None:
    from changepair.flows.promotion.history import read_current, read_history

    enabled_pipeline(pipeline)
    current = read_current(pipeline)
    table = Table(title=f"{pipeline}: {f'current model {current.candidate[:8]}' if current else 'no current model'}")
    for title in ("time (UTC)", "action", "model", "commit", "reason"):
        table.add_column(title, overflow="fold")
    for model in read_history(pipeline):
        table.add_row(
            model.time[:16].replace("T", " "),
            model.action,
            model.candidate[:8],
            "-" if model.commit.startswith("no ") else model.commit[:8],
            model.reason,
        )
    Console().print(table)


def import_model(detector: str, checkpoint: Path, folder: Path) -> None:
    from changepair.tasks.detectors.pretrained import import_checkpoint

    imported = import_checkpoint(detector, checkpoint, folder)
    console = Console(soft_wrap=True)
    console.print(f"imported {imported.tensors} tensors from {checkpoint} into {folder}")
    console.print(f"next: set detectors.{detector}.model to {folder} in pipelines.yaml")
    if imported.left_out:
        console.print(f"ignored tensors, as in the authors' loader: {', '.join(imported.left_out)}")
