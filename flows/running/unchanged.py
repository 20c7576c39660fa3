"""Prevent DVC from recording inputs that a stage did not use.

DVC hashes a stage's inputs after its command has ended. If you edit a file during the stage, DVC would record the new file with results
of the old one, and would not rerun the stage. Settings are read once, and compared with those that the stage `code` recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from changepair.flows import plan
from changepair.flows.running.places import CODE
from changepair.flows.running.records import read_record
from changepair.flows.settings.reader import FILE, hold, load_yaml
from changepair.flows.stage import CODE_STAGE, DVC_YAML, Stage, settings_file, stage_name
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.fingerprint import Code, versions_of
from changepair.tasks.common.places import place_of, states
from changepair.tasks.common.texts import read_json

CACHE = "__pycache__"  # Python writes these folders while it runs


@contextmanager
def unchanged(kind: str, *of: str) -> Iterator[None]:
    """Read pipelines.yaml once, and raise BadInput if a dependency of the stage changes during the block.

    DVC then records nothing, and reruns the stage. The start of the block raises BadInput if the stage's settings or the installed
    packages differ from those that the stage `code` recorded. Outs of other stages are not checked, because a lock protects this checkout.

    Args:
        kind: Kind of the stage, as in its command.
        of: Dataset, or pipeline and detector, of the stage.
    """
    stage, ours = _entry(kind, of)
    _refuse_other_packages(stage)
    hold(FILE)
    recorded = settings_file(stage_name(kind, of))
    key = next(differing(read_json(recorded), plan.stage_of(kind, *of).settings), None) if recorded.is_file() else None
    if key is not None:
        raise BadInput(f"{FILE}: {key} was changed after the run began; run the command again")
    files = _files(stage, ours)
    yield
    changed = next(differing(files, _files(stage, ours)), None)
    if changed is not None:
        raise BadInput(f"{changed}: changed while {' '.join((kind, *of))} ran, so its results were discarded; run the command again")


def refuse_other_settings(stages: Iterable[Stage]) -> None:
    """Raise BadInput if the settings of a stage differ from those that its outputs were made with, as the stage `code` recorded them."""
    for stage in stages:
        file = settings_file(stage.name)
        key = next(differing(read_json(file) if file.is_file() else {}, stage.settings), None)
        if key is not None:
            raise BadInput(f"{FILE}: {key} was changed after {stage.name} ran; run `changepair retrain` first")


def _refuse_other_packages(stage: Mapping[str, Any]) -> None:
    """Raise BadInput if installed packages differ from those that the stage `code` recorded. DVC does not check the environment."""
    for file in (Path(dep) for dep in stage.get("deps", ()) if Path(dep).parent == CODE):
        if not file.is_file():
            continue
        recorded = read_record(Code, file).packages
        for package, now in versions_of(recorded).items():
            if now != recorded[package]:
                raise BadInput(
                    f"{file}: {package} {recorded[package]} was recorded, but {now} is installed; run `pip install "
                    f"{package}=={recorded[package].split()[0]}`, or `dvc repro --force --single-item {CODE_STAGE}`, then retry"
                )


def _entry(kind: str, of: tuple[str, ...]) -> tuple[Mapping[str, Any], set[str]]:
    """Read the stage's entry in dvc.yaml, {} if it is missing, and the outs of all stages."""
    try:
        stages: Mapping[str, Any] = load_yaml(DVC_YAML)["stages"]
    except (BadInput, KeyError, TypeError):
        return {}, set()
    command = " ".join(("python -m", f"changepair.flows.{kind}", *of))
    outs = {str(next(iter(out))) if isinstance(out, dict) else str(out) for stage in stages.values() for out in stage.get("outs", ())}
    return next((stage for stage in stages.values() if stage.get("cmd") == command), {}), outs


def _files(stage: Mapping[str, Any], ours: set[str]) -> dict[str, str]:
    """Return the state of each file of the user that the stage reads, by path."""
    named = [str(dep) for dep in stage.get("deps", ()) if not any(str(dep) == out or str(dep).startswith(f"{out}/") for out in ours)]
    return {file: state for dep in named for file, state in states(place_of(dep)).items() if CACHE not in file}


def differing(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield the dotted keys of the values that differ."""
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differing(old, new, f"{at}{key}.")
        elif old != new:
            yield f"{at}{key}"
