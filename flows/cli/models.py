"""Add the commands that change the current model and import checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from changepair.flows.cli.command import PIPELINE, Commands
from changepair.flows.settings.pipelines import enabled_pipeline
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.encoders.presets import PRESETS, command_for

TITLE = "manage models"
EXAMPLES = {
    "promote": "changepair promote mine",
    "rollback": "changepair rollback mine",
    "history": "changepair history mine",
    "import": "changepair import metauas metauas-256.ckpt --out data/imported/metauas-256",
    "weights": "changepair weights fetch dinov2-small --to weights",
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
    weights = commands.add_parser("weights", help="List or download the weights of encoder presets")
    weights.add_argument("action", choices=("list", "fetch"), help="list what is on this machine, or fetch a preset")
    weights.add_argument("preset", nargs="?", choices=[*PRESETS], metavar="PRESET", help=f"preset to fetch: {', '.join(PRESETS)}")
    weights.add_argument("--to", type=Path, metavar="FOLDER", help="folder to write to; `list` also looks there")
    weights.add_argument("--mirror", metavar="URL", help="hub to download from; the default is HF_ENDPOINT, or the Hugging Face Hub")
    weights.set_defaults(run=_weights)


def _weights(arguments: argparse.Namespace) -> None:
    if arguments.action == "list":
        list_weights(arguments.to)
    elif arguments.preset is None or arguments.to is None:
        raise BadInput("weights fetch: name a preset and a folder, such as `changepair weights fetch dinov2-small --to weights`")
    else:
        fetch(arguments.preset, arguments.to, arguments.mirror)


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


def list_weights(folder: Path | None = None) -> None:
    """Print the presets with the weights that are on this machine."""
    from changepair.tasks.encoders.fetch import held_weights

    held = list(held_weights(folder))
    table = Table(title="weights of encoder presets")
    for title in ("preset", "place", "size", "sha256", "licence"):
        table.add_column(title, overflow="fold")
    for preset, about in PRESETS.items():
        for one in (one for one in held if one.preset == preset):
            table.add_row(preset, one.place, f"{one.size / 1e6:.1f} MB", one.sha256[:12], about.licence)
        if preset not in {one.preset for one in held}:
            table.add_row(preset, "missing", "-", "-", about.licence)
    Console().print(table)
    if missing := [preset for preset in PRESETS if preset not in {one.preset for one in held}]:
        Console(soft_wrap=True).print(f"next, for example: {command_for(missing[0])}")


def fetch(preset: str, folder: Path, mirror: str | None = None) -> None:
    """Download the weights of a preset, and print what to set."""
    from changepair.tasks.encoders.fetch import fetch_weights
    from changepair.tasks.encoders.folder import VARIABLE

    file, record = fetch_weights(preset, folder, mirror)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, sha256 {record.sha256}", markup=False)
    console.print(f"from {record.source} {record.revision}; licence: {record.licence}", markup=False)
    console.print(f"layers and resolution follow {PRESETS[preset].origin}", markup=False)
    console.print(
        f"next: in pipelines.yaml, set encoder: {{preset: {preset}, weights: {folder}}}, or set {VARIABLE}={folder}", markup=False
    )


def import_model(detector: str, checkpoint: Path, folder: Path) -> None:
    from changepair.tasks.detectors.pretrained import import_checkpoint

    imported = import_checkpoint(detector, checkpoint, folder)
    console = Console(soft_wrap=True)
    console.print(f"imported {imported.tensors} tensors from {checkpoint} into {folder}")
    console.print(f"next: set detectors.{detector}.model to {folder} in pipelines.yaml")
    if imported.left_out:
        console.print(f"ignored tensors, as in the authors' loader: {', '.join(imported.left_out)}")
