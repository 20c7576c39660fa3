"""What is said of how to roll back the results of scheduled runs, done as it is said: the next run leaves the model in use."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import commit, run, write_pipelines
from team import Team, git

from changepair.flows.promotion.history import CURRENT, HISTORY, Model, folder_of, in_use_in_turn, read_current, taken_back, write_current
from changepair.flows.promotion.store import MeasuredAs
from changepair.flows.running.records import as_record
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.common.rows import write_rows
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.store import create_detector, save_model
from changepair.tasks.scoring.results import DrawRow, read_draws
from changepair.tasks.scoring.spread import DRAWS

SETTINGS = MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16))
AUTHOR = {f"GIT_{who}_{what}": "changepair@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def model(folder: Path, seed: int) -> None:
    """Writes a small MetaUAS that has learnt nothing."""
    torch.manual_seed(seed)
    detector = create_detector(SETTINGS)
    save_model(folder, detector, {"detector": "metauas", "settings": asdict(SETTINGS)})


def in_use(team: Team) -> str:
    """The model that the results of scheduled runs have in use."""
    return str(json.loads(git(team.origin, "show", "changepair/small:data/models/small/current"))["candidate"])


@pytest.mark.slow
def test_scheduled_results_are_rolled_back_as_it_is_said(tmp_path: Path, api: str) -> None:
    team = Team(tmp_path, api, {}, [str(tmp_path / "remote")])
    content = yaml.safe_load((team.project / "pipelines.yaml").read_text())
    pipeline = content["pipelines"]["small"]
    pipeline["schedule"] = "0 3 * * 1"
    pipeline["detectors"]["metauas"] = {"resolution": 64, "decoder_channels": [16] * 5, "model": str(tmp_path / "model")}
    pipeline["promotion"] = {"tolerance": 1.0}  # what is shown is the path, not how good a model is that has learnt nothing
    write_pipelines(team.project, content)
    commit(team.project, "a model that is given")
    git(team.project, "push", "--quiet", "origin", "main")
    models = []
    for seed in (0, 1):
        model(tmp_path / "model", seed)
        ended = team.scheduled(PREFECT_API_URL=api)
        assert ended.returncode == 0 and team.state().startswith("Promoted"), ended.stderr
        models.append(in_use(team))
    assert models[0] != models[1]

    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(team.origin), str(checkout)], check=True)
    recipe = re.findall(r"`([^`]+)`", _recipe(team))
    for command in recipe:
        done = run(checkout, *shlex.split(command), **AUTHOR)
        assert done.returncode == 0, (command, done.stdout + done.stderr)
    assert in_use(team) == models[0]
    ended = team.scheduled(PREFECT_API_URL=api)
    assert ended.returncode == 0, ended.stderr
    assert (team.state().split(":")[0], in_use(team)) == ("Kept", models[0])


def _recipe(team: Team) -> str:
    from changepair.flows.promotion import gate

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(team.project)
        return gate._of_scheduled_runs("small")


def test_a_model_is_in_turn_though_a_run_was_killed_before_it_wrote_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = [
        Model(
            time=f"2026-01-0{day}T00:00:00+00:00",
            action="promoted",
            candidate=f"{day}" * 32,
            hash=f"{day}" * 32 + ".dir",
            size=1,
            files=1,
            commit="",
            metrics={},
            reason="",
        )
        for day in (1, 2)
    ]
    write_current("mine", models[0])
    write_text(folder_of("mine") / CURRENT, json.dumps(asdict(models[1])))  # and the history has the first alone
    assert [model.candidate for model in in_use_in_turn("mine")] == ["1" * 32, "2" * 32] and taken_back("mine", "2" * 32) is None
    write_current("mine", replace(models[0], action="rolled back", time="2026-01-03T00:00:00+00:00"))
    assert [model.candidate for model in in_use_in_turn("mine")] == ["1" * 32]


def test_where_the_history_cannot_be_read_nothing_is_put_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = Model("1" * 32 + ".dir", 1, 1, "1" * 32, "", {}, "", "2026-01-01T00:00:00+00:00")
    write_current("mine", before)
    history = folder_of("mine") / HISTORY
    history.write_text("<<<<<<< HEAD\n" + history.read_text())
    with pytest.raises(BadInput, match=r"history\.jsonl: line 1: damaged"):
        write_current("mine", replace(before, candidate="2" * 32))
    assert read_current("mine") == before


def test_records_of_an_earlier_version_are_read_by_their_earlier_names(tmp_path: Path) -> None:
    """It called a metric a figure, in the history and in the draws."""
    one = Model("1" * 32 + ".dir", 1, 1, "1" * 32, "", {"a": {"b": {"image_auroc": 0.5}}}, "", "2026-01-01T00:00:00+00:00")
    text = json.dumps(asdict(one))
    assert as_record(Model, text.replace('"metrics"', '"figures"')) == one
    measured_as = MeasuredAs({"figures": {"kind": "patch-residual"}}, {"subset": {"figures": 3}}, {})  # a detector of that name
    assert as_record(MeasuredAs, json.dumps(asdict(measured_as))) == measured_as
    row = DrawRow("parts", "metauas", "class-specific", 1, "image_auroc", "", 0.5, (0.5,) * DRAWS)
    write_rows(tmp_path / "draws.parquet", DrawRow, [row])
    table = pq.read_table(tmp_path / "draws.parquet")
    pq.write_table(table.rename_columns(["figure" if name == "metric" else name for name in table.column_names]), tmp_path / "old.parquet")
    assert read_draws(tmp_path / "old.parquet") == [row]
