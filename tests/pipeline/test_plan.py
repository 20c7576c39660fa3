"""The plan: which stages pipelines.yaml makes, and what each of them reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import SMALL, TINY, make_project, run, write_pipelines
from dvc.config_schema import REMOTE_SCHEMAS
from dvc.stage.utils import is_valid_name

from changepair.flows.plan import KINDS, is_of, planned, write_plan
from changepair.flows.schedule import workspace
from changepair.flows.stage import Input, Stage, settings_file, settings_text
from changepair.tasks.common.errors import BadInput


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


def test_no_two_detectors_have_stages_of_one_name(tmp_path: Path) -> None:
    """DVC allows no + in the name of a stage."""
    metauas = {"kind": "metauas", "model": "packaged"}
    detectors = {"metauas": metauas, "metauas+": {}, "metauas-plus": metauas, "metauasplus": metauas}
    small = {**SMALL["pipelines"]["small"], "detectors": detectors, "training": {}}  # type: ignore[index,dict-item]
    write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": small}})
    names = [stage.name for stage in planned(tmp_path)]
    assert len(set(names)) == len(names) and {f"score_small_{name}" for name in detectors} - set(names) == {"score_small_metauas+"}
    assert all(is_valid_name(name) and is_of(name, "small") for name in names)


def test_a_home_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    small = {**SMALL["pipelines"]["small"], "sampling": {"shots": [1], "prompts": "~/prompts.json"}}  # type: ignore[index,dict-item]
    write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": small}})
    assert [stage.name for stage in planned(tmp_path) if f"{tmp_path}/home/prompts.json" in stage.deps] == ["sample_small"]


@pytest.mark.parametrize(
    "named, told",
    [
        (".", "sample_small would read ., but writes there itself; name another file or folder"),
        (
            "data/models/../evaluation",
            "sample_small would read data/models/../evaluation, but .*_small.* writes there and waits for sample_small; name",
        ),
        (
            "data/models/small/candidate/metauas/x.json",
            "would read data/models/small/candidate/metauas/x.json, but train_small_metauas wr",
        ),
        ("elsewhere/dvc.lock", "elsewhere/dvc.lock: no stage can read a file with this name, because it belongs to DVC; rename"),
        ("remote://mine/prompts.json", "remote://mine/prompts.json: DVC cannot read this URL; use one of s3://, "),
    ],
)
def test_what_a_stage_cannot_read_is_told(named: str, told: str, tmp_path: Path) -> None:
    small = {**SMALL["pipelines"]["small"], "sampling": {"shots": [1], "prompts": named}}  # type: ignore[index,dict-item]
    write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": small}})
    with pytest.raises(BadInput, match=told):
        planned(tmp_path)


def test_urls_are_of_the_kinds_that_dvc_has() -> None:
    assert set(KINDS) == set(REMOTE_SCHEMAS) - {"", "remote"}


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


def settings_of_stages(folder: Path, changes: dict[str, object]) -> dict[str, str]:
    """What DVC compares of the settings of each stage, for SMALL with some sections changed."""
    small: dict[str, object] = SMALL["pipelines"]["small"]  # type: ignore[index,assignment]
    write_pipelines(folder, {**SMALL, "pipelines": {"small": {**small, **changes}}})
    return {stage.name: settings_text(stage) for stage in planned(folder)}


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_a_section_that_states_its_defaults_outdates_nothing(tmp_path: Path) -> None:
    stated = {"promotion": {"floor": True}, "textures": []}
    assert settings_of_stages(tmp_path, {}) == settings_of_stages(tmp_path, stated)


def test_a_subset_outdates_its_detectors_scores_and_no_others(tmp_path: Path) -> None:
    """When it is added, when it is changed, and when it is removed."""
    chosen = {"detectors": {"patch-residual": {"resolution": 64}, "subspace": {"resolution": 64}}, "training": {}}
    both, one, none = (
        settings_of_stages(tmp_path, {**chosen, "evaluation": {"resolution": 64, "subset": subset}})
        for subset in ({"patch-residual": 4, "subspace": 4}, {"subspace": 4}, {})
    )
    assert differing(both, one) == {"score_small_patch-residual", "report_small"}
    assert differing(one, none) == {"score_small_subspace", "report_small"}


def test_a_promotion_that_is_taken_out_outdates_the_decision(tmp_path: Path) -> None:
    changed = differing(settings_of_stages(tmp_path, {"promotion": {"floor": False}}), settings_of_stages(tmp_path, {}))
    assert changed == {"metrics_small", "report_small"}


def test_who_promotes_and_the_size_of_batches_outdate_nothing(tmp_path: Path) -> None:
    edited = {"promotion": {"automatic": False}, "evaluation": {**SMALL["pipelines"]["small"]["evaluation"], "batch_size": 7}}  # type: ignore[index]
    assert differing(settings_of_stages(tmp_path, edited), settings_of_stages(tmp_path, {})) == set()


def test_what_a_lock_keeps_of_a_stage_that_is_gone_is_neither_pushed_nor_pulled(tmp_path: Path) -> None:
    """DVC would end with an error, and a scheduled run would lose its results."""
    write_pipelines(tmp_path, SMALL)
    write_plan(tmp_path)
    stages = {name: {"cmd": "python", "outs": []} for name in ("sample_small", "figures_small")}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    assert workspace._targets(tmp_path, "small") == ["sample_small"]


@dataclass(frozen=True)
class Wrong(Stage):
    """Mark a part of a type."""

    pipeline: str
    table: Input[Path] | None


def test_a_mark_that_would_declare_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.table: a mark on a part of a type has no effect"):
        _ = Wrong("small", Path("data/table.csv")).deps


def test_a_template_of_an_earlier_version_is_told(tmp_path: Path) -> None:
    write_pipelines(tmp_path, SMALL)
    (tmp_path / ".gitignore").write_text("!/data/evaluation/*/figures.csv\n")
    with pytest.raises(BadInput, match=r"\.gitignore: contains '/figures\.csv' from an earlier version; replace it with '/metrics\.csv'"):
        write_plan(tmp_path)


def test_an_edit_of_a_section_outdates_the_stages_that_read_it(tmp_path: Path) -> None:
    before = settings_of_stages(tmp_path, {})
    for section, expected in (
        ({"synthesis": {"pairs": 9}}, {"synthesize_small", "report_small"}),
        ({"sampling": {"shots": [2]}}, {"sample_small", "report_small"}),
        ({"evaluation": {"resolution": 32}}, {"metrics_small", "report_small"}),
    ):
        small: dict[str, object] = SMALL["pipelines"]["small"]  # type: ignore[index,assignment]
        [(name, change)] = section.items()
        after = settings_of_stages(tmp_path, {name: {**small[name], **change}})  # type: ignore[dict-item]
        assert differing(before, after) == expected, name


def test_each_stage_with_settings_depends_on_the_file_that_has_them(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", TINY)
    assert run(project, "dvc", "repro", "code").returncode == 0
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    for stage in planned(project):
        file = settings_file(stage.name)
        assert (file.as_posix() in stages[stage.name]["deps"]) == bool(stage.settings)
        assert not stage.settings or (project / file).read_text() == settings_text(stage)


@pytest.mark.attack
def test_dvc_notices_a_dvc_yaml_that_pipelines_yaml_does_not_ask_for(tmp_path: Path) -> None:
    """As after `git checkout other -- dvc.yaml`; without this, `dvc repro` says that all is up to date."""
    project = make_project(tmp_path / "project", TINY)
    assert run(project, "dvc", "repro", "code").returncode == 0
    file = project / "dvc.yaml"
    planned_text = file.read_text()
    edited = yaml.safe_load(planned_text)
    edited["stages"]["metrics_small"]["deps"].remove("data/scores/small/patch-residual")
    file.write_text(yaml.safe_dump(edited, sort_keys=False))
    assert "plan.yaml" in run(project, "dvc", "status", "code").stdout
    result = run(project, "dvc", "repro", "code")
    assert result.returncode != 0 and "changepair: dvc.yaml: was out of date with pipelines.yaml" in result.stderr
    assert file.read_text() == planned_text


@pytest.mark.attack
def test_a_file_of_the_users_own_is_not_taken_for_the_link_to_dvc_yaml(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "plan.yaml").write_text("mine")
    with pytest.raises(BadInput, match=r"changepair needs this path for a link to dvc\.yaml"):
        write_plan(tmp_path)
    assert (tmp_path / "plan.yaml").read_text() == "mine"
