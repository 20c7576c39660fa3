"""Nothing that changepair starts reports to anybody: system calls as the kernel sees them, and files in a new home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from conftest import ROOT, save

BIN = Path(sys.executable).parent
TELEMETRY = ("DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
PREFECT = "PREFECT_SERVER_ANALYTICS_ENABLED"
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def run_in(home: Path, *command: str) -> tuple[list[str], list[str]]:
    """Run a command with an empty home and none of the switches; return the addresses that it connects to and the files that it writes."""
    home.mkdir()
    switches = (*TELEMETRY, PREFECT, "CI", "GITHUB_ACTIONS")
    kept = {name: value for name, value in os.environ.items() if name not in switches}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / ".cache"), "HF_HUB_OFFLINE": "0"}
    trace = home.with_suffix(".trace")
    tracing = ["strace", "-f", "--seccomp-bpf", "-q", "-e", "trace=connect,sendto", "-o", str(trace)] if shutil.which("strace") else []
    result = subprocess.run([*tracing, *command], cwd=home, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    calls = trace.read_text().splitlines() if tracing else []
    foreign = [line for line in calls if re.search(r"AF_INET6?", line) and not re.search(r'"127\.0\.0\.1"|"::1"', line)]
    return foreign, [file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()]


def ids(files: list[str]) -> list[str]:
    return [file for file in files if re.search(r"device.?id|telemetry|analytics|onnxruntime\.db", file, re.IGNORECASE)]


@traced
@pytest.mark.slow
def test_an_export_and_the_example_that_scores_with_it_report_nothing(tmp_path: Path) -> None:
    normal = save(skimage.data.brick()[:128, :128], tmp_path / "normal.png")
    command = [str(BIN / "changepair"), "export", "--model", "patch-residual", "--prompt", str(normal), "--out", str(tmp_path / "out")]
    example = [sys.executable, str(ROOT / "docs/examples/score_with_onnx.py"), str(tmp_path / "out" / "model.onnx"), str(normal)]
    for name, one in (("export", command), ("example", example)):
        foreign, files = run_in(tmp_path / name, *one)
        assert not foreign and not ids(files), (foreign, files)


@traced
def test_prefect_reports_no_import(tmp_path: Path) -> None:
    program = "import time, changepair.flows.ingest; time.sleep(2)"
    foreign, files = run_in(tmp_path / "home", sys.executable, "-c", program)
    assert not foreign and not ids(files), (foreign, files)


@traced
def test_without_the_switch_onnxruntime_writes_an_id(tmp_path: Path) -> None:
    """So that the tests above would see one."""
    _foreign, files = run_in(tmp_path / "home", sys.executable, "-c", "import time, onnxruntime; time.sleep(1)")
    assert ids(files)


def test_the_switches_are_those_of_the_installed_libraries() -> None:
    program = f"""
import os
for name in {(*TELEMETRY, PREFECT)!r}: os.environ.pop(name, None)
import changepair.flows
from huggingface_hub import constants
from prefect.analytics import is_telemetry_enabled
from gradio.analytics import analytics_enabled
from dvc.analytics import is_enabled
print(constants.HF_HUB_DISABLE_TELEMETRY, is_telemetry_enabled(), analytics_enabled(), is_enabled())
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False", "False", "False"]
