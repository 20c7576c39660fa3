"""Files that nobody can read, in a dataset's folder: left out with the reason, whoever runs the stage; and nobody hangs or ends at one."""

from __future__ import annotations

import csv
import os
import socket
from pathlib import Path

import pytest
from conftest import TINY, make_places, make_project, run

from changepair.flows.plan import planned
from changepair.tasks.common.places import unreadable
from changepair.tasks.ingestion.ingest import ingest_folder


def fill(folder: Path) -> dict[str, str]:
    """Puts one of each kind into a folder of pictures; gives what is to be said of it."""
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "up").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(folder, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/socket.png")
        os.close(here)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes((folder / "0.png").read_bytes())
    return {
        "pipe.png": "a pipe",
        "gone.png": "a broken or circular link",
        "circle.png": "a broken or circular link",
        "socket.png": "a socket",
        "caf\\xe9.png": "not readable text",
        "up": "a folder among pictures",
    }


def rejected(manifests: Path) -> dict[str, str]:
    with (manifests / "parts.rejected.csv").open(newline="") as stream:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(stream)}


def test_each_is_left_out_with_its_reason(layout: Path) -> None:
    expected = fill(layout / "bricks/train/good")
    ingest_folder("parts", layout, places=make_places(layout.parent / "manifests"))
    reasons = rejected(layout.parent / "manifests")
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name], (name, reasons[name])


def test_what_nobody_can_read_is_found(layout: Path) -> None:
    assert not list(unreadable(layout))
    names = fill(layout / "bricks/train/good")
    assert {os.fsencode(file.name).decode("utf-8", "backslashreplace") for file in unreadable(layout)} == names.keys() - {"up"}


@pytest.mark.slow
def test_dvc_neither_hangs_nor_ends_at_one_and_sees_every_change(tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "project", TINY)
    monkeypatch.chdir(project)
    fill(project / "parts/bricks/train/good")
    assert "always_changed" in planned()[1].entry
    assert "dvc.yaml is updated" in run(project, "changepair", "plan").stdout
    for command in (("dvc", "repro"), ("changepair", "retrain", "small")):
        result = run(project, *command, PREFECT_API_URL=api)
        assert result.returncode == 0, result.stdout + result.stderr
    before = (project / "data/manifests/parts.parquet").read_bytes()
    (project / "parts/bricks/train/good/0.png").unlink()
    result = run(project, "dvc", "repro", PREFECT_API_URL=api)
    assert result.returncode == 0 and (project / "data/manifests/parts.parquet").read_bytes() != before
    for name in os.listdir(os.fsencode(project / "parts/bricks/train/good")):
        if name not in (b"1.png", b"2.png", b"3.png"):
            os.unlink(os.path.join(os.fsencode(project / "parts/bricks/train/good"), name))
    assert "always_changed" not in planned()[1].entry
