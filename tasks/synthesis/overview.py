"""Draw an overview of a pipeline's pairs: a contact sheet a kind, and counts as tables that DVC plots."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from changepair.tasks.common.files import write_csv
from changepair.tasks.common.pictures import open_image
from changepair.tasks.common.sheets import TILE, Line, contact_sheet, tinted
from changepair.tasks.synthesis.shards import OVERVIEW_NAME, Drop, PairRow, ShardReader

PAIRS_A_KIND = 12
PAIRS_A_LINE = 2
COLUMNS = ("prompt", "query", "mask", "overlay")
AREA_STEP = 0.02  # share of the query, of a bar of the histogram
KINDS_NAME, AREAS_NAME, DROPS_NAME = "kinds.csv", "changed_area.csv", "drops.csv"


def write_overview(folder: Path, rows: Sequence[PairRow], drops: Mapping[Drop, int]) -> None:
    """Draw folder/overview/<kind>.png from the first pairs of each kind, and count pairs by kind (kinds.csv) and by the share of the query
    that changed (changed_area.csv), and dropped draws by reason (drops.csv)."""
    overview = folder / OVERVIEW_NAME
    overview.mkdir(exist_ok=True)
    for kind in sorted({row.kind for row in rows}):
        of_kind = [row for row in rows if row.kind == kind]
        # Of every way to make the kind, if there are several.
        methods = sorted({row.method for row in of_kind})
        chosen = [row for method in methods for row in [row for row in of_kind if row.method == method][: PAIRS_A_KIND // len(methods)]]
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


def _line(folder: Path, row: PairRow) -> Line:
    shard = ShardReader(folder / row.shard)
    files = (io.BytesIO(shard.read(f"{row.key}.{part}.png")) for part in ("prompt", "query", "mask"))
    prompt, query, mask = (open_image(file).convert("RGB") for file in files)
    overlay = Image.fromarray(tinted(np.asarray(query), np.asarray(mask.convert("L")) > 0))
    tiles = [np.asarray(tile.resize((TILE, TILE), Image.Resampling.BILINEAR)) for tile in (prompt, query, mask, overlay)]
    return Line(tiles, (f"{row.method}: {COLUMNS[0]}", *COLUMNS[1:]))
