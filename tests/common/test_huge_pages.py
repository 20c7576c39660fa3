"""Large tensors lie in huge pages, which the system has to allow. Without them an encoder takes twice as long on a CPU."""

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
