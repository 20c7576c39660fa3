"""`changepair set`: a setting is changed where it stands, and nothing else of pipelines.yaml is."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from changepair.flows.settings.overriding import override, read_settings
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput


@pytest.fixture
def file(tmp_path: Path) -> Path:
    copy = tmp_path / "pipelines.yaml"
    copy.write_bytes((ROOT / "pipelines.yaml").read_bytes())
    return copy


def loaded(file: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(file.read_text())["pipelines"]


def lines_changed(before: str, after: str) -> int:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return sum(line.startswith("+") and not line.startswith("+++") for line in lines)


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (["evaluation.resolution=128"], 1),
        (["training.metauas.epochs=3", "training.metauas.seed=7"], 1),  # of one line
        (["sampling.shots=[1, 2]"], 1),
        (["evaluation.convention=published"], 1),  # a key that is new in a section that is there
        (["promotion.tolerance=0.05"], 1),  # in one that is not
        (["schedule={cron: '0 3 * * 1', timezone: Europe/Berlin}"], 1),
        (["training.inctrl.average=0.9", "textures=[vision-toolbox]"], 2),
        (["detectors.metauas={resolution: 64, fusion: add}"], 1),
    ],
)
def test_a_setting_is_changed_and_nothing_else_not_even_the_form(file: Path, settings: list[str], lines: int) -> None:
    before, text = loaded(file), file.read_text()
    wanted = read_settings(settings)
    assert len(override("quickstart", wanted, file)) == len(settings)
    after = loaded(file)
    for key, value in wanted.items():
        held: Any = after["quickstart"]
        for part in key.split("."):
            held = held[part]
        assert held == value
    assert {name: of for name, of in after.items() if name != "quickstart"} == {
        name: of for name, of in before.items() if name != "quickstart"
    }
    assert lines_changed(text, file.read_text()) == lines
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert [line.partition("#")[2] for line in file.read_text().splitlines() if "#" in line] == comments
    read_pipelines(file)
    assert override("quickstart", wanted, file) == []


def test_a_section_that_is_shared_by_an_anchor_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_bytes((ROOT / "examples/across-domains/pipelines.yaml").read_bytes())
    before = file.read_bytes()
    with pytest.raises(BadInput, match="shares this section through a YAML anchor"):
        override("to-elpv", read_settings(["evaluation.resolution=64"]), file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("pipeline", "setting", "message"),
    [
        ("quickstar", "evaluation.resolution=1", "no pipeline 'quickstar'; did you mean 'quickstart'?"),
        ("quickstart", "evaluation.resolutoin=128", "resolutoin: unknown key; did you mean 'resolution'?"),
        ("quickstart", "evaluation.resolution=many", "evaluation.resolution: expected a whole number"),
        ("quickstart", "synthesis.pairs.more=3", "pipelines.quickstart.synthesis.pairs: not a section"),
        ("quickstart", "synthesis.pairs=3", "training.metauas.batch_size: must be at most 2"),
        ("quickstart", "evaluation.resolution", "expected KEY=VALUE"),
        ("quickstart", "sampling.shots=[1", "invalid YAML in line 1"),
    ],
)
def test_what_cannot_be_set_is_told_and_the_file_left_as_it_is(file: Path, pipeline: str, setting: str, message: str) -> None:
    before = file.read_bytes()
    with pytest.raises(BadInput) as caught:
        override(pipeline, read_settings([setting]), file)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert file.read_bytes() == before


def test_a_block_of_lines_is_replaced_and_the_comment_after_it_stays(tmp_path: Path, file: Path) -> None:
    text = file.read_text().replace("      shots: [1, 2, 4, 8]\n", "      shots:\n        - 1\n        - 2\n      # how many draws\n", 1)
    file.write_text(text)
    override("quickstart", {"sampling.shots": [4]}, file)
    assert loaded(file)["quickstart"]["sampling"]["shots"] == [4] and "      # how many draws\n      seeds:" in file.read_text()
