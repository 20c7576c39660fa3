"""Keep DVC from recording what a stage did not compute from.

DVC looks at a stage's files when its command has ended, and takes what it finds for what was read. So a file that is edited while a stage
runs would be recorded with results that know nothing of it, and the stage would not run again. Settings are read once, and compared with
those that the stage `code` wrote down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from changepair.flows.running.places import CODE
from changepair.flows.running.records import read_record
from changepair.flows.settings.reader import FILE, hold, load_yaml
from changepair.flows.stage import CODE_STAGE, DVC_YAML, settings_file, stage_name
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.fingerprint import Code, versions_of
from changepair.tasks.common.places import place_of, states
from changepair.tasks.common.texts import read_json

CACHE = "__pycache__"  # within folders of code: Python writes there as it runs


@contextmanager
def unchanged(kind: str, *of: str) -> Iterator[None]:
    """Have this process read pipelines.yaml once, whatever becomes of it. Raise BadInput if by the end a file that dvc.yaml names for the
    stage is another than it was; DVC then records nothing, and runs the stage again. Raise it at the start if the stage's settings or the
    installed packages are not those that the stage `code` recorded.

    kind, of: the stage's, as its command has them. What other stages wrote is not looked at: nobody else works in this checkout.
    """
    stage, ours = _entry(kind, of)
    _refuse_other_packages(stage)
    hold(FILE)
    _refuse_other_settings(kind, of)
    files = _files(stage, ours)
    yield
    changed = next(differing(files, _files(stage, ours)), None)
    if changed is not None:
        raise BadInput(f"{changed} was changed while {' '.join((kind, *of))} ran, so its results are not kept; run the same again")


def _refuse_other_settings(kind: str, of: tuple[str, ...]) -> None:
    """Raise BadInput if the settings of a stage are not those that the stage `code` wrote down, which DVC records."""
    recorded = settings_file(stage_name(kind, of))
    if not recorded.is_file():
        return
    from changepair.flows.plan import stage_of

    now = stage_of(kind, *of).settings
    key = next(differing(read_json(recorded), now), None)
    if key is not None:
        raise BadInput(f"{FILE}: {key} was changed after the run began; run the same again")


def _refuse_other_packages(stage: Mapping[str, Any]) -> None:
    """Raise BadInput if the installed packages are not those that the stage `code` recorded: DVC does not look at the environment."""
    for file in (Path(dep) for dep in stage.get("deps", ()) if Path(dep).parent == CODE):
        if not file.is_file():
            continue
        recorded = read_record(Code, file).packages
        for package, now in versions_of(recorded).items():
            if now != recorded[package]:
                raise BadInput(
                    f"{file}: {package} {recorded[package]} was recorded, but {now} is installed; install it with `pip install "
                    f"{package}=={recorded[package].split()[0]}`, or run `dvc repro --force --single-item {CODE_STAGE}`, then this again"
                )


def _entry(kind: str, of: tuple[str, ...]) -> tuple[Mapping[str, Any], set[str]]:
    """Reads the stage's entry in dvc.yaml, nothing if there is none; and what all stages write."""
    try:
        stages: Mapping[str, Any] = load_yaml(DVC_YAML)["stages"]
    except (BadInput, KeyError, TypeError):
        return {}, set()
    command = " ".join(("python -m", f"changepair.flows.{kind}", *of))
    outs = {str(next(iter(out))) if isinstance(out, dict) else str(out) for stage in stages.values() for out in stage.get("outs", ())}
    return next((stage for stage in stages.values() if stage.get("cmd") == command), {}), outs


def _files(stage: Mapping[str, Any], ours: set[str]) -> dict[str, str]:
    """Gives size and time of change of the user's files that the stage reads."""
    named = [str(dep) for dep in stage.get("deps", ()) if not any(str(dep) == out or str(dep).startswith(f"{out}/") for out in ours)]
    return {file: state for dep in named for file, state in states(place_of(dep)).items() if CACHE not in file}


def differing(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yields what differs, by its whole key."""
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differing(old, new, f"{at}{key}.")
        elif old != new:
            yield f"{at}{key}"
