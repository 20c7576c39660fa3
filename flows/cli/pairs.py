"""Build, measure, draw, describe and export change pairs as a data set."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from changepair.flows.cli.command import Commands
from changepair.flows.running.places import CODE, EPISODES, PAIRS
from changepair.flows.settings.reader import parse
from changepair.flows.stage import settings_file
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import is_url, place_of

if TYPE_CHECKING:
    from changepair.tasks.pairs.card import Provenance
    from changepair.tasks.pairs.reading import PairsFolder
    from changepair.tasks.pairs.stats import Measured

TITLE = "manage pairs"
EXAMPLES = {"pairs": "changepair pairs build /data/photographs pairs --pairs 1000"}
WHAT = "pipeline whose pairs are in data/pairs, or folder or URL of finished pairs"
FORMATS = ("webdataset", "mvtec", "coco", "huggingface")
SUB = {
    "build": "changepair pairs build /data/photographs pairs --pairs 1000 --kinds local-region=0.6 none=0.4",
    "stats": "changepair pairs stats pairs --json stats.json",
    "show": "changepair pairs show pairs --kind local-region --out sheet.png",
    "card": "changepair pairs card pairs --out pairs/README.md",
    "export": "changepair pairs export pairs exported --format huggingface",
}


def add(commands: Commands) -> None:
    """Add the command `pairs` with its subcommands."""
    group = commands.add_parser("pairs", help="Build, measure, draw, describe and export change pairs")
    actions: Any = group.add_subparsers(required=True, metavar="action", parser_class=argparse.ArgumentParser)
    _add_build(actions.add_parser("build", help="Make pairs from a folder of photographs, without a pipeline"))
    stats = actions.add_parser("stats", help="Measure counts, areas, positions, contrast and difficulty of pairs")
    stats.add_argument("pairs", help=WHAT)
    stats.add_argument("--sample", type=int, default=1000, metavar="N", help="masks to measure positions and contrast on (default: 1000)")
    stats.add_argument("--scored", type=int, default=100, metavar="N", help="masks to measure difficulty on; 0 for none (default: 100)")
    stats.add_argument("--json", type=local, metavar="FILE", help="file for all measurements, with their definitions")
    stats.add_argument("--csv", type=local, metavar="FILE", help="file for the table")
    stats.set_defaults(run=lambda one: show_stats(one.pairs, one.sample, one.scored, one.json, one.csv))
    show = actions.add_parser("show", help="Draw a contact sheet of pairs by kind")
    show.add_argument("pairs", help=WHAT)
    show.add_argument("--kind", action="append", default=[], metavar="KIND", help="kind to draw; repeatable (default: every kind)")
    show.add_argument("--count", type=int, default=3, metavar="N", help="pairs of each kind (default: 3)")
    show.add_argument("--out", type=local, metavar="PICTURE", help="file for the sheet (default: pairs-<name>.png)")
    show.set_defaults(run=lambda one: show_sheet(one.pairs, one.kind, one.count, one.out))
    card = actions.add_parser("card", help="Write a data card for the Hugging Face Hub, with a contact sheet")
    card.add_argument("pairs", help=WHAT)
    card.add_argument("--out", type=local, metavar="FILE", help="file for the card (default: card-<name>.md)")
    card.set_defaults(run=lambda one: write_card(one.pairs, one.out))
    export = actions.add_parser("export", help="Export pairs with a data card to a format of other tools")
    export.add_argument("pairs", help=WHAT)
    export.add_argument("out", type=local, help="folder that does not exist yet")
    export.add_argument("--format", choices=FORMATS, required=True, help="format to write")
    export.set_defaults(run=lambda one: export_pairs(one.pairs, one.out, one.format))
    about = {action.dest: str(action.help) for action in actions._choices_actions}
    for name, command in actions.choices.items():
        command.description = f"{about[name]}."
        command.epilog = f"example:\n  {SUB[name]}"
        command.formatter_class = argparse.RawDescriptionHelpFormatter


def _add_build(command: argparse.ArgumentParser) -> None:
    command.add_argument("photographs", help="folder of photographs, or of folders of photographs; a path or a URL")
    command.add_argument("out", type=local, help="folder for the pairs; it must not exist, or be the same build")
    command.add_argument("--pairs", type=int, default=1000, metavar="N", help="number of pairs (default: 1000)")
    command.add_argument("--resolution", type=int, default=256, metavar="PIXELS", help="side of the pictures (default: 256)")
    command.add_argument("--seed", type=int, default=0, metavar="SEED", help="seed of everything that is drawn (default: 0)")
    command.add_argument(
        "--kinds", nargs="+", metavar="KIND=SHARE", help="shares of the kinds of change; they sum to 1 (default: as synthesis.kinds)"
    )
    command.add_argument("--held-out", type=float, default=0.05, metavar="SHARE", help="share of the validation split (default: 0.05)")
    command.add_argument("--pairs-per-shard", type=int, default=250, metavar="N", help="pairs in a shard (default: 250)")
    command.add_argument("--licence", metavar="NAME", help="licence of the photographs, for the data card")
    command.add_argument("--workers", type=int, metavar="N", help="processes that make shards (default: number of cores)")
    command.set_defaults(run=build)


def local(text: str) -> Path:
    """Read the path of a file or a folder to write. Raises an error of argparse for a URL, and for a device, which would be replaced."""
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text}: is a URL; write to this machine, and copy the result to the store")
    try:
        place = place_of(text)
        special = place.exists() and not place.is_file() and not place.is_dir()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text[:80]}: is no path of this machine ({error})") from error
    except RuntimeError as error:  # ~name of an unknown user
        raise argparse.ArgumentTypeError(f"{text}: no such user's folder") from error
    if special:
        raise argparse.ArgumentTypeError(f"{text}: is a device, not a file or folder; name another path")
    return place


def build(arguments: argparse.Namespace) -> None:
    """Run `changepair pairs build`."""
    from changepair.tasks.pairs import build as work
    from changepair.tasks.synthesis.settings import SynthesisSettings

    given = {
        "pairs": arguments.pairs,
        "resolution": arguments.resolution,
        "seed": arguments.seed,
        "held_out": arguments.held_out,
        "pairs_per_shard": arguments.pairs_per_shard,
        **({"kinds": read_kinds(arguments.kinds)} if arguments.kinds else {}),
        **work.UNPAINTED,
    }
    settings = parse(SynthesisSettings, given, file=Path("pairs build"))
    workers = os.cpu_count() or 1 if arguments.workers is None else arguments.workers
    if workers < 1:
        raise BadInput(f"--workers {workers}: must be at least 1")
    console = Console(soft_wrap=True, markup=False, highlight=False)

    def report(done: int, total: int) -> None:
        console.print(f"shard {done} of {total}")

    out: Path = arguments.out
    built = work.build(place_of(arguments.photographs), out, settings, licence=arguments.licence, workers=workers, report=report)
    rejected = f"; {built.rejected} files rejected, see {out / work.REJECTED_NAME}" if built.rejected else ""
    if built.already:
        console.print(f"{out}: already has these {built.pairs} pairs of {built.photographs} photographs{rejected}")
        return
    resumed = f"; {built.kept} shards of an interrupted build" if built.kept else ""
    console.print(f"{out}: {built.pairs} pairs of {built.photographs} photographs, {built.dropped} dropped draws{resumed}{rejected}")


def read_kinds(words: Sequence[str]) -> dict[str, float]:
    """Read `kind=share` words. Raises BadInput for another form, a share that is no number, or a kind given twice."""
    kinds: dict[str, float] = {}
    for word in words:
        kind, _mark, share = word.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not kind or not math.isfinite(value):
            raise BadInput(f"--kinds {word}: write a kind and its share, such as local-region=0.6")
        if kind in kinds:
            raise BadInput(f"--kinds {word}: the kind is given twice")
        kinds[kind] = value
    return kinds


def located(what: str) -> tuple[PairsFolder, Provenance]:
    """Find the pairs of a pipeline or of a folder, with what is recorded about them.

    Raises BadInput if there are no such pairs, or if a pipeline and a folder have this name.
    """
    from changepair.tasks.pairs.card import provenance_of
    from changepair.tasks.pairs.reading import PairsFolder
    from changepair.tasks.synthesis.shards import INDEX_NAME

    named = not is_url(what) and Path(what).name == what and (PAIRS / what / INDEX_NAME).is_file()
    folder = place_of(what)
    here = (folder / INDEX_NAME).is_file()
    if named and here:
        raise BadInput(f"{what}: names a pipeline's pairs and a folder; write ./{what} or {PAIRS / what}")
    if named:
        folder = PAIRS / what
    elif not here:
        raise BadInput(f"{what}: no pairs; name a pipeline with pairs in {PAIRS}, or a folder that has {INDEX_NAME}")
    of_pipeline = folder.parent == PAIRS
    return PairsFolder(folder), provenance_of_pipeline(folder.name) if of_pipeline else provenance_of(folder)


def provenance_of_pipeline(pipeline: str) -> Provenance:
    """Read what the stages recorded about a pipeline's pairs: the sampled sources, and the settings and code of the stage `synthesize`."""
    from changepair.tasks.pairs.card import Provenance, sources_of
    from changepair.tasks.sampling.episodes import EpisodeFiles, read_pictures

    table, settings = EpisodeFiles.of(EPISODES, pipeline).sources, settings_file(f"synthesize_{pipeline}")
    code = CODE / "synthesize.json"
    return Provenance(
        sources_of(read_pictures(table)) if table.is_file() else None,
        json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else None,
        _digest(code) if code.is_file() else None,
        None,
    )


def _digest(code: Path) -> str:
    from changepair.tasks.common.fingerprint import Code

    return Code(**json.loads(code.read_text(encoding="utf-8"))).digest


def show_stats(what: str, sample: int, scored: int, json_file: Path | None, csv_file: Path | None) -> None:
    """Print the measurements of pairs, and write them to files."""
    from changepair.tasks.common.files import write_csv, write_text
    from changepair.tasks.pairs.stats import ABOUT, QUANTILES, measure

    for option, count, least in (("--sample", sample, 1), ("--scored", scored, 0)):
        if count < least:
            raise BadInput(f"{option} {count}: must be at least {least}")
    pairs, _provenance = located(what)
    measured = measure(pairs, sample, scored)
    header, lines = table_of(measured)
    if json_file is not None:
        content = {"pairs": str(pairs.folder), "quantiles": QUANTILES, "definitions": ABOUT, "kinds": [asdict(one) for one in measured]}
        write_text(json_file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if csv_file is not None:
        write_csv(csv_file, header, lines)
    console = Console()
    console.print(printed(f"{pairs.folder}: {len(pairs.rows)} pairs", measured))
    every = measured[-1]
    if every.position is not None and every.coverage is not None:
        console.print(f"position and coverage of {every.sampled} masks, in a 3 x 3 grid:", highlight=False)
        for row in (slice(0, 3), slice(3, 6), slice(6, 9)):
            cells = ["  ".join(f"{share:6.1%}" for share in shares[row]) for shares in (every.position, every.coverage)]
            console.print(f"  {cells[0]}    |  {cells[1]}", highlight=False)
    for name, about in ABOUT.items():
        console.print(f"{name}: {about}", soft_wrap=True, highlight=False)


def printed(title: str, measured: Sequence[Measured]) -> Table:
    """Return the table for the terminal, with medians. It fits into 80 characters."""
    caption = f"area, contrast and residuals: medians; residuals of {measured[-1].scored} pairs"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    methods = Counter(one.kind for one in measured)
    table.add_column("kind, method", overflow="fold")
    for name in ("pairs", "masked", "area", "contrast", "inside", "outside", "seen"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in measured:
        middle = [None if values is None else values[len(values) // 2] for values in (one.changed_area, one.contrast)]
        numbers = [*middle, one.residual_inside, one.residual_outside, one.seen]
        area, contrast, inside, outside, seen = (
            "" if value is None else format(value, form) for value, form in zip(numbers, (".1%", ".1f", ".3f", ".3f", ".0%"), strict=True)
        )
        name = f"{one.kind}, {one.method}" if methods[one.kind] > 1 else one.kind
        table.add_row(name, str(one.pairs), str(one.masked), area, contrast, inside, outside, seen)
    return table


def table_of(measured: Sequence[Measured]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and the lines of the table of measurements."""
    header = ["kind", "method", "pairs", "held_out", "masked", "area_5", "area_50", "area_95", "contrast_5", "contrast_50", "contrast_95"]
    header += ["scored", "inside", "outside", "seen"]

    def three(values: Sequence[float] | None, form: str) -> list[str]:
        return ["", "", ""] if values is None else [format(values[place], form) for place in (0, 2, 4)]

    lines = []
    for one in measured:
        shown = ["" if value is None else f"{value:.3f}" for value in (one.residual_inside, one.residual_outside, one.seen)]
        counts = [one.pairs, one.held_out, one.masked]
        lines.append([one.kind, one.method, *counts, *three(one.changed_area, ".4f"), *three(one.contrast, ".1f"), one.scored, *shown])
    return header, lines


def show_sheet(what: str, kinds: Sequence[str], count: int, out: Path | None) -> None:
    """Draw the contact sheet of pairs."""
    from changepair.tasks.common.files import written_beside
    from changepair.tasks.pairs.sheet import draw_sheet

    if count < 1:
        raise BadInput(f"--count {count}: must be at least 1")
    pairs, _provenance = located(what)
    out = out or Path(f"pairs-{pairs.name}.png")
    sheet = draw_sheet(pairs, kinds, count)
    with written_beside(out) as partial:
        sheet.save(partial, "PNG")
    _say(f"contact sheet: {out}")


def write_card(what: str, out: Path | None) -> None:
    """Write the data card of pairs."""
    from changepair.tasks.pairs.card import write_card as work

    pairs, provenance = located(what)
    out = out or Path(f"card-{pairs.name}.md")
    sheet = work(pairs, provenance, out)
    _say(f"card: {out}; contact sheet: {sheet}")


def export_pairs(what: str, out: Path, format_: str) -> None:
    """Export pairs to a format of other tools."""
    from changepair.tasks.pairs.export import export

    pairs, provenance = located(what)
    written = export(pairs, provenance, out, format_)
    counts = ", ".join(f"{count} in {split}" for split, count in written.counts.items())
    _say(f"{out}: {sum(written.counts.values())} pairs as {format_}: {counts}")


def _say(line: str) -> None:
    Console().print(line, soft_wrap=True, markup=False, highlight=False)
