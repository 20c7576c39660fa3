"""Decide which model is current, and import checkpoints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from changepair.flows.cli.command import Commands
from changepair.flows.settings.pipelines import enabled_pipeline
from changepair.tasks.detectors.registry import DETECTORS

TITLE = "models"
EXAMPLES = {
    "promote": "changepair promote mine",
    "rollback": "changepair rollback mine",
    "history": "changepair history mine",
    "import": "changepair import metauas metauas-256.ckpt --out data/imported/metauas-256",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    for name, what, work in (
        ("promote", "make the model that was trained last the current one, whatever its metrics", promote),
        ("rollback", "make the model before the current one current again", rollback),
        ("history", "list the decisions on models, and the current model", history),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("pipeline")
        command.set_defaults(run=lambda arguments, work=work: work(arguments.pipeline))
    importing = commands.add_parser("import", help="turn an authors' checkpoint into a model folder")
    importing.add_argument("detector", choices=[name for name, kind in DETECTORS.items() if kind.published is not None])
    importing.add_argument("checkpoint", type=Path)
    importing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to write")
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
    table = Table(title=f"{pipeline}: {f'model {current.candidate[:8]} is in use' if current else 'no model is in use'}")
    for title in ("time, UTC", "what", "model", "commit", "why"):
        table.add_column(title, overflow="fold")
    for model in read_history(pipeline):
        table.add_row(model.time[:16].replace("T", " "), model.action, model.candidate[:8], model.commit[:8], model.reason)
    Console().print(table)


def import_model(detector: str, checkpoint: Path, folder: Path) -> None:
    from changepair.tasks.detectors.pretrained import import_checkpoint

    imported = import_checkpoint(detector, checkpoint, folder)
    text = f"{imported.tensors} tensors of {checkpoint} are now {folder}; say model: {folder} under detectors.{detector}"
    Console().print(text, soft_wrap=True)
    if imported.left_out:
        Console().print(f"left out, as the authors' loader does: {', '.join(imported.left_out)}", soft_wrap=True)
