"""Large tensors lie in huge pages, which the system has to allow, and freed ones are used again."""

import os
import platform
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


AGAIN = """
import resource
from changepair.tasks import common
import torch
torch.set_num_threads(1)
faults = []
for _ in range(40):
    torch.empty(2**19).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[-21])
"""
GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("variables", "again"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.rtld.nns=4"}, True),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, False),
    ],
)
def test_a_tensor_takes_the_pages_of_a_freed_one(variables: dict[str, str], again: bool) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    own["THP_MEM_ALLOC_ENABLE"] = "0"
    done = subprocess.run([sys.executable, "-c", AGAIN], env=own | variables, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50 if again else int(done.stdout) > 20 * 400  # the last 20, of 512 pages each
