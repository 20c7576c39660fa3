"""Record the provenance of a run's results: commit, hashes of artifacts, package versions."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from changepair.flows.settings.reader import parse_yaml
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.texts import read_text

LOCK = Path("dvc.lock")


def commit() -> str:
    """Return the checkout's commit, followed by `, changed` if a tracked file differs; `no commit of Git` outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        # Files that a run itself writes are not changes of its inputs.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!dvc.yaml", ":!data")
        return f"{head}, changed" if changed else head
    except (OSError, subprocess.CalledProcessError):
        return "no commit of Git"


def branch() -> str:
    """Return the name of the current branch; "" without one."""
    try:
        return _git("symbolic-ref", "--short", "--quiet", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return ""


def locked(folder: Path = Path()) -> dict[str, Any]:
    """Read the stages of a checkout's dvc.lock, by name; {} before the first run. Raises BadInput if the file is invalid."""
    file = folder / LOCK
    if not file.exists():
        return {}
    stages: dict[str, Any] = parse_lock(read_text(file), file).get("stages", {})
    return stages


def parse_lock(text: str, file: Path | str) -> dict[str, Any]:
    """Parse a dvc.lock. `file` is its path or a description, for messages. Raises BadInput if DVC's schema rejects it."""
    return _checked(text, file, "COMPILED_LOCKFILE_SCHEMA")


def pointed(pointer: Path) -> list[dict[str, Any]]:
    """Read the outs of a .dvc file. Raises BadInput if it cannot be read, or DVC's schema rejects it."""
    return _checked(read_text(pointer), pointer, "COMPILED_SINGLE_STAGE_SCHEMA").get("outs") or []


def _checked(text: str, file: Path | str, name: str) -> dict[str, Any]:
    from dvc import schema  # imports most of DVC
    from voluptuous import Invalid

    try:
        content: dict[str, Any] = getattr(schema, name)(parse_yaml(text, file))
        return content
    except Invalid as error:
        raise BadInput(f"{file}: invalid for DVC ({in_short(error)}); restore the file from Git, or resolve its merge conflict") from error


def artifacts(stages: Collection[str] | None = None) -> dict[str, str]:
    """Return the md5 of the outs in dvc.lock, by path. `stages` limits them to the stages of these names."""
    outs = (out for name, stage in locked().items() if stages is None or name in stages for out in stage.get("outs", []))
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def versions() -> dict[str, str]:
    """Return the versions of the packages that run stages, by name."""
    return {name: version(name) for name in ("changepair", "prefect", "dvc", "diffusers")}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
