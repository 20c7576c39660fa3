"""What is edited while a stage runs is never recorded with results that know nothing of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from textwrap import indent

import pytest
import yaml
from conftest import TINY, make_project, run

from changepair.flows.running.unchanged import unchanged
from changepair.flows.settings import reader
from changepair.flows.settings.reader import read_yaml
from changepair.tasks.common.errors import BadInput


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_project(tmp_path / "project", TINY)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(reader, "_held", {})
    return folder


def resolution(folder: Path, pixels: int) -> None:
    content = yaml.safe_load((folder / "pipelines.yaml").read_text())
    content["pipelines"]["small"]["evaluation"] = {"resolution": pixels}
    (folder / "pipelines.yaml").write_text(yaml.safe_dump(content))


def test_a_stage_reads_its_settings_once(project: Path) -> None:
    with unchanged("score", "small", "patch-residual"):
        resolution(project, 512)  # no setting of the scores
        assert read_yaml()["pipelines"]["small"]["evaluation"]["resolution"] == 64


def test_a_setting_that_is_edited_before_its_stage_starts_refuses_it(project: Path) -> None:
    """DVC records the settings that the stage `code` wrote; a later edit is for the next run."""
    assert run(project, "python", "-m", "changepair.flows.code").returncode == 0
    with unchanged("metrics", "small"):
        resolution(project, 512)
    reader._held.clear()
    with pytest.raises(BadInput, match=r"^pipelines.yaml: \S+resolution was changed after the run began"), unchanged("metrics", "small"):
        pass


@pytest.mark.parametrize("edit", ["added", "written", "deleted"])
def test_a_dataset_that_changes_while_it_is_read_ends_the_stage(project: Path, edit: str) -> None:
    picture, new = project / "parts/bricks/train/good/0.png", project / "parts/bricks/test/good/new.png"
    with pytest.raises(BadInput, match=r"parts/bricks/.*\.png: changed while ingest parts ran"), unchanged("ingest", "parts"):
        if edit == "added":
            shutil.copyfile(picture, new)
        elif edit == "written":
            picture.write_bytes(picture.read_bytes() + b"\0")
        else:
            picture.unlink()


def test_what_other_stages_wrote_and_what_is_not_changed_end_no_stage(project: Path) -> None:
    with unchanged("report", "small"):
        (project / "data/scores/small").mkdir(parents=True)
        (project / "data/scores/small/new").write_text("x")


EDITING = """
import os
import yaml

def measure(*arguments):
    if "EDITED" in os.environ:
        content = yaml.safe_load(open("pipelines.yaml"))
        content["pipelines"]["small"]["evaluation"]["resolution"] = 32
        yaml.safe_dump(content, open("pipelines.yaml", "w"))
    from changepair.tasks.scoring.measure import measure
    return measure(*arguments)
"""


@pytest.mark.slow
def test_metrics_are_never_recorded_under_settings_that_were_edited_while_they_were_made(project: Path, api: str) -> None:
    stage = project / "flows/metrics.py"
    before = stage.read_text()
    stage.write_text(before.replace("    from changepair.tasks.scoring.measure import measure\n", indent(EDITING, "    ")))
    assert stage.read_text() != before
    made = run(project, "dvc", "repro", PREFECT_API_URL=api)
    assert made.returncode == 0, made.stderr
    metrics = (project / "data/evaluation/small/metrics.csv").read_bytes()
    edited = run(project, "dvc", "repro", "--force", "--single-item", "metrics_small", EDITED="yes", PREFECT_API_URL=api)
    assert edited.returncode == 0, edited.stderr  # by the settings that it began with, and that are recorded
    assert (project / "data/evaluation/small/metrics.csv").read_bytes() == metrics
    early = run(project, "dvc", "repro", "--force", "--single-item", "metrics_small", PREFECT_API_URL=api)
    assert early.returncode != 0
    assert "pipelines.yaml: pipelines.small.evaluation.resolution was changed after the run began" in early.stderr
    again = run(project, "dvc", "repro", PREFECT_API_URL=api)
    assert again.returncode == 0 and "Running stage 'metrics_small'" in again.stdout, again.stderr
    recorded = json.loads((project / "data/code/settings/metrics_small.json").read_text())
    assert recorded["pipelines.small.evaluation.resolution"] == 32
    assert (project / "data/evaluation/small/metrics.csv").read_bytes() != metrics
