"""Stage code: the project's sources in, which code each stage runs out. Every other stage depends on its own line of that.

It runs under no flow: it is the question what is out of date, and takes less time than a flow takes to start.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from flows.plan import DVC_YAML, OF_A_DETECTOR, ROOTS, code_file, roots, write_plan
from flows.running.ending import exit_on_bad_input
from flows.running.places import CODE
from flows.running.unchanged import unchanged
from tasks.common.errors import BadInput
from tasks.common.files import made_anew
from tasks.common.fingerprint import Code, code_of
from tasks.detectors.registry import DETECTORS


def code() -> None:
    """Writes which code each stage runs. Raises BadInput if pipelines.yaml is wrong, or has changed what stages there are since dvc.yaml
    was written."""
    with unchanged("code"):
        _code()


def _code() -> None:
    if write_plan():
        raise BadInput(f"{DVC_YAML}: pipelines.yaml asks for other stages than it had; it is written anew, so run the same again")
    with made_anew(CODE) as folder:
        for name, about in code_now().items():
            (folder / name).write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")


def code_now() -> dict[str, Code]:
    """Gives which code each kind of stage runs as the sources are, by the name of its file."""
    return {
        code_file(kind, detector).name: code_of(*roots(kind, detector), root=Path.cwd()) for kind in ROOTS for detector in _detectors(kind)
    }


def _detectors(kind: str) -> list[str | None]:
    """Lists the detectors that there is such a stage for, each by itself; None alone for a kind that is of no detector."""
    if kind not in OF_A_DETECTOR:
        return [None]
    return [name for name, of in DETECTORS.items() if kind == "score" or of.training is not None]


if __name__ == "__main__":
    exit_on_bad_input(code)
