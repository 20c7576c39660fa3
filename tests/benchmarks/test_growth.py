"""Measures how time and memory grow with the number of files, pairs and pictures, and plots both: linear, and flat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import skimage.data
from conftest import ROOT, make_places, save

from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use

pytestmark = pytest.mark.bench
PLOTS = ROOT / ".benchmarks"
TIMES = int(os.environ.get("GROWTH_TIMES", "1"))
"""Multiplies every size: 10 for a million files and a hundred thousand pictures, which take half an hour."""
LINEAR = 1.3
"""How much more than in proportion the time may grow from the second size to the third: the machine's moods."""
MOST_MORE = 100
"""MiB that the third size may take more than the second."""

PEAK = 'import json, re, sys, time\nfrom pathlib import Path\ndef peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024\n'  # noqa: E501
INGEST = """
from changepair.tasks.ingestion.ingest import IngestionFolders, ingest_folder
folder = Path(sys.argv[1])
places = IngestionFolders(folder / "pictures", folder / "manifests", folder / "checkpoints")
start = time.perf_counter()
ingest_folder("large", folder / "data", places=places)
print(json.dumps([time.perf_counter() - start, peak()]))
"""
SYNTHESIZE = """
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.synthesize import Inputs, finish, make_shard, start
folder, pairs = Path(sys.argv[1]), int(sys.argv[2])
settings = SynthesisSettings(pairs=pairs, resolution=256, kinds={"local-region": 1.0})
inputs = Inputs(EpisodeFiles.of(folder / "episodes", "growth"), folder / "none")
work, missing = start(settings, inputs, folder / f"work-{pairs}")
begin = time.perf_counter()
for number in missing:
    make_shard(settings, inputs, number, work)
taken = time.perf_counter() - begin
finish(settings, work, folder / f"pairs-{pairs}")
stored = sum(file.stat().st_size for file in (folder / f"pairs-{pairs}").glob("*.tar"))
print(f"{stored / pairs / 1024:.0f} KiB a pair", file=sys.stderr)
print(json.dumps([taken, peak()]))
"""
SCORE = """
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.scoring.batch_scoring import Scoring, score_detector
from changepair.tasks.scoring.settings import EvaluationSettings
folder, own = Path(sys.argv[1]), PatchResidualSettings(resolution=128)
files = EpisodeFiles.of(folder / "episodes", "growth")
scoring = Scoring({"patch-residual": own}, EvaluationSettings(resolution=128), files, folder / "m", folder / "scores", folder / "work")
start = time.perf_counter()
score_detector("patch-residual", scoring)
print(json.dumps([time.perf_counter() - start, peak()]))
"""


def measured(program: str, *arguments: object) -> tuple[float, float]:
    """Seconds and MiB of a process of its own."""
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    print(*[line for line in result.stderr.splitlines() if line.endswith("a pair")])
    taken, memory = json.loads(result.stdout.splitlines()[-1])
    return taken, memory


def shown(what: str, unit: str, sizes: tuple[int, ...], results: list[tuple[float, float]]) -> None:
    """Prints and plots; holds the growth against what it may be."""
    for size, (taken, memory) in zip(sizes, results, strict=True):
        print(f"{what}: {size:,} {unit}: {taken:.1f} s, {1000 * taken / size:.2f} ms each, {memory:.0f} MiB at the most")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.loglog(sizes, [taken for taken, _memory in results], "o-")
    right.semilogx(sizes, [memory for _taken, memory in results], "o-")
    left.set(xlabel=unit, ylabel="seconds", title=what)
    right.set(xlabel=unit, ylabel="MiB at the most", ylim=(0, None))
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / f"growth-{what}.png", dpi=80)
    plt.close(figure)
    (second, some), (third, more) = results[1:]
    assert third / sizes[2] < LINEAR * second / sizes[1] and more - some < MOST_MORE


def test_ingestion(tmp_path: Path) -> None:
    sizes, rng = (1_000 * TIMES, 10_000 * TIMES, 100_000 * TIMES), np.random.default_rng(0)
    results = []
    for size in sizes:
        for number in range(size):
            file = tmp_path / str(size) / "data" / f"c{number % 10}" / "train" / "good" / f"{number:06}.png"
            save(rng.integers(0, 256, (16, 16), dtype=np.uint8), file)
        results.append(measured(INGEST, tmp_path / str(size)))
    shown("ingestion", "files", sizes, results)


def sampled(folder: Path, normal: int, queries: int) -> None:
    """Episodes of one category of real textures, which are sources too."""
    texture = skimage.data.gravel()
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", normal), ("test/good", queries // 2), ("test/hole", queries - queries // 2)):
        for number in range(count):
            top, left = rng.integers(0, 512 - 128, 2)
            crop = np.clip(texture[top : top + 128, left : left + 128] * rng.uniform(0.9, 1.1), 0, 255).astype(np.uint8)
            save(crop, folder / "parts" / "gravel" / kind / f"{number:06}.png")
    ingest_folder("parts", folder / "parts", licence="own", places=make_places(folder / "manifests"))
    files = EpisodeFiles.of(folder / "episodes", "growth")
    use = Use(("parts",), ()) if not queries else Use((), ("parts",))
    sample(SamplingSettings(shots=(1,), seeds=(0,)), use, manifests=folder / "manifests", files=files)


def test_synthesis(tmp_path: Path) -> None:
    sizes = (1_000 * TIMES, 4_000 * TIMES, 16_000 * TIMES)
    sampled(tmp_path, 200, 0)
    shown("synthesis", "pairs", sizes, [measured(SYNTHESIZE, tmp_path, size) for size in sizes])


def test_scoring(tmp_path: Path) -> None:
    sizes = (100 * TIMES, 1_000 * TIMES, 10_000 * TIMES)
    for size in sizes:
        sampled(tmp_path / str(size), 4, size)
    shown("scoring", "pictures", sizes, [measured(SCORE, tmp_path / str(size)) for size in sizes])
