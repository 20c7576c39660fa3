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

TITLE = "data"
EXAMPLES = {
    "datasets": "changepair datasets",
    "inspect": "changepair inspect mvtec-ad /data/mvtec --out sheet.png",
    "unpack": "changepair unpack mvtec.tar.xz /data/mvtec",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    datasets = commands.add_parser("datasets", help="list the datasets that can be read as they are distributed, and those that are here")
    datasets.set_defaults(run=lambda _arguments: list_datasets())
    inspecting = commands.add_parser("inspect", help="say what a dataset holds, and draw a contact sheet of it")
    inspecting.add_argument("dataset", help="a layout, as `changepair datasets` calls it; or a dataset of pipelines.yaml")
    inspecting.add_argument("path", nargs="?", help="a folder, a file or a URL; none for a dataset of pipelines.yaml")
    inspecting.add_argument("--out", type=Path, metavar="PICTURE", help="where to write the contact sheet (inspect-<dataset>.png here)")
    inspecting.add_argument(
        "--normal", action="append", default=[], metavar="DIR", help="a folder of normal pictures (layout folder); may be repeated"
    )
    inspecting.add_argument(
        "--abnormal", action="append", default=[], metavar="DIR", help="a folder of pictures with defects; may be repeated"
    )
    inspecting.add_argument("--masks", metavar="DIR", help="a folder of masks for pictures with defects")
    inspecting.set_defaults(run=lambda one: inspect_dataset(one.dataset, one.path, one.out, one.normal, one.abnormal, one.masks))
    unpacking = commands.add_parser("unpack", help="unpack a dataset's tar or zip into a new folder")
    unpacking.add_argument("archive", type=Path)
    unpacking.add_argument("folder", type=Path)
    unpacking.set_defaults(run=lambda arguments: unpack(arguments.archive, arguments.folder))


def unpack(archive: Path, folder: Path) -> None:
    from changepair.tasks.ingestion.unpack import unpack as work

    Console().print(f"{folder}: {work(archive, folder)} files", soft_wrap=True, markup=False, highlight=False)


def list_datasets() -> None:
    from changepair.tasks.ingestion.readers.catalogue import LAYOUTS

    table = Table(title="layouts that can be read: datasets.folders.<name>: {path: …, layout: …}")
    for title in ("layout", "dataset", "licence", "home"):
        table.add_column(title, no_wrap=title == "layout", overflow="fold")
    for name, layout in LAYOUTS.items():
        table.add_row(name, layout.title, layout.licence, layout.home)
    console = Console()
    console.print(table)
    here = read_pipelines().datasets
    console.print(f"here, inside packages: {', '.join(here.packaged) or 'none'}")
    for name, folder in here.folders.items():
        console.print(f"here: {name}, {folder.layout}, {folder.path}", soft_wrap=True)


def inspect_dataset(
    dataset: str, named: str | None, sheet: Path | None, normal: Sequence[str], abnormal: Sequence[str], masks: str | None
) -> None:
    from changepair.flows.init import stated_folders, told
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
            has = "give the folder too" if dataset in layouts else f"no dataset of pipelines.yaml{nearest(dataset, folders)}"
            raise BadInput(f"inspect {dataset}: {has}; `changepair inspect <layout> <folder>`, or `changepair inspect <dataset>`")
        settings, name = folders[dataset], dataset
    else:
        raise BadInput(f"inspect {dataset}: no layout{nearest(dataset, layouts)}; `changepair datasets` lists them")
    sheet = sheet or Path(f"inspect-{dataset}.png")
    with tempfile.TemporaryDirectory() as work:
        inspection = inspect(name, settings, work=Path(work), sheet=sheet)
    counts = Table(title=f"{settings.path}: {sum(inspection.counts.values())} pictures")
    for title in ("category", "split", "defect", "pictures", "covered by masks, %"):
        counts.add_column(title)
    for (category, split, defect), count in inspection.counts.items():
        covered = inspection.covered.get((category, defect))
        shares = "" if covered is None or split == "train" else " / ".join(f"{100 * share:.2g}" for share in covered)
        counts.add_row(category, split, defect, str(count), shares)
    console = Console()
    console.print(counts)
    for side, (least, median, greatest) in inspection.sizes.items():
        console.print(f"{side}: {least} / {median} / {greatest} pixels (least, median, greatest)", highlight=False)
    console.print(f"grey levels: {inspection.greys} of 256 in normal pictures", highlight=False)
    for line in told(inspection):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"to look at: {sheet}", soft_wrap=True)
