"""dvc.yaml names all the code a stage runs: what it left out would give stale results."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def imported(file: Path) -> set[Path]:
    """The project's own files that `file` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            module = ROOT / Path(*name.split("."))
            found |= {path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file() and ROOT in path.parents}
    return {path for path in found if path.relative_to(ROOT).parts[0] in ("flows", "tasks")}


def reached(file: Path) -> set[str]:
    """Every file of the project that runs when `file` does, as paths from the root; empty __init__ files aside."""
    seen: set[Path] = set()
    waiting = {file}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        waiting |= imported(current) - seen
    return {path.relative_to(ROOT).as_posix() for path in seen if path.stat().st_size}


def module_of(stage: str) -> str:
    return f"flows/{STAGES[stage]['do']['cmd'].split()[2].removeprefix('flows.')}.py"


def code_of(stage: str) -> list[str]:
    return [dep for dep in STAGES[stage]["do"]["deps"] if dep.startswith(("flows/", "tasks/"))]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_the_code_it_imports_and_on_no_other(stage: str) -> None:
    files, deps = reached(ROOT / module_of(stage)), code_of(stage)
    left_out = {file for file in files if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)}
    assert not left_out, f"imported by {stage}, not in its deps"
    idle = {dep for dep in deps if not any(file == dep or file.startswith(f"{dep}/") for file in files)}
    assert not idle, f"in the deps of {stage}, not imported"


def test_only_task_py_imports_prefect_and_only_flows_know_dvc() -> None:
    for file in (ROOT / "tasks").rglob("*.py"):
        modules = {
            node.module.split(".")[0] for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.module
        }
        modules |= {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "dvc" not in modules and "flows" not in modules, file
        assert "prefect" not in modules or file.name == "task.py", file
        if file.name == "__init__.py":
            assert file.stat().st_size == 0, file


def test_the_work_imports_where_prefect_dvc_and_diffusers_are_not_installed() -> None:
    """As on a bare GPU node: every module of tasks/ but the task.py files, and the one that is a class of diffusers."""
    import subprocess
    import sys

    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sorted((ROOT / "tasks").rglob("*.py"))
        if file.name not in ("task.py", "__init__.py", "crop_pipeline.py")
    ]
    blocked = "import sys\nfor name in ('prefect', 'dvc', 'diffusers', 'pydantic', 'flows'): sys.modules[name] = None\n"
    subprocess.run([sys.executable, "-c", blocked + "\n".join(f"import {module}" for module in modules)], cwd=ROOT, check=True)
