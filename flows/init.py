"""`changepair init <folder>`: inspect a folder of pictures, and add a dataset and a pipeline for it to pipelines.yaml."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from changepair.flows.plan import write_plan
from changepair.flows.settings.overriding import add_pipeline
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import FILE
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_url, place_of
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.ingestion.settings import FolderSettings

if TYPE_CHECKING:
    from changepair.tasks.ingestion.inspect import Inspection

EPILOG = """examples:
  changepair init /data/brackets                     # a dataset and a pipeline called brackets
  changepair init --normal /data/line-3/ok --abnormal /data/line-3/nok
  changepair init s3://factory/brackets --name line-3

The folder has MVTec AD's layout ([<category>/]train/good, test/good, test/<defect>, and with masks ground_truth/<defect>), or folders of
normal and of abnormal pictures: with usual names (ok, good, normal; nok, bad, defect), or those of --normal and --abnormal.
"""
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
NAMED = 3
"""Number of files that are listed with a reason."""
SHOTS = (1, 2, 4, 8)
LARGEST_SIDE, SIDES = 256, 32
"""Largest resolution in pixels a side, and the step of resolutions."""
PIPELINE = """\
{name}: # written by `changepair init` for {path}: {about}
  schedule: null # a cron line, such as "0 3 * * 1"
  # Nothing is trained here: two of the detectors come trained, the other needs no training. To train on change pairs, name photographs
  # (sources: [sample-photos, vision-toolbox]), how many pairs (synthesis: {{pairs: 3000, resolution: 256}}), and a detector more
  # (metauas: {{resolution: 256}}).
  targets: [{name}]
  sampling: {{shots: {shots}, seeds: [0, 1, 2]}} # prompts, drawn from train/good three times
  detectors: # with the self-residual, for small defects; and without, for defects of the whole picture. The better one is recommended.
    patch-residual: {{resolution: {side}}}
    patch-residual-self: {{kind: patch-residual, resolution: {side}, top_share: 0.01, background: 0.5, self_residual: 0.6, contrast: 0.02}}
    metric-residual: {{model: packaged, resolution: {side}}}
    metric-residual-self: {{kind: metric-residual, model: packaged, resolution: {side}, self_residual: 0.6, contrast: 0.02}}
    metric-residual-scales: # defects of any size
      {{kind: metric-residual, model: packaged, resolution: 320, encoder: {{scales: [1, 0.4, 0.3]}}, self_residual: 0.6, contrast: 0.02}}
  evaluation: {{resolution: {side}}}

"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="inspect a folder of pictures, and add a pipeline for it to pipelines.yaml",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", help="a folder or its URL; not needed if --normal and --abnormal share a parent folder")
    parser.add_argument("--normal", action="append", default=[], metavar="DIR", help="a folder of normal pictures; may be repeated")
    parser.add_argument("--abnormal", action="append", default=[], metavar="DIR", help="a folder of pictures with defects; may be repeated")
    parser.add_argument("--masks", metavar="DIR", help="a folder of masks for pictures with defects, with the same names")
    parser.add_argument("--name", help="name of the dataset and the pipeline (default: the folder's name)")
    parser.set_defaults(run=lambda one: init(one.folder, one.name, normal=one.normal, abnormal=one.abnormal, masks=one.masks))


def init(
    folder: str | None, name: str | None = None, *, normal: Sequence[str] = (), abnormal: Sequence[str] = (), masks: str | None = None
) -> None:
    """Add a dataset and an enabled pipeline to pipelines.yaml, and write dvc.yaml. normal, abnormal, masks: folders, relative to `folder`
    or, without it, to the working directory.

    Raises BadInput if the folder has another layout or no picture with a defect, if the name is taken or invalid, or if pipelines.yaml has
    a form that this cannot extend.
    """
    from changepair.tasks.ingestion.inspect import inspect  # costs half a second, which no other command need spend

    stated = stated_folders(folder, normal, abnormal, masks)
    place = place_of(stated.path)
    name = name or re.sub(r"[^a-z0-9]+", "-", (place.name or Path.cwd().name).lower())[:64].strip("-")
    read = read_pipelines()
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!r}: no name for a pipeline; choose one of small letters, digits and dashes with --name")
    if name in read.pipelines or name in read.datasets.names:
        raise BadInput(f"{FILE} has a {name!r} already; give another name with --name")
    with tempfile.TemporaryDirectory() as work:
        found = inspect(name, stated, work=Path(work), sheet=Path(work) / "sheet.png")
    add_pipeline(name, _dataset(stated), _pipeline(name, str(place), found))
    write_plan()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{FILE}: dataset and pipeline {name}: {_about(found)}")
    for line in told(found):
        console.print(line)
    console.print(f"next: `changepair retrain {name}`, then open data/evaluation/{name}/report.html")


def stated_folders(folder: str | None, normal: Sequence[str], abnormal: Sequence[str], masks: str | None) -> FolderSettings:
    """Return the dataset of folders on a command line. Raises BadInput if one is missing, or they have no parent in common."""
    listed = [*normal, *abnormal, *([masks] if masks else [])]
    if not listed:
        if folder is None:
            raise BadInput("name a folder of pictures, or folders with --normal and --abnormal")
        return FolderSettings(folder)
    if not normal:
        raise BadInput("--normal: name at least one folder of normal pictures; prompts are drawn from it")
    if folder is None:
        if any(map(is_url, listed)):
            raise BadInput(
                f"{listed[0]}: is in a store; also give the URL of the folder that holds it, and --normal and --abnormal relative to that"
            )
        parents = [os.path.dirname(os.path.abspath(os.path.expanduser(one))) for one in listed]
        folder = os.path.commonpath(parents)
        if folder == os.path.sep:
            raise BadInput(f"{', '.join(listed)}: have no parent folder in common; move them into one folder")
        names = [os.path.relpath(os.path.abspath(os.path.expanduser(one)), folder) for one in listed]
    else:
        root = place_of(folder)
        names = [os.path.relpath(one, root) if os.path.isabs(one) else one for one in listed]
    for name in names:
        if name.startswith("..") or not (place_of(folder) / name).is_dir():
            raise BadInput(f"{name}: no such folder in {folder}; correct --normal, --abnormal or --masks")
    of_masks = names.pop() if masks else None
    return FolderSettings(folder, normal=tuple(names[: len(normal)]), abnormal=tuple(names[len(normal) :]), masks=of_masks)


def told(found: Inspection) -> Iterator[str]:
    """Yield lines about a dataset: folders read as normal and abnormal, files left out with the reason, conversions."""
    for folder, label in found.taken.items():
        yield f"read as {label}: {folder}"
    for reason, files in found.rejected.items():
        names = ", ".join(one.file for one in files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
        yield f"left out: {len(files)} x {files[0].reason if len(files) == 1 else reason}: {names}"
    for note, count in found.notes.items():
        yield f"note: {count} pictures are {note}"


def _dataset(stated: FolderSettings) -> dict[str, Any]:
    written = {key: getattr(stated, key) for key in ("path", "normal", "abnormal", "masks")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in written.items() if value}


def _about(found: Inspection) -> str:
    """Says what there is, in a line."""
    counts: Counter[str] = Counter()
    for (_category, split, defect), count in found.counts.items():
        counts["to train" if split == "train" else "normal to test" if defect == GOOD else "with defects"] += count
    categories = {category for category, _split, _defect in found.counts}
    kinds = f"{len(categories)} categories, " if len(categories) > 1 else ""
    masks = "masks" if found.covered else "no masks"
    return kinds + ", ".join(f"{counts[what]} {what}" for what in ("to train", "normal to test", "with defects")) + f", {masks}"


def _pipeline(name: str, path: str, found: Inspection) -> str:
    training: Counter[str] = Counter()
    for (category, split, _defect), count in found.counts.items():
        training[category] += count * (split == "train")
    tested = {(split, defect == GOOD) for _category, split, defect in found.counts if split == "test"}
    for normal, where in ((True, f"test/{GOOD}"), (False, "test/<defect>")):
        if ("test", normal) not in tested:
            reasons = "; ".join(
                f"{len(files)} left out, the first, {files[0].file}: {files[0].reason}" for files in found.rejected.values()
            )
            raise BadInput(
                f"{path}: no picture in {where}{f' ({reasons})' if reasons else ''}, and metrics need both normal and defective ones; to "
                "score pictures without any, `changepair predict --prompt <normal pictures> <pictures>`"
            )
    least = min(training.values())
    side = min(LARGEST_SIDE, max(SIDES, min(median for _least, median, _most in found.sizes.values()) // SIDES * SIDES))
    shots = [count for count in SHOTS if count <= least]
    return PIPELINE.format(name=name, path=path, about=_about(found), shots=shots, side=side)
