"""`changepair doctor`: looks at what this project needs of a machine, and says what is missing and how to get it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from changepair.flows.running.secrets import hide
from changepair.tasks.common.errors import BadInput

EPILOG = """example:
  changepair doctor
"""
LOCK = Path("requirements.lock")
LEAST_ROOM = 10 * 10**9
"""Bytes of the disk: an environment takes 7.6 GB, the quickstart's artifacts and DVC's cache of them 1 (`du -sh .venv data .dvc/cache`)."""
EXTRAS = {
    "samples": ("elpv-dataset", "the pictures of the quickstart"),
    "serve": ("gradio", "`changepair demo`, `review` and `api`"),
    "export": ("onnx", "`changepair export`"),
    "s3": ("dvc-s3", "data and DVC remotes in S3"),
}
"""What an extra brings, and what needs it."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, and how it is."""

    what: str
    how: str
    fine: bool = True
    needed: bool = True
    """Whether nothing runs without it; else it is for those who want it."""

    def __str__(self) -> str:
        sign = "ok" if self.fine else "MISSING" if self.needed else "-"
        return hide(f"{sign:8}{self.what}: {self.how}")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this machine has of what the project needs, and how to get the rest",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _arguments: examine())


def examine() -> None:
    """Prints every finding. Raises BadInput if something is missing that is needed."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    findings = []
    for look in (_python, _packages, _commands, _disk, _devices, _extras, _server, _remote, _pipelines):
        for finding in look():
            console.print(str(finding))
            findings.append(finding)
    missing = [finding for finding in findings if finding.needed and not finding.fine]
    if missing:
        raise BadInput(f"{len(missing)} missing: {', '.join(finding.what for finding in missing)}; each line above says how to get it")


def _python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", here if sys.version_info >= (3, 11) else f"{here}, and 3.11 is needed", sys.version_info >= (3, 11))


def _packages() -> Iterator[Finding]:
    if not LOCK.is_file():
        yield Finding("packages", f"no {LOCK} here; run this in the project's folder", fine=False)
        return
    wanted = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+) *\\?$", LOCK.read_text(encoding="utf-8"), re.MULTILINE))  # those of any machine
    have = {name: _version(name) for name in wanted}
    others = [f"{name} {have[name]} instead of {wanted[name]}" for name in wanted if have[name] not in (None, wanted[name])]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        how = f"{', '.join(others[:3])}{more}; metrics may differ. `make .venv/installed` has those of {LOCK}"
        yield Finding("packages", how, fine=False, needed=False)
    else:
        yield Finding("packages", f"as {LOCK} has them")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commands() -> Iterator[Finding]:
    for name, why in (("git", "DVC and scheduled runs need it"), ("dvc", "install the project's packages")):
        found = shutil.which(name)
        yield Finding(name, found or f"not on PATH; {why}", found is not None)
    python = shutil.which("python")
    own = python is not None and Path(python).parent.resolve() == Path(sys.executable).parent.resolve()
    activate = f'export PATH="{Path(sys.executable).parent}:$PATH"'
    yield Finding("python", str(python) if own else f"{python or 'none'} on PATH, which DVC would run the stages with; {activate}", own)


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    little = "" if free >= LEAST_ROOM else f", little for artifacts; {LEAST_ROOM / 1e9:.0f} are better"
    yield Finding("disk", f"{free / 1e9:.0f} GB free{little}", fine=not little, needed=False)


def _devices() -> Iterator[Finding]:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    cores = f"stages compute on {os.cpu_count() or 1} cores, which is enough for the quickstart"
    yield Finding("GPU", ", ".join(names) or f"none that torch {torch.__version__} can use; {cores}", fine=bool(names), needed=False)


def _extras() -> Iterator[Finding]:
    for extra, (package, use) in EXTRAS.items():
        have = _version(package) is not None
        yield Finding(f"extra {extra}", f"for {use}" if have else f'for {use}: pip install -e ".[{extra}]"', fine=have, needed=False)


def _server() -> Iterator[Finding]:
    from changepair.flows.running.api import answers, login_is_refused
    from changepair.flows.running.login import login_for

    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        how = "none named, so each run starts one and ends it; `changepair ui` starts one that stays"
        yield Finding("Prefect server", how, fine=False, needed=False)
    elif not answers(url):
        yield Finding("Prefect server", f"{url} does not answer; start it (`changepair ui`), or unset PREFECT_API_URL", fine=False)
    elif login_is_refused(url, login_for(url)):
        yield Finding("Prefect server", f"{url} does not accept the login; set PREFECT_API_AUTH_STRING=<name>:<password>", fine=False)
    else:
        yield Finding("Prefect server", f"{url} answers")


def _remote() -> Iterator[Finding]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            name = repo.config["core"].get("remote")
            if name is None:
                how = "none, so artifacts are on this disk alone; `dvc remote add --default store <folder or URL>`"
                yield Finding("DVC remote", how, fine=False, needed=False)
                return
            place = repo.cloud.get_remote_odb(name)
            place.fs.exists(place.path)
    except DvcException as error:
        yield Finding("DVC", f"{' '.join(str(error).split())}", fine=False)
    except Exception as error:  # each store has errors of its own
        yield Finding("DVC remote", f"{name} does not answer ({' '.join(str(error).split())})", fine=False)
    else:
        yield Finding("DVC remote", f"{name}, {place.path}")


def _pipelines() -> Iterator[Finding]:
    from changepair.flows.settings.missing import missing_resources
    from changepair.flows.settings.pipelines import read_pipelines

    try:
        read = read_pipelines()
    except BadInput as error:
        yield Finding("pipelines.yaml", str(error), fine=False)
        return
    for name in read.enabled:
        lines = missing_resources(read.pipelines[name], read.datasets)
        for line in lines:
            yield Finding(name, line, fine=False)
        if not lines:
            yield Finding(name, "its datasets and weights are here")
