"""Report which stages would run or may run, and why: `changepair retrain --dry-run`. It runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from changepair.flows.code import code_now
from changepair.flows.plan import dvc_yaml, planned
from changepair.flows.running.dvc import stages_before
from changepair.flows.running.places import CODE
from changepair.flows.running.records import read_record
from changepair.flows.running.unchanged import differing
from changepair.flows.settings.pipelines import enabled_pipeline
from changepair.flows.settings.reader import FILE
from changepair.flows.stage import CODE_STAGE, DVC_YAML, SPLIT, Stage, settings_file
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.fingerprint import Code
from changepair.tasks.common.texts import read_json

SHOWN = 3
"""Maximum number of reasons, stages or changed modules listed for a stage."""
ALWAYS = "DVC cannot detect changes of its inputs, so it always runs"
WORDS = {"deleted": "is missing", "not in cache": "is missing", "modified": "changed", "new": "is new"}
"""Our wording for the states of a file in DVC."""


@dataclass(frozen=True)
class Forecast:
    """Whether a run would or may execute a stage. By default, the stage is up to date."""

    reasons: tuple[str, ...] = ()
    """Reasons why it would run; () if it would not run, or only may run."""
    after: tuple[str, ...] = ()
    """Earlier stages that would or may run. This stage runs if the output of one of them changes."""

    def __str__(self) -> str:
        if self.reasons:
            left = len(self.reasons) - SHOWN
            more = f", and {left} more reason{'' if left == 1 else 's'}" if left > 0 else ""
            return f"{'; '.join(self.reasons[:SHOWN])}{more}"
        return f"if the output of {' or '.join(self.after[:SHOWN])} changes"


def forecast(pipeline: str) -> dict[str, Forecast]:
    """Forecast for each stage, in order, whether a run executes it. Raises BadInput if dvc.yaml is out of date."""
    enabled_pipeline(pipeline)
    stages = planned()
    if not DVC_YAML.is_file() or DVC_YAML.read_text(encoding="utf-8") != dvc_yaml(stages):
        raise BadInput(f"{DVC_YAML}: is out of date with {FILE}; run `changepair plan`, then run this command again")
    names = stages_before(f"report{SPLIT}{pipeline}")
    with Repo() as repo:
        status: Mapping[str, Any] = repo.status(targets=names)
    changed = _changed_code()
    by_name = {stage.name: stage for stage in stages}
    made_by = {out: stage.name for stage in stages for out in (*stage.outs, *stage.in_git, *stage.metrics)}
    found: dict[str, Forecast] = {}
    for name in names:
        deps = by_name[name].deps
        reasons = [changed[dep] for dep in deps if dep in changed]
        reasons += [f"{FILE} changed: {key}" for key in _changed_settings(by_name[name])]
        reasons += _recorded_changes(status.get(name, ())) if not reasons else []
        reasons += _reasons(status.get(name, ()), made_by)
        before = {made_by[dep] for dep in deps if dep in made_by}
        after = [other for other in names if other in before and other != CODE_STAGE and other in found and found[other] != Forecast()]
        found[name] = Forecast(tuple(dict.fromkeys(reasons)), tuple(after))
    return found


def tell(pipeline: str) -> list[str]:
    """Return the forecast as lines of text."""
    found = forecast(pipeline)
    would = [name for name, one in found.items() if one.reasons]
    may = [name for name, one in found.items() if one.after and not one.reasons]
    lines = [f"{'would run' if one.reasons else 'may run'} {name}: {one}" for name, one in found.items() if one != Forecast()]
    perhaps = f", {len(may)} may run" if may else ""
    current = len(found) - len(would) - len(may)
    return [*lines, f"{len(would)} of {len(found)} stages would run{perhaps}, {current} are up to date; then the promotion gate decides"]


def _reasons(said: Any, made_by: Mapping[str, str]) -> Iterator[str]:
    """Yield the reasons that DVC reports for a stage, except its code and outputs of other stages. Those are checked separately."""
    for one in said:
        if one == "always changed":
            yield ALWAYS
            continue
        if one == "changed command":
            yield "its command changed"
            continue
        for path, state in one.get("changed deps", {}).items():
            if path not in made_by and not Path(path).is_relative_to(CODE):
                yield f"{path} {WORDS.get(state, state)}"
        for path, state in one.get("changed outs", {}).items():
            yield f"its output {path} {WORDS.get(state, state)}"


def _recorded_changes(said: Any) -> Iterator[str]:
    """Yield changes of code and settings that the stage `code` recorded after the last run of this stage."""
    for path, state in (item for one in said if isinstance(one, Mapping) for item in one.get("changed deps", {}).items()):
        if Path(path).is_relative_to(CODE) and state == "modified":
            yield f"its {'settings' if Path(path).parent == settings_file('').parent else 'code'} changed since its last run ({path})"


def _changed_settings(stage: Stage) -> Iterator[str]:
    """Yield the keys of settings that changed since the last run of the stage `code`. Before the first run there are none."""
    file = settings_file(stage.name)
    return differing(read_json(file), stage.settings) if file.is_file() else iter(())


def _changed_code() -> dict[str, str]:
    """Return the changes of code since the last run, by the file that records the code of a kind of stage."""
    changed = {}
    for name, now in code_now().items():
        file = CODE / name
        try:
            before = read_record(Code, file) if file.exists() else None
        except BadInput as error:
            changed[file.as_posix()] = f"record of its code: {str(error).partition(': ')[2]}"
            continue
        if before == now:
            continue
        if before is None:
            changed[file.as_posix()] = "no earlier run in this project"
            continue
        ours, theirs = ({**one.modules, **one.files, **one.packages} for one in (now, before))
        different = sorted(part for part in ours.keys() | theirs.keys() if ours.get(part) != theirs.get(part))
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        changed[file.as_posix()] = f"code changed: {', '.join(different[:SHOWN])}{more}"
    return changed
