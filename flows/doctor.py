"""Check this machine for everything the project needs: the command `changepair doctor`."""

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
"""Free disk space in bytes: an environment takes 7.6 GB, the quickstart with DVC's cache 1 GB (`du -sh .venv data .dvc/cache`)."""
EXTRAS = {
    "samples": ("elpv-dataset", "the pictures of the quickstart"),
    "serve": ("gradio", "`changepair demo`, `review` and `api`"),
    "export": ("onnx", "`changepair export`"),
    "s3": ("dvc-s3", "datasets and DVC remotes in S3"),
}
"""A package of each extra, and what needs the extra."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    how: str
    fine: bool = True
    needed: bool = True
    """Whether runs fail without it; otherwise it is optional."""

    def __str__(self) -> str:
        sign = "ok" if self.fine else "MISSING" if self.needed else "-"
        return hide(f"{sign:8}{self.what}: {self.how}")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="Check the environment and report what is missing",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _arguments: examine())


def examine() -> None:
    """Print every finding. Raises BadInput if something necessary is missing."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    findings = []
    for look in (_python, _packages, _commands, _disk, _devices, _extras, _server, _remote, _pipelines):
        for finding in look():
            console.print(str(finding))
            findings.append(finding)
    missing = [finding for finding in findings if finding.needed and not finding.fine]
    if missing:
        raise BadInput(f"{len(missing)} missing: {', '.join(finding.what for finding in missing)}; see the lines above for how to fix each")


def _python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", here if sys.version_info >= (3, 11) else f"{here}; install 3.11 or later", sys.version_info >= (3, 11))


def _packages() -> Iterator[Finding]:
    if not LOCK.is_file():
        yield Finding("packages", f"versions are not checked, because this folder has no {LOCK}", fine=False, needed=False)
        return
    wanted = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+) *\\?$", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    have = {name: _version(name) for name in wanted}
    others = [f"{name} {have[name]} instead of {wanted[name]}" for name in wanted if have[name] not in (None, wanted[name])]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        how = f"{', '.join(others[:3])}{more}; metrics may differ. `make .venv/installed` installs the versions of {LOCK}"
        yield Finding("packages", how, fine=False, needed=False)
    else:
        yield Finding("packages", f"same versions as in {LOCK}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commands() -> Iterator[Finding]:
    for name, why in (("git", "install it, because DVC and scheduled runs need it"), ("dvc", "install the packages of the project")):
        found = shutil.which(name)
        yield Finding(name, found or f"not on PATH; {why}", found is not None)
    python = shutil.which("python")
    own = python is not None and Path(python).parent.resolve() == Path(sys.executable).parent.resolve()
    activate = f'export PATH="{Path(sys.executable).parent}:$PATH"'
    yield Finding(
        "python",
        str(python)
        if own
        else f"{python or 'none'} on PATH is not this environment, and DVC would run the stages with it; run `{activate}`",
        own,
    )


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    little = "" if free >= LEAST_ROOM else f", which is little for artifacts; {LEAST_ROOM / 1e9:.0f} GB are recommended"
    yield Finding("disk", f"{free / 1e9:.0f} GB free{little}", fine=not little, needed=False)


def _devices() -> Iterator[Finding]:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    cores = f"stages run on {os.cpu_count() or 1} cores, which is enough for the quickstart"
    yield Finding("GPU", ", ".join(names) or f"none available to torch {torch.__version__}; {cores}", fine=bool(names), needed=False)


def _extras() -> Iterator[Finding]:
    for extra, (package, use) in EXTRAS.items():
        have = _version(package) is not None
        yield Finding(
            f"extra {extra}",
            f"installed, for {use}" if have else f'not installed, for {use}; run `pip install -e ".[{extra}]"`',
            fine=have,
            needed=False,
        )


def _server() -> Iterator[Finding]:
    from changepair.flows.running.api import answers, login_is_refused
    from changepair.flows.running.login import login_for

    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        how = "PREFECT_API_URL is not set, so each run starts a temporary server; start a permanent one with `changepair ui`"
        yield Finding("Prefect server", how, fine=False, needed=False)
    elif not answers(url):
        yield Finding("Prefect server", f"{url} does not answer; start it with `changepair ui`, or unset PREFECT_API_URL", fine=False)
    elif login_is_refused(url, login_for(url)):
        yield Finding("Prefect server", f"{url} rejects the login; set PREFECT_API_AUTH_STRING=<name>:<password>", fine=False)
    else:
        yield Finding("Prefect server", f"{url} answers")


def _remote() -> Iterator[Finding]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            name = repo.config["core"].get("remote")
            if name is None:
                how = "none, so artifacts exist only on this disk; add one with `dvc remote add --default store <folder or URL>`"
                yield Finding("DVC remote", how, fine=False, needed=False)
                return
            place = repo.cloud.get_remote_odb(name)
            place.fs.exists(place.path)
    except DvcException as error:
        yield Finding("DVC", f"{' '.join(str(error).split())}", fine=False)
    except Exception as error:  # each store raises other errors
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
            yield Finding(name, "all datasets and weights are available")
