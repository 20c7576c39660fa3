"""What stages write can be read by whom the umask lets read it, whichever library wrote it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

WRITE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from changepair.tasks.common.files import made_anew, write_text, written_beside
top = Path(sys.argv[1])
with made_anew(top / "kit") as partial:
    (partial / "below").mkdir()
    save_file({"weight": torch.zeros(2)}, partial / "below" / "model.safetensors")
    write_text(partial / "kit.json", "{}")
with written_beside(top / "model.safetensors") as partial:
    save_file({"weight": torch.zeros(2)}, partial)
"""


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], cwd=ROOT, umask=umask, check=True)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {mode}
