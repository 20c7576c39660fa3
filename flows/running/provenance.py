"""Record where a run's results come from: the commit, the artifacts' hashes, the versions."""

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
    """Name the checkout's commit, with `, changed` if a tracked file differs from it; `no commit of Git` if there is none."""
    try:
        head = _git("rev-parse", "HEAD")
        # What a run writes itself is no change of what it was made from.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!dvc.yaml", ":!data")
        return f"{head}, changed" if changed else head
    except (OSError, subprocess.CalledProcessError):
        return "no commit of Git"


def branch() -> str:
    """Name the branch that is checked out; empty if there is none."""
    try:
        return _git("symbolic-ref", "--short", "--quiet", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return ""


def locked(folder: Path = Path()) -> dict[str, Any]:
    """Read the stages of a checkout's dvc.lock, by name; none before the first run. Raises BadInput if the file is invalid."""
    file = folder / LOCK
    if not file.exists():
        return {}
    stages: dict[str, Any] = parse_lock(read_text(file), file).get("stages", {})
    return stages


def parse_lock(text: str, file: Path | str) -> dict[str, Any]:
    """Parse a dvc.lock. file: its path or a description, for messages. Raises BadInput if it is not valid for DVC."""
    return _as_dvc_has_it(text, file, "COMPILED_LOCKFILE_SCHEMA")


def pointed(pointer: Path) -> list[dict[str, Any]]:
    """Read the outs of a pointer, which ends in .dvc. Raises BadInput if it cannot be read, or is not valid for DVC."""
    return _as_dvc_has_it(read_text(pointer), pointer, "COMPILED_SINGLE_STAGE_SCHEMA").get("outs") or []


def _as_dvc_has_it(text: str, file: Path | str, name: str) -> dict[str, Any]:
    from dvc import schema  # with most of DVC
    from voluptuous import Invalid

    try:
        content: dict[str, Any] = getattr(schema, name)(parse_yaml(text, file))
        return content
    except Invalid as error:
        what = f"not as DVC writes it ({in_short(error)}); take it from Git again, or choose one side of a merge"
        raise BadInput(f"{file}: {what}") from error


def artifacts(stages: Collection[str] | None = None) -> dict[str, str]:
    """Return the md5 of the outs in dvc.lock, by path. stages: their names; None for all."""
    left = (out for name, stage in locked().items() if stages is None or name in stages for out in stage.get("outs", []))
    return {out["path"]: out["md5"] for out in left if "md5" in out}


def versions() -> dict[str, str]:
    """Return the versions of the packages that run the stages."""
    return {name: version(name) for name in ("changepair", "prefect", "dvc", "diffusers")}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
