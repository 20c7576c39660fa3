"""The documentation's pictures: docs/pictures.py draws those that are committed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

IMAGES = ROOT / "docs/pages/images"
DRAW = [sys.executable, "docs/pictures.py"]


def test_a_picture_that_is_drawn_again_has_the_pixels_of_the_committed_one(tmp_path: Path) -> None:
    subprocess.run([*DRAW, "growth", "--to", str(tmp_path)], cwd=ROOT, check=True)
    drawn, committed = (np.asarray(Image.open(folder / "growth.png")) for folder in (tmp_path, IMAGES))
    assert np.array_equal(drawn, committed)


@pytest.mark.slow
def test_all_pictures_that_are_drawn_again_show_the_committed_ones(tmp_path: Path) -> None:
    """Scores may differ in the last bits from machine to machine, so a few pixels may differ by a level or two."""
    subprocess.run([*DRAW, "--to", str(tmp_path)], cwd=ROOT, check=True)
    for file in tmp_path.iterdir():
        drawn, committed = (np.asarray(Image.open(place), dtype=int) for place in (file, IMAGES / file.name))
        assert drawn.shape == committed.shape and np.abs(drawn - committed).mean() < 0.1, file.name


def test_every_picture_is_on_a_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs/pages").rglob("*.md"))]
    shown = {name for page in pages for name in re.findall(r"images/([\w-]+\.png)", page)}
    assert {file.name for file in IMAGES.iterdir()} <= shown
