"""Environment variables that the package sets for PyTorch: large tensors lie in huge pages, and threads sleep while they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES, SETTING = Path("/proc/self/smaps_rollup"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALLOWED = SETTING.is_file() and "[never]" not in SETTING.read_text(encoding="ascii")
PROGRAM = f"""
from changepair.tasks.common import tensors
import torch
kept = torch.ones(2**26)
print(next(line.split()[1] for line in open("{PAGES}", encoding="ascii") if line.startswith("AnonHugePages:")))
"""


@pytest.mark.skipif(not ALLOWED, reason="the system has no transparent huge pages")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, "[always]" in SETTING.read_text(encoding="ascii") if ALLOWED else False)],
)
def test_a_large_tensor_lies_in_huge_pages_unless_the_environment_forbids_it(variables: dict[str, str], expected: bool) -> None:
    own = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=own | variables, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 2**17) is expected  # KiB, of 256 MiB


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch uses GNU OpenMP on Linux only")
@pytest.mark.parametrize(("variables", "expected"), [({}, "0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")])
def test_threads_sleep_while_they_wait_unless_the_environment_asks_for_more(variables: dict[str, str], expected: str) -> None:
    """A waiting thread of GNU OpenMP looks GOMP_SPINCOUNT times for work before it sleeps."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_"))}
    command = [sys.executable, "-c", "import changepair.tasks, torch; torch.ones(9)"]
    done = subprocess.run(command, env=own | variables | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
