"""Measures what Prefect and DVC cost: the quickstart's wall time against its stages' own work, and what a run costs that changes
nothing."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, run
from servers import own_work, prefect_server

MOST = 1.25  # wall time of `changepair retrain` over the stages' own work
RUNS = 3


def seconds(folder: Path, *command: str, **environment: str) -> float:
    start = time.perf_counter()
    result = run(folder, *command, **environment)
    taken = time.perf_counter() - start
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return taken


@pytest.mark.bench
def test_orchestration_is_cheap(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    with prefect_server(tmp_path / "prefect") as url:
        wall = seconds(folder, "changepair", "retrain", "quickstart", PREFECT_API_URL=url)
        work = own_work(url)
        beside = statistics.median(seconds(folder, "changepair", "retrain", "quickstart", PREFECT_API_URL=url) for _ in range(RUNS))
    home = {"PREFECT_HOME": str(tmp_path / "own")}
    first = seconds(folder, "changepair", "retrain", "quickstart", **home)
    alone = statistics.median(seconds(folder, "changepair", "retrain", "quickstart", **home) for _ in range(RUNS))
    dvc = statistics.median(seconds(folder, "dvc", "repro") for _ in range(RUNS))
    print(f"\nquickstart: wall {wall:.0f} s, the stages' own work {work:.0f} s, ratio {wall / work:.3f} (at most {MOST})")
    print(f"nothing changed: dvc repro {dvc:.1f} s; changepair retrain {beside:.1f} s beside a server, {alone:.1f} s with one of its own,")
    print(f"{first:.1f} s where that has to lay out its database first (medians of {RUNS}, but for the last)")
    assert wall <= MOST * work
    assert dvc < 3 and beside < 25 and alone < 25 and first < 25
