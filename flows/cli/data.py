"""List, inspect and unpack datasets."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from changepair.flows.cli.command import Commands
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion.settings import LayoutName

TITLE = "manage datasets"
EXAMPLES = {
    "datasets": "changepair datasets",
    "inspect": "changepair inspect mvtec-ad /data/mvtec --out sheet.png",
    "unpack": "changepair unpack mvtec.tar.xz /data/mvtec",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    datasets = commands.add_parser("datasets", help="List supported datasets and those of this project")
    datasets.set_defaults(run=lambda _arguments: list_datasets())
    inspecting = commands.add_parser("inspect", help="Summarize a dataset and draw a contact sheet")
    inspecting.add_argument("dataset", help="a layout listed by `changepair datasets`, or the name of a dataset in pipelines.yaml")
    inspecting.add_argument("path", nargs="?", help="folder, file or URL of the dataset; omit it for a dataset in pipelines.yaml")
    inspecting.add_argument("--out", type=Path, metavar="PICTURE", help="file for the contact sheet (default: inspect-<dataset>.png)")
    inspecting.add_argument(
        "--normal", action="append", default=[], metavar="DIR", help="folder of normal pictures, for the layout `folder`; repeatable"
    )
    inspecting.add_argument("--abnormal", action="append", default=[], metavar="DIR", help="folder of pictures with defects; repeatable")
    inspecting.add_argument("--masks", metavar="DIR", help="folder of masks for the pictures with defects")
    inspecting.set_defaults(run=lambda one: inspect_dataset(one.dataset, one.path, one.out, one.normal, one.abnormal, one.masks))
    unpacking = commands.add_parser("unpack", help="Unpack a tar or zip archive into a new folder")
    unpacking.add_argument("archive", type=Path, help="a .tar, .tar.gz, .tar.xz or .zip file")
    unpacking.add_argument("folder", type=Path, help="a folder that does not exist yet")
    unpacking.set_defaults(run=lambda arguments: unpack(arguments.archive, arguments.folder))


def unpack(archive: Path, folder: Path) -> None:
    from changepair.tasks.ingestion.unpack import unpack as work

    Console().print(f"unpacked {work(archive, folder)} files into {folder}", soft_wrap=True, markup=False, highlight=False)


def list_datasets() -> None:
    from changepair.tasks.ingestion.readers.catalogue import LAYOUTS

    table = Table(title="Supported layouts. In pipelines.yaml: datasets.folders.<name>: {path: …, layout: …}")
    for title in ("layout", "dataset", "licence", "home"):
        table.add_column(title, no_wrap=title == "layout", overflow="fold")
    for name, layout in LAYOUTS.items():
        table.add_row(name, layout.title, layout.licence, layout.home)
    console = Console()
    console.print(table)
    here = read_pipelines().datasets
    console.print(f"packaged datasets in pipelines.yaml: {', '.join(here.packaged) or 'none'}")
    for name, folder in here.folders.items():
        console.print(f"dataset in pipelines.yaml: {name} (layout {folder.layout}), {folder.path}", soft_wrap=True)


def inspect_dataset(
    dataset: str, named: str | None, sheet: Path | None, normal: Sequence[str], abnormal: Sequence[str], masks: str | None
) -> None:
    from changepair.flows.init import findings, stated_folders
    from changepair.flows.settings.reader import nearest
    from changepair.tasks.common.places import place_of
    from changepair.tasks.ingestion.inspect import inspect

    layouts = get_args(LayoutName)
    stated = named is not None or normal or abnormal or masks
    if dataset in layouts and stated:
        settings = replace(stated_folders(named, normal, abnormal, masks), layout=cast(LayoutName, dataset))
        name = place_of(settings.path).name or Path.cwd().name or dataset
    elif not stated:
        folders = read_pipelines().datasets.folders
        if dataset not in folders:
            layout = f"this is a layout; add the folder: `changepair inspect {dataset} <folder>`"
            wrong = layout if dataset in layouts else f"pipelines.yaml has no such dataset{nearest(dataset, folders)}"
            raise BadInput(f"inspect {dataset}: {wrong}")
        settings, name = folders[dataset], dataset
    else:
        raise BadInput(f"inspect {dataset}: is not a layout of `changepair datasets`{nearest(dataset, layouts)}")
    sheet = sheet or Path(f"inspect-{dataset}.png")
    with tempfile.TemporaryDirectory() as work:
        inspection = inspect(name, settings, work=Path(work), sheet=sheet)
    counts = Table(title=f"{settings.path}: {sum(inspection.counts.values())} pictures")
    for title in ("category", "split", "defect", "pictures", "mask area, %"):
        counts.add_column(title)
    for (category, split, defect), count in inspection.counts.items():
        covered = inspection.covered.get((category, defect))
        shares = "" if covered is None or split == "train" else " / ".join(f"{100 * share:.2g}" for share in covered)
        counts.add_row(category, split, defect, str(count), shares)
    console = Console()
    console.print(counts)
    for side, (least, median, greatest) in inspection.sizes.items():
        console.print(f"{side}: {least} / {median} / {greatest} pixels (minimum / median / maximum)", highlight=False)
    console.print(f"grey levels: normal pictures use {inspection.greys} of 256", highlight=False)
    for line in findings(inspection):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"contact sheet: {sheet}", soft_wrap=True)
