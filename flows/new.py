"""Create a project, a folder with a pipelines.yaml under Git and DVC: the command `changepair new`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from changepair.flows.plan import write_plan
from changepair.flows.settings.reader import FILE
from changepair.tasks.common.errors import BadInput

TEMPLATE = Path(__file__).parent / "project"
FILES = {
    "gitignore": ".gitignore",
    "dvcignore": ".dvcignore",
    "config": ".dvc/config",
    "plots": ".dvc/plots",
    "README.md": "README.md",
    FILE.name: FILE.name,
}
"""Files and folders of the template, and their paths in a project."""
EPILOG = """examples:
  changepair new my-line && cd my-line && changepair retrain
  changepair new metauas --from examples/metauas
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "new",
        help="Create a project in a new folder",
        description="Create a folder with pipelines.yaml, .gitignore, .dvcignore and README.md, under Git and DVC.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a folder that does not exist or is empty")
    parser.add_argument("--from", dest="example", type=Path, metavar="FOLDER", help="copy pipelines.yaml and README.md from this folder")
    parser.set_defaults(run=lambda one: new(one.folder, one.example))


def new(folder: Path, example: Path | None = None) -> None:
    """Create a project.

    example: a folder. Its pipelines.yaml and, if present, README.md replace those of the template.

    Raises BadInput if the folder is not empty or is inside a Git repository, if Git is not installed, or if pipelines.yaml is invalid. Then
    nothing is written.
    """
    target = folder.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{folder}: is not an empty folder; choose a new folder")
    if example is not None and not (example / FILE).is_file():
        raise BadInput(f"--from {example}: contains no {FILE}; choose a folder with one")
    import dvc  # noqa: F401 - its absence is reported before anything is written

    if shutil.which("git") is None:
        raise BadInput("git is not installed, but DVC needs it; install git, then run this command again")
    above = next((one for one in target.parents if (one / ".git").exists()), None)
    if above is not None:
        raise BadInput(f"{folder}: is inside the Git repository {above}, but a project is a separate repository; choose a folder outside")
    nearest = next(one for one in target.parents if one.exists())
    if not nearest.is_dir():
        raise BadInput(f"{folder}: {nearest} is a file, not a folder; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        made = Path(work) / target.name
        _fill(made, example)
        target.mkdir(exist_ok=True)
        for one in made.iterdir():
            one.rename(target / one.name)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"created project {folder} with {', '.join(sorted(name for name in FILES.values() if '/' not in name))}")
    console.print(f"next: cd {shlex.quote(str(folder))} && changepair retrain")
    console.print("to add your own pictures: changepair init --normal FOLDER --abnormal FOLDER")


def _fill(folder: Path, example: Path | None) -> None:
    folder.mkdir()
    for command in (["git", "init", "--quiet", "--initial-branch=main"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True)
    for name, place in FILES.items():
        if example is not None and (example / name).is_file():
            shutil.copyfile(example / name, folder / place)
        elif (TEMPLATE / name).is_dir():
            shutil.copytree(TEMPLATE / name, folder / place)
        else:
            text = (TEMPLATE / name).read_text(encoding="utf-8")
            (folder / place).write_text(text.replace("{name}", folder.name), encoding="utf-8")
    write_plan(folder)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
