"""A contact sheet: some pairs of each kind, each as prompt, query, mask and overlay, to see what a detector will learn from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tasks.files import written_beside
from tasks.pictures import Mask, Picture
from tasks.synthesis.shards import CONTACT_SHEET_NAME, ShardReader, read_index

PAIRS_A_KIND = 6
TILE = 128  # pixels a side
GAP = 4
HEADER = 24
COLUMNS = ("prompt", "query", "mask", "overlay")
PAPER, INK, MARK = (250, 250, 248), (30, 30, 30), (230, 40, 60)


def write_contact_sheet(folder: Path) -> Path:
    """Draws the first pairs of each kind of the shards in `folder` to contact_sheet.png, two pairs a line."""
    rows = read_index(folder)
    chosen = [row for kind in sorted({row["kind"] for row in rows}) for row in [r for r in rows if r["kind"] == kind][:PAIRS_A_KIND]]
    width = 2 * len(COLUMNS) * (TILE + GAP) + GAP * 5
    line = HEADER + TILE + GAP
    sheet = Image.new("RGB", (width, -(-len(chosen) // 2) * line + GAP), PAPER)
    for place, row in enumerate(chosen):
        corner = ((place % 2) * (width // 2) + GAP, (place // 2) * line)
        _draw_pair(sheet, corner, row, ShardReader(folder / row["shard"]))
    with written_beside(folder / CONTACT_SHEET_NAME) as partial:
        sheet.save(partial, "PNG")
    return folder / CONTACT_SHEET_NAME


def _draw_pair(sheet: Image.Image, corner: tuple[int, int], row: dict[str, Any], shard: ShardReader) -> None:
    prompt, query, mask = (_open(shard.read(f"{row['key']}.{part}.png")) for part in ("prompt", "query", "mask"))
    tiles = (prompt, query, mask, Image.fromarray(outlined(np.asarray(query), np.asarray(mask.convert("L")) > 0)))
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    for column, (title, tile) in enumerate(zip(COLUMNS, tiles, strict=True)):
        x = left + column * (TILE + GAP)
        text = f"{row['kind']}: {title}" if column == 0 else title
        draw.text((x, top + 6), text, fill=INK, font=ImageFont.load_default(12))
        sheet.paste(tile.resize((TILE, TILE), Image.Resampling.BILINEAR), (x, top + HEADER))


def outlined(picture: Picture, mask: Mask) -> Picture:
    """The picture with the masked region tinted."""
    tinted = picture.copy()
    tinted[mask] = (0.5 * tinted[mask] + 0.5 * np.array(MARK)).astype(np.uint8)
    return tinted


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
