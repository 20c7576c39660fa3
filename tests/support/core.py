"""An environment that holds the wheel and the dependencies that it declares, transitively, and nothing else.

The dependencies are links to those installed here, so that it takes seconds and no network. What pip would install follows from the same
metadata; a dependency that is imported and not declared is missing here as it would be there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SITE = Path(sysconfig.get_path("purelib"))


def build_wheel(folder: Path) -> Path:
    """Build the wheel from the files that Git has, in a copy, so that nothing is left here."""
    source = folder / "source"
    source.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and name.startswith(("changepair/", "flows/", "tasks/", "changepair", "pyproject", "README", "LICENSE")):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                target.symlink_to(os.readlink(ROOT / name))
            elif (ROOT / name).is_file():
                target.write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def environment(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """Make the environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    [metadata] = site.glob("changepair-*.dist-info")
    for needed in closure(Distribution.at(metadata), extras):
        for name in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(SITE / name)
    python = folder / "bin" / "python"
    for command in distributions(path=[str(site)]):
        for one in command.entry_points.select(group="console_scripts"):
            script = folder / "bin" / one.name
            script.write_text(f"#!{python}\nimport sys\nfrom {one.module} import {one.attr}\nsys.exit({one.attr}())\n")
            script.chmod(0o755)
    return python


def closure(root: Distribution, extras: Iterable[str]) -> Iterator[Distribution]:
    """Yield what a distribution needs, and what that needs, each once."""
    installed = {canonicalize_name(one.name): one for one in distributions()}
    waiting, done = [(root, tuple(extras))], {("changepair", tuple(extras))}
    while waiting:
        one, chosen = waiting.pop()
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *chosen)):
                key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
                if key not in done:
                    done.add(key)
                    found = root if key[0] == "changepair" else installed[key[0]]
                    waiting.append((found, key[1]))
                    if found is not root:
                        yield found


def megabytes(names: Iterable[Distribution]) -> float:
    """Sum the sizes of what distributions install."""
    files = {file.locate() for one in names for file in one.files or ()}
    return sum(Path(str(file)).stat().st_size for file in files if Path(str(file)).is_file()) / 1e6
