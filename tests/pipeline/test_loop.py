"""The loop closed, on a real server with a real worker: pictures in, alert, verdicts, retraining on them, promotion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import commit, make_layout, run, save, write_pipelines
from gradio_client import Client
from lines import old, picture, review_page
from PIL import Image
from processes import started, within
from servers import ask, events, prefect_server
from team import Team, git


@pytest.mark.slow
def test_pictures_in_verdicts_out_and_the_model_learns_from_them(tmp_path: Path) -> None:
    with prefect_server(tmp_path / "prefect") as api:
        team = Team(tmp_path, api, {}, [str(tmp_path / "remote")])
        record, line = tmp_path / "record", tmp_path / "line"
        content = yaml.safe_load((team.project / "pipelines.yaml").read_text())
        content["datasets"]["folders"]["other"] = {"path": str(make_layout(tmp_path / "other"))}
        for file in (tmp_path / "other").rglob("*.png"):  # a dataset of its own: no picture of the targets is trained on
            if file.parent.parent.name != "ground_truth":
                save(255 - np.asarray(Image.open(file)), file)
        pipeline = content["pipelines"]["small"]
        pipeline["auxiliary"] = ["other"]
        pipeline["detectors"] = {"inctrl": {"resolution": 64, "encoder": {}, "texts": False}}
        pipeline["training"] = {"inctrl": {"examples": "auxiliary", "epochs": 1, "batch_size": 4}}
        pipeline["promotion"] = {"tolerance": 1.0}  # what is shown is the path, not how well a minute's training does
        pipeline["watch"] = {
            "folder": str(line), "record": str(record), "prompts": str(tmp_path / "normals/0.png"), "normals": str(tmp_path / "normals"),
            "false_alarms": 0.1, "alert": 0.3, "retrain_after": 4, "schedule": {"interval": "1 days"},
        }  # fmt: skip
        write_pipelines(team.project, content)
        commit(team.project, "a line is watched")
        git(team.project, "push", "--quiet", "origin", "main")
        line.mkdir()
        for place in range(16):
            save(picture(place), tmp_path / f"normals/{place}.png")
        with started(team.project, "changepair", "serve", PREFECT_API_URL=api):
            within(60, lambda: len(ask(api, "deployments")) == 2, "the deployments")
            assert asked(team, "scheduled/small") == "Promoted"
            for place in range(8):
                old(save(picture(20 + place, hole=place % 2 == 0), line / f"{place}.png"))
            assert asked(team, "watched/small") == "Alert"
            [alert] = events(api, "changepair.alert")
            assert alert["payload"]["flagged"] >= 4

            reviewed = review(team)
            assert set(reviewed) == {"good", "hole"}
            content["datasets"]["folders"]["line-3"] = {"path": str(record / "verdicts")}
            pipeline["auxiliary"] = ["other", "line-3"]
            write_pipelines(team.project, content)
            commit(team.project, "what was said of the line is trained on")
            git(team.project, "push", "--quiet", "origin", "main")

            assert asked(team, "watched/small") == "Nothing unusual"
            [labelled] = events(api, "changepair.labelled")
            assert labelled["payload"]["new"] == sum(reviewed.values())
            retrained = within(300, lambda: ended(api, "small at ", 2), "the retraining that the verdicts ask for")
            assert retrained[-1]["state"]["name"] == "Promoted", retrained[-1]["state"]
        git(team.project, "fetch", "--quiet")
        history = git(team.project, "show", "origin/changepair/small:data/models/small/history.jsonl").splitlines()
        assert [json.loads(entry)["action"] for entry in history] == ["promoted", "promoted"]
        assert len({json.loads(entry)["candidate"] for entry in history}) == 2  # it has learned something


def asked(team: Team, deployment: str) -> str:
    """Has a deployment run once; gives the state it ended in."""
    result = run(team.project, "prefect", "deployment", "run", deployment, "--watch", PREFECT_API_URL=team.api)
    assert result.returncode == 0, result.stdout + result.stderr + (team.project / "output.log").read_text(errors="replace")
    runs = [one for one in ask(team.api, "flow_runs") if one["deployment_id"] and one["state"]["type"] == "COMPLETED"]
    return str(max(runs, key=lambda one: str(one["end_time"]))["state"]["name"])


def ended(api: str, name: str, count: int) -> list[dict[str, Any]]:
    runs = [one for one in ask(api, "flow_runs") if one["name"].startswith(name) and one["end_time"]]
    return sorted(runs, key=lambda one: str(one["end_time"])) if len(runs) >= count else []


def review(team: Team) -> dict[str, int]:
    """Says on the page of every picture what is true of it; gives how many were said to be what."""
    said = dict[str, int]()
    with review_page(team.project) as (url, _process):
        client = Client(url, download_files=False, verbose=False)
        for kind in ("flagged", "passed"):
            shown = client.predict(kind, api_name="/begin")
            while "threshold" in shown[3]:
                defect = "hole" if int(shown[3].split(".")[0]) % 2 == 0 else "good"
                said[defect] = said.get(defect, 0) + 1
                shown = client.predict(defect, api_name="/anomalous")
    return said
