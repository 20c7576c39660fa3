"""Add a dataset and a pipeline for a folder of pictures to pipelines.yaml: the command `changepair init`."""

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
from changepair.flows.settings.overriding import add_pipeline, flow
from changepair.flows.settings.pipelines import read_pipelines
from changepair.flows.settings.reader import FILE
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import write_text
from changepair.tasks.common.places import is_remote, is_url, place_of
from changepair.tasks.common.texts import read_text
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.ingestion.settings import FolderSettings

if TYPE_CHECKING:
    from changepair.tasks.ingestion.inspect import Inspection

EPILOG = """examples:
  changepair init /data/brackets                     # the dataset and the pipeline are named brackets
  changepair init --normal /data/line-3/ok --abnormal /data/line-3/nok
  changepair init s3://factory/brackets --name line-3

The folder has one of these layouts:
  MVTec AD:      [<category>/]train/good, test/good, test/<defect>; optional masks in ground_truth/<defect>
  usual names:   normal pictures in ok, good or normal; defects in nok, bad or defect
  other folders: name them with --normal and --abnormal
"""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
NAMED = 3
"""Maximum number of files listed for a reason."""
SHOTS = (1, 2, 4, 8)
LARGEST_SIDE, SIDES = 256, 32
"""Largest resolution, and the step between resolutions, in pixels per side."""
PIPELINE = """\
{name}: # written by `changepair init` for {path}: {about}
  schedule: null # a cron line, such as "0 3 * * 1"
  # This pipeline trains nothing: patch-residual and robust-residual need no training, and metric-residual comes trained with the package.
  # To train on change pairs, add three settings: sources: [sample-photos, vision-toolbox], synthesis: {{pairs: 3000, resolution: 256}},
  # and the detector metauas: {{resolution: 256}}.
  targets: [{name}]
  sampling: {{shots: {shots}, seeds: [0, 1, 2]}} # number of prompts; three random draws from train/good
  detectors: # with self-residual for small defects, without it for defects of the whole picture; the report recommends the better one
    robust-residual: {{resolution: {side}}} # another camera, light or compression; defects of the whole picture
    patch-residual: {{resolution: {side}}}
    patch-residual-self: {{kind: patch-residual, resolution: {side}, top_share: 0.01, background: 0.5, self_residual: 0.6, contrast: 0.02}}
    metric-residual: {{model: packaged, resolution: {side}}}
    metric-residual-scales: # defects of any size
      {{kind: metric-residual, model: packaged, resolution: 320, encoder: {{scales: [1, 0.4, 0.3]}}, self_residual: 0.6, contrast: 0.02}}
  evaluation:
    resolution: {side}
    perturbations: [jpeg-50, blur-1, noise-15, gain-0.8, gain-1.2] # false alarms that a change of the camera would cause

"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="Add a dataset and a pipeline for your pictures",
        description="Inspect a folder of pictures, and add a dataset and a pipeline for it to pipelines.yaml.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", help="folder or URL of the pictures; optional with --normal and --abnormal")
    parser.add_argument("--normal", action="append", default=[], metavar="DIR", help="folder of normal pictures; repeatable")
    parser.add_argument("--abnormal", action="append", default=[], metavar="DIR", help="folder of pictures with defects; repeatable")
    parser.add_argument("--masks", metavar="DIR", help="folder of masks, with the file names of the pictures with defects")
    parser.add_argument("--name", help="name of the dataset and the pipeline (default: name of the folder)")
    parser.set_defaults(run=lambda one: init(one.folder, one.name, normal=one.normal, abnormal=one.abnormal, masks=one.masks))


def init(
    folder: str | None, name: str | None = None, *, normal: Sequence[str] = (), abnormal: Sequence[str] = (), masks: str | None = None
) -> None:
    """Add a dataset and an enabled pipeline to pipelines.yaml, and write dvc.yaml.

    normal, abnormal, masks: folders, relative to `folder`. Without `folder` they are relative to the working directory.

    Raises BadInput for an unknown layout, a folder without defects, or a name that is taken or invalid. Raises BadInput too if the form of
    pipelines.yaml cannot be extended.
    """
    from changepair.tasks.ingestion.inspect import inspect  # the import takes half a second

    stated = stated_folders(folder, normal, abnormal, masks)
    place = place_of(stated.path)
    called = place.name if is_remote(place) else os.path.basename(os.path.abspath(place))
    name = name or re.sub(r"[^a-z0-9]+", "-", called.lower())[:64].strip("-")
    read = read_pipelines()
    if not NAME.fullmatch(name):
        choose = "choose one of at most 64 lower-case letters, digits and dashes with --name"
        raise BadInput(f"{name!r}: invalid name for a pipeline; {choose}" if name else f"{in_short(called)}: gives no name; {choose}")
    if name in read.pipelines or name in read.datasets.names:
        raise BadInput(f"{FILE}: the name {name!r} is taken; choose another one with --name")
    with tempfile.TemporaryDirectory() as work:
        found = inspect(name, stated, work=Path(work), sheet=Path(work) / "sheet.png")
    before = read_text(FILE)
    add_pipeline(name, _dataset(stated), _pipeline(name, in_short(str(place)), found))
    try:
        write_plan()
    except BadInput:  # for example a folder that holds the project
        write_text(FILE, before)
        raise
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{FILE}: added dataset and pipeline {name}: {_about(found)}")
    for line in findings(found):
        console.print(line)
    console.print(f"next: `changepair retrain {name}`, then open data/evaluation/{name}/report.html")


def stated_folders(folder: str | None, normal: Sequence[str], abnormal: Sequence[str], masks: str | None) -> FolderSettings:
    """Return the dataset that the arguments of a command describe. Raises BadInput if a folder is missing, or if they share no parent."""
    listed = [*normal, *abnormal, *([] if masks is None else [masks])]
    if folder == "" or "" in listed:
        raise BadInput(f"{'the folder' if folder == '' else '--normal, --abnormal or --masks'}: is empty; name a folder")
    if not listed:
        if folder is None:
            raise BadInput("no folder given; name a folder of pictures, or use --normal and --abnormal")
        return FolderSettings(folder)
    if not normal:
        raise BadInput("--normal: missing; name at least one folder of normal pictures, because prompts are drawn from it")
    if folder is None:
        if any(map(is_url, listed)):
            raise BadInput(f"{listed[0]}: is a URL; also give the URL of the parent folder, and --normal and --abnormal relative to it")
        parents = [os.path.dirname(os.path.abspath(os.path.expanduser(one))) for one in listed]
        folder = os.path.commonpath(parents)
        if folder == os.path.sep:
            raise BadInput(f"{', '.join(listed)}: share no parent folder; move them into one folder")
        names = [os.path.relpath(os.path.abspath(os.path.expanduser(one)), folder) for one in listed]
    else:
        root = place_of(folder)
        names = [os.path.relpath(one, root) if os.path.isabs(one) else one for one in listed]
    for name in names:
        if name.split("/")[0] == ".." or not (place_of(folder) / name).is_dir():
            raise BadInput(in_short(f"{name}: no such folder in {folder}; correct --normal, --abnormal or --masks"))
    _check_same(place_of(folder), names)
    of_masks = names.pop() if masks is not None else None
    return FolderSettings(folder, normal=tuple(names[: len(normal)]), abnormal=tuple(names[len(normal) :]), masks=of_masks)


def _check_same(root: Path, names: Sequence[str]) -> None:
    """Raise BadInput if two names are one folder, because its pictures would be both training and test pictures."""
    named: dict[str, str] = {}
    for name in () if is_remote(root) else names:
        other = named.setdefault(os.path.realpath(root / name), name)
        if other != name:
            raise BadInput(in_short(f"{name} is the same folder as {other}; name it once"))


def findings(found: Inspection) -> Iterator[str]:
    """Yield lines about a dataset: folders read as normal and abnormal, rejected files with the reason, conversions."""
    for folder, label in found.taken.items():
        yield f"read as {label}: {folder}"
    for reason, files in found.rejected.items():
        names = ", ".join(one.file for one in files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
        yield f"rejected: {len(files)} {'file' if len(files) == 1 else 'files'}: {files[0].reason if len(files) == 1 else reason}: {names}"
    for note, count in found.notes.items():
        yield f"note: {count} {'picture' if count == 1 else 'pictures'}: {note}"


def _dataset(stated: FolderSettings) -> dict[str, Any]:
    written = {key: getattr(stated, key) for key in ("path", "normal", "abnormal", "masks")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in written.items() if value}


def _about(found: Inspection) -> str:
    """Summarize the numbers of pictures in a line."""
    counts: Counter[str] = Counter()
    for (_category, split, defect), count in found.counts.items():
        counts["training" if split == "train" else "normal test" if defect == GOOD else "defective test"] += count
    categories = {category for category, _split, _defect in found.counts}
    kinds = f"{len(categories)} categories, " if len(categories) > 1 else ""
    masks = "masks" if found.covered else "no masks"
    return kinds + ", ".join(f"{counts[what]} {what} pictures" for what in ("training", "normal test", "defective test")) + f", {masks}"


def _pipeline(name: str, path: str, found: Inspection) -> str:
    training: Counter[str] = Counter()
    for (category, split, _defect), count in found.counts.items():
        training[category] += count * (split == "train")
    tested = {(split, defect == GOOD) for _category, split, defect in found.counts if split == "test"}
    for normal, where in ((True, f"test/{GOOD}"), (False, "test/<defect>")):
        if ("test", normal) not in tested:
            reasons = "; ".join(
                f"{len(files)} rejected, for example {files[0].file}: {files[0].reason}" for files in found.rejected.values()
            )
            raise BadInput(
                f"{path}: no picture in {where}{f' ({reasons})' if reasons else ''}; metrics need normal and defective pictures. To score "
                "pictures without metrics, use `changepair predict --prompt <normal pictures> <pictures>`"
            )
    least = min(training.values())
    side = min(LARGEST_SIDE, max(SIDES, min(median for _least, median, _most in found.sizes.values()) // SIDES * SIDES))
    shots = [count for count in SHOTS if count <= least]
    return PIPELINE.format(name=flow(name), path=path, about=_about(found), shots=shots, side=side)
