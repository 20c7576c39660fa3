"""Compare time and memory of changepair with those of anomalib and faiss, and print a table. `make bench-peers` runs it.

Each side runs in a separate process, with the packages that it pins. Both have the same number of threads, pictures, weights and huge
pages. They run in turns, so that a change of the machine's speed affects both. Medians are compared. Weights are random, because no speed
depends on them. peers_cases.py lists the cases.

    python tests/benchmarks/peers.py --only winclip --threads 1 --peer build/peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers_cases
from peers_cases import CASES, Case
from peers_work import OPENVINO, TORCH

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/pages/explanation/peers.md"
START, END = "<!-- peers: start -->", "<!-- peers: end -->"
HEAD = "| what | peer | threads | changepair | peer | times as fast | peak memory (MiB) | largest difference |"
MODELS = {OPENVINO: "weights/openvino/model.xml", TORCH: "weights/torch/model.pt"}  # where anomalib exports to
LONG, FEWEST = 60, 3  # seconds, after which this number of turns is enough
PICTURES = 100  # after the first one, to measure a rate


@dataclass(frozen=True)
class Row:
    """A row of the table. Times are in `unit`."""

    what: str
    peer: str
    threads: int
    ours: float
    theirs: float
    unit: str = "ms"
    memory: tuple[float, float] | None = None
    """Peak resident memory of both processes in MiB."""
    difference: float | None = None
    """Largest difference of the results; None if changepair and the peer define them differently."""

    def __str__(self) -> str:
        faster = self.ours / self.theirs if self.unit == "pictures/s" else self.theirs / self.ours
        memory = "" if self.memory is None else f"{self.memory[0]:,.0f}; {self.memory[1]:,.0f} ({self.memory[0] / self.memory[1]:.2f} ×)"
        difference = "" if self.difference is None else f"{self.difference:.0e}"
        numbers = [f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {self.unit}" for value in (self.ours, self.theirs)]
        return f"| {self.what} | {self.peer} | {self.threads} | {' | '.join(numbers)} | {faster:.2f} × | {memory} | {difference} |"


class Worker:
    """A process of one side that has built a case and answers requests."""

    def __init__(self, python: str, name: str, side: str, folder: Path, threads: int) -> None:
        command = [python, peers_cases.__file__, name, side, str(folder), str(threads)]
        self.log = folder / f"{side}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, env=environment(threads), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            self.values: list[float] = self.answer("values")
        except BaseException:
            self.process.kill()
            raise

    def answer(self, request: str) -> Any:
        """Send a request: `values`, `seconds` or `memory`. Raises RuntimeError with the end of its log if the process fails."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.log.read_text(encoding="utf-8")[-3000:])
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of both sides. changepair sets huge pages and glibc's limits of freed memory, and anomalib does not."""
    limits = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRUST_REMOTE_CODE": "1"}
    return {"THP_MEM_ALLOC_ENABLE": "1", **limits, **os.environ, **own}


def compared(name: str, case: Case, peer: str, folder: Path, threads: int, times: int) -> Row:
    """Measure both sides of a case in turns."""
    ours = Worker(sys.executable, name, "ours", folder, threads)
    theirs = Worker(peer, name, "theirs", folder, threads)
    memory = ours.answer("memory"), theirs.answer("memory")
    start, turns = time.perf_counter(), []
    while len(turns) < times and (len(turns) < FEWEST or time.perf_counter() - start < LONG):
        turns.append((ours.answer("seconds"), theirs.answer("seconds")))
    ours.close()
    theirs.close()
    difference = max(abs(a - b) for a, b in zip(ours.values, theirs.values, strict=True)) if case.same else None
    medians = [1000 * statistics.median(column) for column in zip(*turns, strict=True)]
    return Row(case.what, case.peer, threads, *medians, memory=memory, difference=difference)


def seconds_of(command: list[str], threads: int, folder: Path) -> float:
    """Run a command. Return its duration in seconds. Raises RuntimeError with the end of its log if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment(threads), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return time.perf_counter() - start


def in_turns(ours: list[str], theirs: list[str], threads: int, folder: Path, times: int) -> tuple[float, float]:
    """Run two commands in turns. Return the median duration of each process in seconds."""
    turns = [[seconds_of(command, threads, folder) for command in (ours, theirs)] for _ in range(times + 1)][1:]  # the first is slower
    first, second = zip(*turns, strict=True)
    return statistics.median(first), statistics.median(second)


def predicted(peer: str, folder: Path, threads: int, times: int) -> Iterator[Row]:
    """Measure the time of the first answer and the rate for files of 256x256 pixels, including reading."""
    subprocess.run([sys.executable, peers_cases.__file__, "pictures", str(PICTURES + 2), str(folder)], check=True)
    subprocess.run([peer, peers_cases.__file__, "export", str(folder)], check=True, capture_output=True, env=environment(threads))
    prompt, *queries = sorted(map(str, folder.glob("*.png")))
    command = [str(Path(sys.executable).parent / "changepair"), "predict", "--prompt", prompt]
    for kind in (OPENVINO, TORCH):
        theirs = [peer, peers_cases.__file__, "inferencer", kind, str(folder / MODELS[kind]), str(threads)]
        first = in_turns([*command, queries[0]], [*theirs, queries[0]], threads, folder, times)
        many = in_turns([*command, *queries], [*theirs, *queries], threads, folder, max(1, times // 2))
        rates = [(len(queries) - 1) / (all_ - one) for one, all_ in zip(first, many, strict=True)]
        yield Row("`changepair predict`, first answer", f"anomalib {kind}, PatchCore resnet18", threads, *first, unit="s")
        yield Row("`changepair predict`, rate after it", f"anomalib {kind}, PatchCore resnet18", threads, *rates, unit="pictures/s")


def imported(peer: str, folder: Path, threads: int, times: int) -> Iterator[Row]:
    """Measure the time of imports, including the start of Python."""
    for ours, theirs in (
        ("from changepair import Predictor", f"from anomalib.deploy import {OPENVINO}"),
        ("import changepair", "import anomalib"),
    ):
        seconds = in_turns([sys.executable, "-c", ours], [peer, "-c", theirs], threads, folder, times)
        yield Row(f"`{ours}`", f"`{theirs}`", threads, *seconds, unit="s")


def rows(only: list[str], peer: str, threads: int, times: int) -> Iterator[Row]:
    """Measure the cases whose name contains a word of `only`; all cases if it is empty."""

    def chosen(name: str) -> bool:
        return not only or any(word in name for word in only)

    with temporary() as folder:
        for name, case in CASES.items():
            if chosen(name):
                yield compared(name, case, peer, folder, threads, times)
        if chosen("predict"):
            yield from predicted(peer, folder, threads, times)
        if chosen("import"):
            yield from imported(peer, folder, threads, times)


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        yield Path(folder)


def machine(peer: str) -> str:
    """Return a description of the processor, the date and the versions of packages."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
    names = {sys.executable: ("torch", "timm", "open-clip-torch"), peer: ("anomalib", "torch", "open-clip-torch", "faiss-cpu", "openvino")}
    code = "import sys, importlib.metadata as m; print(', '.join(f'{name} {m.version(name)}' for name in sys.argv[1:]))"
    ours, theirs = (subprocess.check_output([python, "-c", code, *packages], text=True).strip() for python, packages in names.items())
    return f"{model}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}. changepair with {ours}. Peers: {theirs}."


def write(page: Path, table: str) -> None:
    """Replace the text between the markers of a page. Raises ValueError if it has no markers."""
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _old, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page}: no markers {START} and {END}; add them where the table belongs")
    page.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare changepair with anomalib and faiss.")
    python = str(ROOT / "build/peers/bin/python")
    parser.add_argument("--peer", type=os.path.abspath, default=python, help="Python interpreter of the environment with anomalib")
    parser.add_argument(
        "--only", nargs="*", default=[], help=f"words in names of cases (default: all): {', '.join(CASES)}, predict, import"
    )
    parser.add_argument("--threads", nargs="*", type=int, default=[1], help="numbers of threads to measure with")
    parser.add_argument("--times", type=int, default=5, help="number of turns; the median is printed")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.relative_to(ROOT)}")
    chosen = parser.parse_args()
    lines = [HEAD, "|" + "---|" * HEAD.count(" |")]
    print("\n".join(lines))
    for threads in chosen.threads:
        for row in rows(chosen.only, chosen.peer, threads, chosen.times):
            lines.append(str(row))
            print(row, flush=True)
    about = machine(chosen.peer)
    print(f"\n{about}")
    if chosen.write:
        write(PAGE, "\n".join([about, "", *lines]))


if __name__ == "__main__":
    main()
