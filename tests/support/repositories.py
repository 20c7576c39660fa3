"""A bare repository with a project, for tests of scheduled runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import commit


def repository(folder: Path, text: str) -> Path:
    """A bare repository of a project with nothing but a file, and where its results are."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").write_text("")
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages:\n  code:\n    cmd: python -m changepair.flows.code\n")
    (folder / "pipelines.yaml").write_text(text)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=folder, check=True)
    commit(folder, text)
    bare = folder.with_suffix(".git")
    subprocess.run(["git", "clone", "--quiet", "--bare", str(folder), str(bare)], check=True)
    return bare
