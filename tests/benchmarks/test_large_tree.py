"""Measures how fast a large tree is ingested, on how much memory, and how fast it is when nothing has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, save

pytestmark = pytest.mark.bench
FILES, FOLDERS = 100_000, 10
MOST_MEMORY = 1024  # MiB

INGEST = """
import json, re, sys, time
from pathlib import Path
from changepair.tasks.ingestion.ingest import IngestionFolders, ingest_folder

folder = Path(sys.argv[1])
start = time.perf_counter()
came = ingest_folder("large", folder / "data", places=IngestionFolders(folder / "pictures", folder / "manifests", folder / "checkpoints"))
taken = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
print(json.dumps([came.kept, taken, peak]))
"""


def run(folder: Path) -> tuple[int, float, float]:
    result = subprocess.run([sys.executable, "-c", INGEST, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, taken, memory = json.loads(result.stdout)
    return kept, taken, memory


def test_a_hundred_thousand_small_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(FILES):
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        save(pixels, tmp_path / "data" / f"c{number % FOLDERS}" / "train" / "good" / f"{number:06}.png")
    kept, taken, memory = run(tmp_path)
    again, taken_again, _memory = run(tmp_path)
    print(
        f"\n{FILES:,} small files: {kept / taken:,.0f} files/s, {memory:.0f} MiB at the most; "
        f"unchanged, {again / taken_again:,.0f} files/s: {taken / taken_again:.1f} x"
    )
    assert kept == again == FILES and memory < MOST_MEMORY and taken_again < taken
