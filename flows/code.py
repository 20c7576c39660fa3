"""Run the stage `code`: write the code and the settings that each stage depends on.

Every other stage depends on its two files from here. A changed comment then reruns no stage, and a changed function reruns only the stages
that use it. This stage is not a Prefect flow, because a flow takes longer to start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from changepair.flows.plan import OF_A_DATASET, OF_A_DETECTOR, OF_A_PIPELINE, planned, roots, write_plan
from changepair.flows.running.exit_handling import exit_on_bad_input
from changepair.flows.running.places import CODE
from changepair.flows.running.unchanged import unchanged
from changepair.flows.settings.pipelines import Pipelines, read_pipelines
from changepair.flows.settings.reader import FILE
from changepair.flows.stage import DVC_YAML, PLAN, Input, Output, Stage, code_file, settings_file, settings_text
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import made_anew
from changepair.tasks.common.fingerprint import LOCK, Code, code_of, is_checkout, mismatches
from changepair.tasks.detectors.registry import BUILT_IN, DETECTORS, kind_of


@dataclass(frozen=True)
class CodeOfStages(Stage):
    """Check pipelines.yaml, and record the code and the settings of each stage."""

    read: Input[Sequence[str]]
    folder: Output[Path]
    unseen: bool
    """Whether some code is outside of DVC's view, because DVC ignores installed packages."""

    @property
    def code(self) -> None:
        return None

    @property
    def always(self) -> bool:
        return self.unseen


def declare(read: Pipelines, root: Path) -> Iterator[CodeOfStages]:
    checkout, locked = is_checkout(root), (root / LOCK).is_file()
    files = [*(("flows", "tasks") if checkout else ()), *((LOCK,) if locked else ()), FILE.as_posix(), PLAN.as_posix()]
    yield CodeOfStages(files, CODE, read.execution.packages == "installed" or not checkout or not locked or bool(others_used(read)))


def code() -> None:
    """Write the code of each stage.

    Raises BadInput if pipelines.yaml is invalid, if dvc.yaml is out of date, or if an installed package differs from requirements.lock.
    """
    with unchanged("code"):
        _code()


def _code() -> None:
    if write_plan():
        raise BadInput(f"{DVC_YAML}: was out of date with {FILE} and is regenerated now; run the same command again")
    code, stages = code_now(), planned()
    if read_pipelines().execution.packages == "locked":
        used = {Path(dep).name for stage in stages for dep in stage.deps if Path(dep).parent == CODE}
        refuse_mismatches(package for name in used for package in code[name].packages)
    with made_anew(CODE) as folder:
        for name, about in code.items():
            (folder / name).write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")
        (folder / settings_file("").parent.name).mkdir()
        for stage in stages:
            if stage.settings:
                (folder / settings_file(stage.name).relative_to(CODE)).write_text(settings_text(stage), encoding="utf-8")


def refuse_mismatches(packages: Iterable[str]) -> None:
    """Raise BadInput if the installed version of a package differs from requirements.lock."""
    for found in mismatches(packages):
        raise BadInput(
            f"{LOCK}: {found}; install it with `pip install {found.package}=={found.locked}`, or record the installed versions with "
            f"execution.packages: installed in {FILE}"
        )


def code_now() -> dict[str, Code]:
    """Return the current code of each kind of stage, by file name."""
    detectors = [*BUILT_IN, *others_used(read_pipelines())]
    kinds = (*OF_A_DATASET, *OF_A_PIPELINE)
    return {code_file(kind, detector).name: code_of(*roots(kind, detector)) for kind in kinds for detector in _of_kind(kind, detectors)}


def others_used(read: Pipelines) -> list[str]:
    """List the kinds of detectors from other packages that enabled pipelines use."""
    kinds = (kind_of(settings) for name in read.enabled for settings in read.pipelines[name].detectors.values())
    return [kind for kind in dict.fromkeys(kinds) if kind not in BUILT_IN]


def _of_kind(kind: str, detectors: Sequence[str]) -> list[str | None]:
    """List the detectors with a stage of this kind. A kind without detectors gives [None]."""
    if kind not in OF_A_DETECTOR:
        return [None]
    return [name for name in detectors if kind == "score" or DETECTORS[name].training is not None]


if __name__ == "__main__":
    exit_on_bad_input(code)
