"""`changepair init <folder>`: looks at a folder of pictures, and writes a dataset and a pipeline for it to pipelines.yaml."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows.settings.pipelines import read_pipelines
from flows.settings.reader import FILE, parse_yaml, read_yaml
from tasks.common.errors import BadInput
from tasks.common.files import write_text
from tasks.common.places import place_of
from tasks.common.texts import read_text
from tasks.ingestion.listing import GOOD

if TYPE_CHECKING:
    from tasks.ingestion.inspect import Inspection

EPILOG = """examples:
  changepair init /data/brackets                     # a dataset and a pipeline called brackets
  changepair init s3://factory/brackets --name line-3

The folder is laid out as MVTec AD's: [<category>/]train/good, test/good, test/<defect>, and if there are masks ground_truth/<defect>.
"""
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
SHOTS = (1, 2, 4, 8)
LARGEST_SIDE, SIDES = 256, 32
"""Pixels that pictures are seen at, at the most, and what they are a multiple of."""
PIPELINE = """\
  {name}: # written by `changepair init` for {path}: {about}
    schedule: null # a cron line, such as "0 3 * * 1"
    # Nothing is trained here: two of the detectors come trained, the other needs no training. To train on change pairs, name photographs
    # (sources: [sample-photos, vision-toolbox]), how many pairs (synthesis: {{pairs: 3000, resolution: 256}}), and a detector more
    # (metauas: {{resolution: 256}}).
    sources: []
    textures: []
    auxiliary: []
    targets: [{name}]
    inpainter: {{model: none}}
    synthesis: {{pairs: 0}}
    sampling: {{shots: {shots}, seeds: [0, 1, 2]}} # prompts, drawn from train/good three times
    detectors:
      patch-residual: {{resolution: {side}}}
      metric-residual: {{model: packaged, resolution: {side}}}
      multi-scale-residual: {{model: packaged}}
    training: {{}}
    evaluation: {{resolution: {side}}}

"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="look at a folder of pictures, and write a pipeline for it to pipelines.yaml",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="or the URL of one")
    parser.add_argument("--name", help="of the dataset and the pipeline (the folder's own)")
    parser.set_defaults(run=lambda arguments: init(arguments.folder, arguments.name))


def init(folder: str, name: str | None = None) -> None:
    """Writes it, enabled. Raises BadInput if the folder is not laid out so or has no picture of a defect, a name is taken or none, or
    pipelines.yaml is written so that it cannot be added to."""
    from tasks.ingestion.inspect import inspect  # costs half a second, which no other command need spend

    place = place_of(folder)
    name = name or re.sub(r"[^a-z0-9]+", "-", place.name.lower())[:64].strip("-")
    read = read_pipelines()
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!r}: no name for a pipeline; give one of small letters, digits and dashes with --name")
    if name in read.pipelines or name in read.datasets.names:
        raise BadInput(f"{FILE} has a {name!r} already; give another name with --name")
    with tempfile.TemporaryDirectory() as work:
        found = inspect(name, place, "folder", work=Path(work), sheet=Path(work) / "sheet.png")
    text = read_text(FILE)
    write_text(FILE, _added(text, name, str(place), _pipeline(name, str(place), found)))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{FILE}: dataset and pipeline {name}: {_about(found)}")
    for reason, count in found.rejected.items():
        console.print(f"left out: {count} x {reason}")
    console.print(f"next: `changepair retrain {name}`, then open data/evaluation/{name}/report.html")


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
            raise BadInput(
                f"{path}: no picture in {where}, and figures need both normal and defective ones to test on; to score pictures without "
                "any, `changepair predict --prompt <normal pictures> <pictures>`"
            )
    least = min(training.values())
    side = min(LARGEST_SIDE, max(SIDES, min(median for _least, median, _most in found.sizes.values()) // SIDES * SIDES))
    shots = [count for count in SHOTS if count <= least]
    return PIPELINE.format(name=name, path=path, about=_about(found), shots=shots, side=side)


def _added(text: str, name: str, path: str, pipeline: str) -> str:
    """Adds to the text of pipelines.yaml, whose every other line stays as it is. Raises BadInput if that does not come to what is meant."""
    dataset = f"    {name}: {{path: {json.dumps(path)}}}\n"
    new = re.sub(r"^enabled: \[(.*?)\]", lambda found: f"enabled: [{', '.join(filter(None, (found[1], name)))}]", text, flags=re.M)
    new = re.sub(r"^  folders:( \{\})?([ \t]*(#.*)?\n)", lambda found: f"  folders:{found[2]}{dataset}", new, count=1, flags=re.M)
    new = re.sub(r"^(pipelines:[ \t]*(#.*)?\n)", lambda found: found[1] + pipeline, new, count=1, flags=re.M)
    wanted = read_yaml()
    wanted["enabled"] = [*wanted["enabled"], name]
    wanted["datasets"]["folders"] = {**(wanted["datasets"]["folders"] or {}), name: {"path": path}}
    wanted["pipelines"] = {**wanted["pipelines"], **parse_yaml(pipeline, FILE)}
    try:
        written = parse_yaml(new, FILE)
    except BadInput:
        written = None
    if written != wanted:
        raise BadInput(
            f"{FILE}: written in a form that this does not add to; add {name!r} to enabled, «{dataset.strip()}» under datasets.folders, "
            f"and under pipelines:\n{pipeline}"
        )
    return new
