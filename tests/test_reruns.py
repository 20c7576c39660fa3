"""What an edit reruns: in a real checkout in which everything was made, the stages that `dvc status` then says are out of date."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL, copied, run, write_pipelines

from flows.plan import planned

TRAINED = {f"{kind}_small_{detector}" for kind in ("train", "score") for detector in ("metauas", "inctrl")}
SCORES = {"score_small_patch-residual", "score_small_metauas", "score_small_inctrl"}
Edit = Callable[[Path], None]


def in_file(name: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / name
        text = file.read_text()
        assert old in text, f"{name} has no {old!r}"
        file.write_text(text.replace(old, new))

    return edit


def in_settings(*keys: str, value: Any) -> Edit:
    def edit(folder: Path) -> None:
        content = yaml.safe_load((folder / "pipelines.yaml").read_text())
        inner = content["pipelines"]["small"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        write_pipelines(folder, content)

    return edit


def together(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits] and None


def commented(folder: Path) -> None:
    """A comment in every file of code, and another docstring at its head."""
    for file in [*(folder / "flows").rglob("*.py"), *(folder / "tasks").rglob("*.py")]:
        if text := file.read_text():
            file.write_text(re.sub(r'^"""', '"""Put otherwise: ', text, count=1) + "\n# a comment\n")


def outdated(folder: Path) -> set[str]:
    """The stages of which something they depend on has changed; what is made of theirs comes on top."""
    assert run(folder, "dvc", "repro", "code").returncode == 0
    came = run(folder, "dvc", "status", "--json")
    assert came.returncode == 0, came.stderr
    return set(json.loads(came.stdout))


ROWS: dict[str, tuple[Edit, set[str]]] = {
    "a comment and a docstring everywhere": (commented, set()),
    "what only runs the work": (
        together(
            in_file("flows/running/locks.py", "POLL = 0.5", "POLL = 0.6"),
            in_file("flows/running/secrets.py", 'HIDDEN = "***"', 'HIDDEN = "*****"'),
            in_file("flows/running/api.py", "AWAY = 600.0", "AWAY = 500.0"),
            in_file("flows/runs/notices.py", '"Kept": "kept"', '"Kept": "held"'),
            in_file("flows/schedule/deployments.py", "PAGE = 200", "PAGE = 100"),
            in_file("flows/cli.py", 'prog="changepair"', 'prog="changepairs"'),
        ),
        set(),
    ),
    "the style of the report": (
        in_file("tasks/reporting/report.html", "<style>", "<style>\n/* wider */ body { margin: 3rem }"),
        {"report_small"},
    ),
    "a figure's formula": (in_file("tasks/scoring/figures.py", "counts.level / 2", "counts.level / 3"), {"figures_small", "report_small"}),
    "a detector's module": (
        in_file("tasks/detectors/models/inctrl.py", "BOTTLENECK = 4", "BOTTLENECK = 8"),
        {"train_small_inctrl", "score_small_inctrl"},
    ),
    "a detector's settings": (
        in_settings("detectors", "inctrl", "resolution", value=96),
        {"train_small_inctrl", "score_small_inctrl"},
    ),
    "the settings of one that is not trained": (
        in_settings("detectors", "patch-residual", "top_share", value=0.5),
        {"score_small_patch-residual"},
    ),
    "a training's settings": (in_settings("training", "inctrl", "epochs", value=3), {"train_small_inctrl"}),
    "how InCTRL is trained": (in_file("tasks/training/inctrl.py", "POOL = 32", "POOL = 16"), {"train_small_inctrl"}),
    "synthesis": (in_file("tasks/synthesis/changes.py", "MOST_TRANSPARENT = 0.8", "MOST_TRANSPARENT = 0.7"), {"synthesize_small"}),
    "how many pictures are shown": (in_settings("evaluation", "shown", value=2), {"report_small"}),
    "torch in the lock": (
        lambda folder: (
            (folder / "requirements.lock").write_text(
                re.sub(r"^torch==\S+", "torch==2.99", (folder / "requirements.lock").read_text(), flags=re.MULTILINE)
            )
            and None
        ),
        {"sample_small", "inpainter_small", "synthesize_small", "figures_small", *TRAINED, *SCORES},
    ),
}


QUICK = ("a comment and a docstring everywhere", "a figure's formula", "a detector's module")


@pytest.mark.parametrize("row", [row if row in QUICK else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_an_edit_outdates_what_it_can_change_and_nothing_else(retrained: Path, tmp_path: Path, row: str) -> None:
    folder = copied(retrained, tmp_path / "project")
    edit, expected = ROWS[row]
    edit(folder)
    assert outdated(folder) == expected


def test_another_wording_of_the_report_is_there_in_seconds(retrained: Path, tmp_path: Path, api: str) -> None:
    folder = copied(retrained, tmp_path / "project")
    in_file("tasks/reporting/report.html", "</h1>", ", as measured</h1>")(folder)
    start = time.monotonic()
    came = run(folder, "dvc", "repro", PREFECT_API_URL=api)
    assert came.returncode == 0 and re.findall(r"Running stage '(.+?)'", came.stdout) == ["code", "report_small"]
    assert time.monotonic() - start < 30 and ", as measured</h1>" in (folder / "data/evaluation/small/report.html").read_text()


@pytest.mark.slow
def test_another_formula_scores_no_picture_again(retrained: Path, tmp_path: Path, api: str) -> None:
    folder = copied(retrained, tmp_path / "project")
    before = json.loads((folder / "data/evaluation/small/metrics.json").read_text())
    in_file("tasks/scoring/figures.py", "PRO_LIMIT = 0.3", "PRO_LIMIT = 0.1")(folder)
    came = run(folder, "dvc", "repro", PREFECT_API_URL=api)
    assert came.returncode == 0 and re.findall(r"Running stage '(.+?)'", came.stdout) == ["code", "figures_small", "report_small"]
    after = json.loads((folder / "data/evaluation/small/metrics.json").read_text())
    for name, figures in after["parts"].items():
        assert figures["image_auroc"] == before["parts"][name]["image_auroc"]
        assert figures["pixel_aupro"] != before["parts"][name]["pixel_aupro"]


def test_files_and_folders_that_settings_name_are_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie, and of those stages alone that read them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "painter").mkdir()
    small = {
        **SMALL["pipelines"]["small"],  # type: ignore[index,dict-item]
        "inpainter": {"model": "painter"},
        "sampling": {"shots": [1], "prompts": "/elsewhere/prompts.json"},
        "detectors": {
            "patch-residual": {"resolution": 64, "encoder": {"name": "resnet18", "weights": "/elsewhere/resnet18.safetensors"}},
            "metauas": {"resolution": 64, "model": "imported/metauas"},
            "metauas+": {},
            "inctrl": {"resolution": 64, "encoder": {"name": "resnet18", "weights": "weights.pth"}, "texts": False},
        },
    }
    write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": small}})
    readers = {
        file: {stage.name for stage in planned(tmp_path) if file in stage.deps}
        for file in (
            "parts",
            "masks",
            "painter",
            "/elsewhere/prompts.json",
            "/elsewhere/resnet18.safetensors",
            "imported/metauas",
            "weights.pth",
        )
    }
    assert readers == {
        "parts": {"ingest_parts"},
        "masks": {"objects_sample-photos"},
        "painter": {"inpainter_small"},
        "/elsewhere/prompts.json": {"sample_small"},
        "/elsewhere/resnet18.safetensors": {"score_small_patch-residual"},
        "imported/metauas": {"train_small_metauas"},
        "weights.pth": {"train_small_inctrl", "score_small_inctrl"},
    }


def test_a_pipelines_stages_ingest_its_own_datasets_and_no_others(tmp_path: Path) -> None:
    other = {**SMALL["pipelines"]["small"], "targets": ["others"], "sources": ["digits"]}  # type: ignore[index,dict-item]
    datasets = {
        "packaged": ["sample-photos", "digits", "texture-defects"],
        "folders": {"parts": {"path": "parts"}, "others": {"path": "others"}},
        "objects": {},
    }
    pipelines = {**SMALL["pipelines"], "other": other}  # type: ignore[dict-item]
    write_pipelines(tmp_path, {**SMALL, "enabled": ["small", "other"], "datasets": datasets, "pipelines": pipelines})
    stages = {stage.name: stage for stage in planned(tmp_path)}
    assert [name for name in stages if name.startswith("ingest")] == [
        "ingest_sample-photos",
        "ingest_parts",
        "ingest_digits",
        "ingest_others",
    ]
    read = {name: {dep for dep in stages[f"sample_{name}"].deps if dep.endswith(".parquet")} for name in ("small", "other")}
    assert read["small"] == {"data/manifests/sample-photos.parquet", "data/manifests/parts.parquet"}
    assert read["other"] == {"data/manifests/digits.parquet", "data/manifests/others.parquet"}
