"""Synthesize pairs in steps: find the shards of an earlier run, make the missing ones anywhere and in any order, and finish.

A run works in a folder whose name identifies everything that its bytes depend on. At the end the folder is moved to its place. After a
killed run, the next run with the same name keeps its complete shards, which are those with a record.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from changepair.tasks.common.files import content_of, sha256, write_csv, write_text
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.pictures import open_image
from changepair.tasks.common.rows import write_rows
from changepair.tasks.common.sheets import TILE, SheetRow, contact_sheet, tinted
from changepair.tasks.inpainting.inpainter import Inpainter, load_inpainter
from changepair.tasks.sampling.episodes import SourceFiles, read_pictures
from changepair.tasks.synthesis.changes import Materials
from changepair.tasks.synthesis.objects import Objects
from changepair.tasks.synthesis.pair import Maker
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.shards import INDEX_NAME, OVERVIEW_NAME, Drop, PairRow, ShardReader, write_shard

NAME_LENGTH = 16
PAIRS_A_KIND = 12
PAIRS_A_LINE = 2
PARTS = ("prompt", "query", "mask", "overlay")
AREA_STEP = 0.02  # width of a bar in the histogram, as a share of the query
KINDS_NAME, AREAS_NAME, DROPS_NAME = "kinds.csv", "changed_area.csv", "drops.csv"


@dataclass(frozen=True)
class Inputs:
    files: SourceFiles
    inpainter: Path  # folder that the inpainter stage wrote


@dataclass(frozen=True)
class ShardsFolder:
    """The folder of a run, with its pairs and a record of each complete shard."""

    folder: Path

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs"

    def record(self, number: int) -> Path:
        return self.folder / "records" / f"{number:05d}.json"

    def shard(self, number: int) -> Path:
        return self.pairs / f"{number:05d}.tar"


@dataclass(frozen=True)
class Synthesized:
    pairs: int
    dropped: int


def shard_count(settings: SynthesisSettings) -> int:
    return -(-settings.pairs // settings.pairs_per_shard)


def start(settings: SynthesisSettings, inputs: Inputs, checkpoints: Path) -> tuple[ShardsFolder, list[int]]:
    """Return the folder to work in, and the numbers of the missing shards. Delete what other runs left."""
    name = _name(settings, inputs)
    for other in checkpoints.glob("*"):
        if other.name != name:
            shutil.rmtree(other)
    work = ShardsFolder(checkpoints / name)
    for folder in (work.pairs, work.record(0).parent):
        folder.mkdir(parents=True, exist_ok=True)
    _clear(work)
    return work, [number for number in range(shard_count(settings)) if not (work.record(number).is_file() and work.shard(number).is_file())]


def make_shard(settings: SynthesisSettings, inputs: Inputs, number: int, work: ShardsFolder) -> int:
    """Make shard `number`, with the same bytes on any machine. Return the number of its pairs.

    Raises BadInput if a kind cannot be made at all. This is judged by the first shard.
    """
    cv2.setNumThreads(1)  # several shards are made at once, which uses the cores
    inpainter = load_inpainter(inputs.inpainter, settings.inpainting) if settings.repaints else None
    makers = [maker(settings, inputs.files, inpainter, held_out=held_out) for held_out in (False, True)]
    first = number * settings.pairs_per_shard
    last = min(first + settings.pairs_per_shard, settings.pairs)
    border = min(max(first, settings.pairs - math.ceil(settings.held_out * settings.pairs)), last)
    pairs = chain.from_iterable(maker.make(part) for maker, part in zip(makers, (range(first, border), range(border, last)), strict=True))
    rows = write_shard(work.shard(number), pairs, settings.seed)
    if number == 0:
        for one in makers:
            failed = [used for used in one.given_up if used.kind not in {row.kind for row in rows}]
            if failed:
                raise one.impossible(failed[0])
    drops = [[*drop, count] for drop, count in sorted((makers[0].drops + makers[1].drops).items())]
    write_text(work.record(number), json.dumps({"rows": [asdict(row) for row in rows], "drops": drops}))
    return len(rows)


def maker(settings: SynthesisSettings, files: SourceFiles, inpainter: Inpainter | None = None, *, held_out: bool = False) -> Maker:
    """Return the maker of the pairs to train on, or of those to measure on. Without an inpainter it makes only kinds that need none."""
    sources, textures = (
        Photographs(_images(table, changed), settings.crop, settings.resolution).parted(settings.held_out)[held_out]
        for table, changed in ((at, at.stat().st_mtime_ns if at.is_file() else 0) for at in (files.sources, files.textures))
    )
    return Maker(Materials(settings, sources, textures, Objects(settings.objects, sources, files.objects)), inpainter, held_out=held_out)


def finish(settings: SynthesisSettings, work: ShardsFolder, folder: Path) -> Synthesized:
    """Write the index and the overview of all shards, and move everything to `folder`."""
    _clear(work)
    records = [json.loads(work.record(number).read_text()) for number in range(shard_count(settings))]
    rows = [PairRow(**row) for record in records for row in record["rows"]]
    drops: Counter[Drop] = Counter()
    for record in records:
        for kind, method, reason, count in record["drops"]:
            drops[Drop(kind, method, reason)] += count
    write_rows(work.pairs / INDEX_NAME, PairRow, rows)
    _write_overview(work.pairs, rows, drops)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work.pairs, folder)
    shutil.rmtree(work.folder)
    return Synthesized(len(rows), drops.total())


def _clear(work: ShardsFolder) -> None:
    """Delete the partial files of killed runs and workers."""
    for partial in work.folder.glob("*/.*.partial"):
        partial.unlink()


@lru_cache(maxsize=4)
def _images(table: Path, changed: int) -> Sequence[str]:
    """Return the pictures' paths, in the order of sampling's file. `changed` is its modification time, for the cache."""
    return [row.image for row in read_pictures(table)]


def _name(settings: SynthesisSettings, inputs: Inputs) -> str:
    """Name a run by its settings, its inputs, and the code and packages that make pairs."""
    about = {"settings": asdict(settings), "code": code_of(__name__).digest, "sam": content_of(settings.objects.sam)}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    # The tables hold the sha256 of every picture.
    for table in (inputs.files.sources, inputs.files.textures, inputs.files.objects):
        digest.update(f"{table.name} {sha256(table)}\n".encode())
    for file in sorted(file for file in inputs.inpainter.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(inputs.inpainter)} {sha256(file)}\n".encode())
    return digest.hexdigest()[:NAME_LENGTH]


def _write_overview(folder: Path, rows: Sequence[PairRow], drops: Mapping[Drop, int]) -> None:
    """Draw folder/overview/<kind>.png from the first pairs of each kind.

    Also count pairs by kind (kinds.csv) and by the share of the query that changed (changed_area.csv), and dropped draws by reason
    (drops.csv).
    """
    overview = folder / OVERVIEW_NAME
    overview.mkdir(exist_ok=True)
    for kind in sorted({row.kind for row in rows}):
        of_kind = [row for row in rows if row.kind == kind]
        # from every method of the kind
        methods = sorted({row.method for row in of_kind})
        by_method = ([row for row in of_kind if row.method == method] for method in methods)
        # Pairs whose roles are not swapped come first, so that an appearance shows an object that appears.
        chosen = [row for own in by_method for row in sorted(own, key=lambda row: row.swapped)[: max(1, PAIRS_A_KIND // len(methods))]]
        contact_sheet([_line(folder, row) for row in chosen], PAIRS_A_LINE).save(overview / f"{kind}.png", "PNG")
    counts = Counter(f"{row.kind}, {row.method}" for row in rows)
    reasons = {f"{drop.kind}, {drop.method}: {drop.reason}": count for drop, count in sorted(drops.items())}
    write_csv(overview / KINDS_NAME, ["kind", "pairs"], sorted(counts.items()))
    write_csv(overview / DROPS_NAME, ["reason", "draws"], reasons.items())
    kinds = sorted({row.kind for row in rows if row.changed_area > 0})
    areas = [Counter(int(row.changed_area / AREA_STEP) for row in rows if row.kind == kind) for kind in kinds]
    last = max((max(bars) for bars in areas), default=0)
    table = ((bar, [bars[bar] for bars in areas]) for bar in range(last + 1))
    lines = ([f"{(bar + 0.5) * AREA_STEP:.2f}", sum(counts), *counts] for bar, counts in table)
    write_csv(overview / AREAS_NAME, ["changed_area", "pairs", *kinds], lines)


def _line(folder: Path, row: PairRow) -> SheetRow:
    shard = ShardReader(folder / row.shard)
    files = (io.BytesIO(shard.read(f"{row.key}.{part}.png")) for part in ("prompt", "query", "mask"))
    prompt, query, mask = (open_image(file).convert("RGB") for file in files)
    overlay = Image.fromarray(tinted(np.asarray(query), np.asarray(mask.convert("L")) > 0))
    tiles = [np.asarray(tile.resize((TILE, TILE), Image.Resampling.BILINEAR)) for tile in (prompt, query, mask, overlay)]
    return SheetRow(tiles, (PARTS[0], f"query ({row.method}{', swapped' if row.swapped else ''})", *PARTS[2:]))
