"""The stage of docs/pages/how-to/add-a-stage.md is one file and one line. It runs as the page says, and DVC reruns it only if it has to."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import ROOT, SMALL, make_project, run

PAGE = (ROOT / "docs/pages/how-to/add-a-stage.md").read_text()
PARTS = {
    **SMALL,
    "pipelines": {
        "small": {"targets": ["parts"], "sampling": {"shots": [1], "seeds": [0]}, "detectors": {"patch-residual": {"resolution": 64}}}
    },
}


@pytest.mark.slow
def test_the_stage_of_the_page_is_one_file_and_one_line(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", PARTS)
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (project / "flows" / "count.py").write_text(dedent(code))
    plan = project / "flows" / "plan.py"
    before = plan.read_text()
    plan.write_text(re.sub(r'(OF_A_PIPELINE = \("sample", )', r'\1"count", ', before))
    assert plan.read_text() != before
    assert run(project, "dvc", "init", "--quiet", "--force").returncode == 0
    planned = run(project, "changepair", "plan")
    assert "count_small: Count the pictures of the targets by label" in planned.stdout, planned.stderr
    made = run(project, "dvc", "repro", "count_small")
    assert made.returncode == 0, made.stdout + made.stderr
    assert re.findall(r"Running stage '(.+?)'", made.stdout) == ["code", "ingest_parts", "sample_small", "count_small"]
    with (project / "data/counts/small.csv").open() as stream:
        counts = {(row["dataset"], row["label"]): int(row["pictures"]) for row in csv.DictReader(stream)}
    pictures = [file for file in (project / "parts").glob("*/test/*/*.png")]
    good = [file for file in pictures if file.parent.name == "good"]
    assert counts["parts", "1"] == len(pictures) - len(good) and counts["parts", "0"] >= len(good)
    assert "Running stage" not in run(project, "dvc", "repro", "count_small").stdout
