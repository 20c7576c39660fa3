"""Draw a contact sheet of finished pairs, by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.sheets import TILE, SheetRow, contact_sheet, tinted
from changepair.tasks.pairs.reading import PairsFolder, StoredPair
from changepair.tasks.synthesis.shards import PairRow

CAPTIONS = ("prompt", "query", "mask", "overlay")


def draw_sheet(pairs: PairsFolder, kinds: Sequence[str] = (), count: int = 3, abreast: int = 1) -> Image.Image:
    """Draw `count` pairs of each of these kinds; without `kinds`, of all. The methods of a kind take turns.

    Left of a pair are its kind, its method and the share of the query that changed. Raises BadInput for a kind that the pairs lack.
    """
    missing = [kind for kind in kinds if kind not in pairs.kinds]
    if missing:
        raise BadInput(f"{pairs.folder}: has no pair of kind {missing[0]!r}; it has {', '.join(pairs.kinds)}")
    rows = [row for kind in kinds or pairs.kinds for row in _chosen([row for row in pairs.rows if row.kind == kind], count)]
    return contact_sheet([sheet_row(pair) for pair in pairs.read(rows)], abreast)


def _chosen(rows: Sequence[PairRow], count: int) -> list[PairRow]:
    """Select the first pairs, one of each method in turn."""
    seen: dict[str, int] = {}
    turns = []
    for row in rows:
        seen[row.method] = seen.get(row.method, -1) + 1
        turns.append(seen[row.method])
    order = sorted(range(len(rows)), key=lambda place: (turns[place], place))[:count]
    return [rows[place] for place in sorted(order)]


def sheet_row(pair: StoredPair) -> SheetRow:
    """Return prompt, query, mask and overlay of a pair, with captions."""
    query, prompt, mask = pair.arrays
    white = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    tiles = [_tile(picture) for picture in (prompt, query, white, tinted(query, mask))]
    area = f"{pair.row.changed_area:.1%} changed" if mask.any() else "no mask"
    notes = [note for note, holds in (("swapped", pair.row.swapped), ("held out", pair.row.held_out)) if holds]
    return SheetRow(tiles, CAPTIONS, (pair.row.kind, pair.row.method, area, *notes))


def _tile(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BILINEAR))
