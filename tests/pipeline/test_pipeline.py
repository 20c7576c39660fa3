"""A small pipeline over real pictures, run as a user runs it: with DVC, with `changepair retrain`, beside a real Prefect server.

Each test works in a copy of its own of what one run made, so that none depends on another.
"""

from __future__ import annotations

import base64
import copy
import csv
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import browser, installed, requests
from conftest import STAGES, TINY, commit, copied, make_clip, make_project, run, save, write_pipelines
from processes import wait_until, within
from servers import ask, events

from changepair.tasks.common.files import sha256
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.store import create_detector, save_model, settings_as_json
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.scoring.results import read_metrics


@pytest.fixture(scope="module")
def api(api_of_retrained: str) -> str:
    return api_of_retrained


@pytest.fixture(scope="module")
def edited_once(retrained: Path, tmp_path_factory: pytest.TempPathFactory, api: str) -> tuple[Path, list[str]]:
    """A project after an edit to a training and to a detector, reproduced; with what that ran. Not to be changed.

    By the coarsest stage alone, 2x2 patches, patch residual finds less.
    """
    folder = copied(retrained, tmp_path_factory.mktemp("edited") / "project")
    training = {"metauas": {"epochs": 1, "batch_size": 4, "learning_rate": 0.002}}
    write_pipelines(folder, edited(folder, training=training, detectors={"patch-residual": {"resolution": 64, "stages": [5]}}))
    return folder, ran(folder, api)


@pytest.fixture
def project(retrained: Path, tmp_path: Path) -> Path:
    return copied(retrained, tmp_path / "project")


@pytest.fixture
def edited_project(edited_once: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return copied(edited_once[0], tmp_path / "project")


def ran(folder: Path, api: str, *command: str) -> list[str]:
    """The stages that `dvc repro` ran, in order, but for the one that asks which code they run."""
    result = run(folder, *(command or ("dvc", "repro")), PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    return [stage for stage in re.findall(r"Running stage '(.+?)'", result.stdout) if stage != "code"]


def lock(folder: Path) -> dict[str, dict[str, str]]:
    """stage -> output -> the md5 of its bytes, as dvc.lock records them."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()}


def edited(folder: Path, **sections: Any) -> dict[str, Any]:
    content = yaml.safe_load((folder / "pipelines.yaml").read_text())
    for name, values in sections.items():
        content["pipelines"]["small"].setdefault(name, {}).update(values)
    return content


def current(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "data/models/small/current").read_text())


def weights(folder: Path, which: str) -> str:
    return sha256(folder / f"data/models/small/{which}/metauas/model.safetensors")


def state_of_retrain(folder: Path, api: str) -> str:
    """The state that `changepair retrain` ended in, with its message."""
    result = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    last = max((item for item in ask(api, "flow_runs") if item["name"] == "retrain small"), key=lambda item: item["start_time"])
    return f"{last['state']['name']}: {last['state']['message']}"


def artifact(api: str, key: str) -> str:
    """The newest of that key."""
    return str(max((item for item in ask(api, "artifacts") if item["key"] == key), key=lambda item: item["created"])["data"])


def test_a_run_leaves_every_artifact(project: Path) -> None:
    for file in (
        "data/manifests/parts.parquet",
        "data/manifests/parts.rejected.csv",
        "data/pictures/sample-photos/train/good/astronaut.png",
        "data/episodes/small.parquet",
        "data/pairs/small/00002.tar",
        "data/pairs/small/pairs.parquet",
        "data/inpainters/small/inpainter.json",
        "data/inpainters/small/pipeline/model_index.json",
        "data/inpainters/small/training_log.csv",
        "data/pairs/small/overview/local-region.png",
        "data/pairs/small/overview/kinds.csv",
        "data/models/small/candidate/metauas/model.safetensors",
        "data/models/small/candidate/metauas/config.json",
        "data/models/small/candidate/metauas/training_log.csv",
        "data/models/small/candidate/inctrl/model.safetensors",
        "data/models/small/candidate/inctrl/training_log.csv",
        "data/scores/small/patch-residual/scores.parquet",
        "data/scores/small/metauas/maps/0.npy",
        "data/evaluation/small/report.html",
        "data/evaluation/small/metrics.csv",
        "data/evaluation/small/comparisons.csv",
        "data/evaluation/small/operating.csv",
        "data/evaluation/small/decision.json",
        "data/models/small/in-use/decision.json",
        "data/runs/small/times/metauas.json",
        "data/evaluation/small/draws.parquet",
        "data/evaluation/small/curves/roc.csv",
        "data/evaluation/small/galleries/overlays-parts.png",
        "data/evaluation/small/galleries/metauas-parts.png",
        "data/models/small/in-use/metauas/model.safetensors",
    ):
        assert (project / file).stat().st_size > 0, file
    tree = json.loads((project / "data/evaluation/small/metrics.json").read_text())
    assert set(tree["parts"]) == {"patch-residual", "metauas", "inctrl"}
    assert {row.shots for row in read_metrics(project / "data/evaluation/small/metrics.csv")} == {1, 2}
    assert not list(project.rglob("*.partial")) and not [file for file in project.glob("data/checkpoints/small/**/*") if file.is_file()]


def test_a_dry_run_says_what_would_run_and_why_and_runs_nothing(retrained: Path, tmp_path: Path) -> None:
    project = copied(retrained, tmp_path / "project")

    def said() -> dict[str, str]:
        result = run(project, "changepair", "retrain", "small", "--dry-run")
        assert result.returncode == 0, result.stderr
        *lines, last = result.stdout.splitlines()
        would, may = ([line for line in lines if line.startswith(start)] for start in ("would run ", "may run "))
        perhaps = f", {len(may)} may run" if may else ""
        assert last.startswith(f"{len(would)} of {len(STAGES)} stages would run{perhaps}, {len(STAGES) - len(lines)} are up to date")
        assert len(would) + len(may) == len(lines)
        return dict(line.split(" run ", 1)[1].split(": ", 1) for line in lines)

    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file() and ".dvc/tmp" not in path.as_posix()}
    assert said() == {}
    write_pipelines(project, edited(project, evaluation={"resolution": 32}))
    lines = said()
    assert list(lines) == ["code", "metrics_small", "report_small"]
    assert lines["metrics_small"] == "pipelines.yaml changed: pipelines.small.evaluation.resolution"
    write_pipelines(project, edited(project, evaluation={"resolution": 64}))
    for file, line in (("detectors/residual/train", "# a comment"), ("training/segmentation", "CHANGED = 1")):
        with (project / f"tasks/{file}.py").open("a") as stream:
            stream.write(f"{line}\n")
    shutil.copyfile(project / "parts/bricks/train/good/0.png", project / "parts/bricks/test/good/new.png")
    lines = said()
    assert lines["ingest_parts"] == "parts changed" and lines["synthesize_small"].startswith("if the output of sample_small")
    assert lines["train_small_metauas"] == "code changed: changepair.tasks.training.segmentation"
    assert (
        lines["train_small_inctrl"] == "if the output of synthesize_small changes" and "train_small_metauas" in lines["score_small_metauas"]
    )
    changed = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert {path.relative_to(project).as_posix() for path in changed} == {
        "pipelines.yaml",
        "tasks/detectors/residual/train.py",
        "tasks/training/segmentation.py",
    }
    content = edited(project)
    content["pipelines"]["small"]["detectors"]["winclip"] = {}
    (project / "pipelines.yaml").write_text(yaml.safe_dump(content))
    refused = run(project, "changepair", "retrain", "small", "--dry-run")
    assert refused.returncode == 2 and "`changepair plan`" in refused.stderr


def test_the_run_can_be_watched(retrained: Path, api: str) -> None:
    """One run of retrain and one a stage, all completed, and the table, report and picture as artifacts."""
    [retrain] = [one for one in ask(api, "flow_runs") if one["name"] == "retrain small" and one["state"]["name"] == "Promoted"][-1:]
    tasks = [one for one in ask(api, "task_runs") if one["flow_run_id"] == retrain["id"]]
    assert {one["name"] for one in tasks} >= {"promotion gate small", *STAGES}
    below = {one["id"] for one in tasks}
    runs = [one for one in ask(api, "flow_runs") if one["parent_task_run_id"] in below]
    assert Counter(one["name"] for one in runs) == Counter(
        [
            "ingest sample-photos",
            "ingest parts",
            "objects sample-photos",
            *(f"{stage} small" for stage in ("sample", "inpainter", "synthesize", "metrics", "report")),
            *(f"train small {detector}" for detector in ("metauas", "inctrl")),
            *(f"score small {detector}" for detector in ("patch-residual", "metauas", "inctrl")),
        ]
    )
    assert {one["state_type"] for one in runs} == {"COMPLETED"}
    [sampled] = [one["parameters"]["stage"] for one in runs if one["name"] == "sample small"]
    assert sampled["sampling"]["shots"] == [1, 2] and sampled["files"]["episodes"] == "data/episodes/small.parquet"
    steps = {one["name"] for one in ask(api, "task_runs") if one["flow_run_id"] in {run_["id"] for run_ in runs}}
    assert {
        "ingest parts",
        "generate shard 0",
        "generate shard 1",
        "generate shard 2",
        "score metauas",
        "compute metrics of small",
        "train inctrl",
    } <= steps

    of_the_run = [item for item in ask(api, "artifacts") if item["flow_run_id"] in {one["id"] for one in [*runs, retrain]}]
    artifacts = {item["key"]: item for item in of_the_run if item["key"]}
    table = json.loads(artifacts["small-results"]["data"])
    assert artifacts["small-results"]["type"] == "table" and len(table) == 3 * 2 * 2 and table[0]["target"] == "parts"
    assert artifacts["small-report"]["type"] == "markdown" and "| parts | metauas |" in artifacts["small-report"]["data"]
    assert artifacts["small-overlays-parts"]["type"] == "image"
    picture = artifacts["small-pairs-local-region"]["data"]
    assert artifacts["small-pairs-local-region"]["type"] == "image"
    assert base64.b64decode(picture.removeprefix("data:image/jpeg;base64,")).startswith(b"\xff\xd8\xff")
    kinds = json.loads(artifacts["small-pairs-kinds"]["data"])
    assert artifacts["small-pairs-kinds"]["type"] == "table" and sum(int(row["pairs"]) for row in kinds) == 24
    assert "small-pairs-changed-area" in artifacts and "small-pairs-drops" in artifacts
    shares = [item["data"] for item in of_the_run if item["type"] == "progress"]
    assert shares == [100.0] * 6  # of the inpainter, two trainings and three scorings
    assert artifacts["small-summary"]["data"].startswith("# small: Promoted")


def test_nothing_changed_nothing_runs(project: Path, api: str) -> None:
    before = lock(project)
    result = run(project, "dvc", "repro")
    assert result.returncode == 0 and "Data and pipelines are up to date." in result.stdout
    again = run(project, "changepair", "retrain", "small", PREFECT_API_URL=api, PREFECT_LOGGING_LEVEL="INFO")
    said = [*again.stdout.splitlines(), *again.stderr.splitlines()]
    stages = len(before) - 1  # but for the one that asks which code they run, which is out of date or not
    assert again.returncode == 0 and f"small: 0 of {stages + 1} stages ran, {stages + 1} are up to date" in said
    assert any(line.startswith("small: In use already: ") for line in said) and "report: data/evaluation/small/report.html" in said
    assert any(
        re.match(r"recommended for parts: [a-z-]+ with [12] normal pictures?, I-AUROC [0-9.]+ %, thresholds of 2", line) for line in said
    )
    assert len(said) <= 12, said
    quiet = run(project, "changepair", "retrain", "small", "--quiet", PREFECT_API_URL=api)
    assert quiet.returncode == 0 and quiet.stdout + quiet.stderr == ""
    loud = run(project, "changepair", "retrain", "small", "--verbose", PREFECT_API_URL=api, PREFECT_LOGGING_LEVEL="INFO")
    assert "Stage 'report_small' didn't change, skipping" in loud.stdout and "Beginning flow run" in loud.stderr
    assert lock(project) == before


def test_a_run_says_a_line_a_milestone(project: Path, api: str) -> None:
    write_pipelines(project, edited(project, evaluation={"convention": "published"}))
    result = run(project, "changepair", "retrain", "small", PREFECT_API_URL=api)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    said = [re.sub(r"\d+ s$", "_ s", line) for line in result.stdout.splitlines()]
    stages = len(lock(project))
    assert said[0].startswith("small: http://127.0.0.1:")  # the run's page, on a server that stays
    assert [line for line in said if line.startswith("stage ") and "code" not in line] == [
        f"stage {stages - 1} of {stages}: metrics small, _ s",
        f"stage {stages} of {stages}: report small, _ s",
    ]
    assert said[-1] == "report: data/evaluation/small/report.html" and len(said) <= 12


@pytest.mark.slow
def test_with_a_snapshot_results_can_be_made_again_when_the_pictures_are_gone(tmp_path: Path) -> None:
    content = copy.deepcopy(TINY)
    content["datasets"]["folders"]["parts"] = {"path": str(tmp_path / "parts"), "snapshot": True}  # type: ignore[index]
    folder = make_project(tmp_path / "project", TINY)
    shutil.move(folder / "parts", tmp_path / "parts")
    write_pipelines(folder, content)
    result = run(folder, "dvc", "repro")
    assert result.returncode == 0, result.stderr
    before = lock(folder)
    shutil.rmtree(tmp_path / "parts")
    shutil.rmtree(folder / "data/pictures")
    assert "dvc.yaml is updated" in run(folder, "changepair", "plan").stdout  # as it has nothing to read any more
    assert run(folder, "dvc", "checkout").returncode == 0  # or `dvc pull`, on another machine
    assert ran(folder, "") == []
    assert lock(folder) == before and any((folder / "data/pictures/parts/snapshot").rglob("*.png"))
    content["pipelines"]["small"]["detectors"]["patch-residual"]["resolution"] = 96  # type: ignore[index]
    write_pipelines(folder, content)
    assert ran(folder, "") == ["score_small_patch-residual", "metrics_small", "report_small"]


def test_an_edit_to_a_training_and_a_detector_reruns_those_alone(edited_once: tuple[Path, list[str]]) -> None:
    reran = ["train_small_metauas", "score_small_patch-residual", "score_small_metauas", "metrics_small", "report_small"]
    assert edited_once[1] == reran


@installed
def test_plots_are_drawn_without_a_network(project: Path, tmp_path: Path) -> None:
    result = run(project, "changepair", "plots", "--out", str(tmp_path / "plots"))
    assert result.returncode == 0 and "index.html" in result.stdout, result.stderr
    with browser(tmp_path / "profile", width=390) as driver:
        driver.get((tmp_path / "plots/index.html").as_uri())
        within(30, lambda: driver.execute_script("return document.querySelectorAll('main canvas, main svg').length") >= 8, "the charts")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert all(url.startswith("file:") for url in requests(driver))
    wrong = run(project, "changepair", "plots", "nowhere")
    assert wrong.returncode == 2 and wrong.stderr == "changepair: dvc plots diff: unknown Git revision 'nowhere'\n"


def test_dvc_compares_the_metrics_and_draws_the_curves(edited_project: Path) -> None:
    """After the edit InCTRL is as it was."""
    result = run(edited_project, "dvc", "metrics", "diff", "--json")
    changed = json.loads(result.stdout)["data/evaluation/small/metrics.json"]
    assert "parts.patch-residual.pixel_aupro" in changed and not any(name.startswith("parts.inctrl.") for name in changed), changed
    table = list(csv.DictReader(run(edited_project, "dvc", "exp", "show", "--csv").stdout.splitlines()))
    assert {"parts.inctrl.image_auroc", "parts.metauas.pixel_aupro"} <= set(table[0])
    result = run(edited_project, "dvc", "plots", "show", "--json")
    assert result.returncode == 0, result.stderr
    for name in ("roc", "pro", "histogram", "shots"):
        [shown] = [charts for file, charts in json.loads(result.stdout)["data"].items() if file.endswith(f"curves/{name}.csv")]
        chart = shown[0]["content"]
        assert chart["facet"]["row"]["field"] == "target" and "<DVC_" not in json.dumps(chart)
        drawn = {field["field"] for field in chart["spec"]["encoding"].values()} | {field["field"] for field in chart["facet"].values()}
        assert chart["data"]["values"] and drawn <= set(chart["data"]["values"][0]), drawn


@pytest.mark.slow
def test_a_report_of_a_later_commit_changes_no_file_of_git(project: Path, tmp_path: Path, api: str) -> None:
    folder = copied(project, tmp_path / "later")
    commit(folder)
    commit(folder, "a later one")
    again = run(folder, "dvc", "repro", "--force", "--single-item", "report_small", PREFECT_API_URL=api)
    assert again.returncode == 0, again.stderr
    status = subprocess.run(["git", "status", "--short"], cwd=folder, check=True, capture_output=True, text=True)
    assert status.stdout == ""


@pytest.mark.slow
def test_an_experiment_is_queued_shown_and_applied(tmp_path: Path, api: str) -> None:
    """DVC runs it in a clone of its own: the checkout is as it was until the experiment is applied."""
    folder = make_project(tmp_path / "project", TINY)
    assert ran(folder, api)
    commit(folder)
    settings, metrics = (folder / "pipelines.yaml").read_bytes(), (folder / "data/evaluation/small/metrics.csv").read_bytes()
    change = "pipelines.yaml:pipelines.small.detectors.patch-residual.resolution=96"
    queued = run(folder, "dvc", "exp", "run", "--queue", "--name", "finer", "--set-param", change)
    assert queued.returncode == 0, queued.stderr
    assert (folder / "pipelines.yaml").read_bytes() == settings
    assert run(folder, "dvc", "queue", "start").returncode == 0

    def state() -> str:
        return " ".join(re.findall("Queued|Running|Success|Failed", run(folder, "dvc", "queue", "status").stdout))

    within(300, lambda: state().split(" ")[-1] in ("Success", "Failed"))
    assert "Success" in state(), run(folder, "dvc", "queue", "logs", "finer").stdout
    assert (folder / "pipelines.yaml").read_bytes() == settings
    few = r"^(?!Experiment$|Created$|.*patch-residual\.image_auroc$)"
    header, *rows = csv.reader(run(folder, "dvc", "exp", "show", "--csv", "--drop", few).stdout.splitlines())
    assert 2 <= len(header) <= 10 and any("finer" in row for row in rows), (header, rows)
    assert run(folder, "dvc", "exp", "apply", "finer").returncode == 0
    content = yaml.safe_load((folder / "pipelines.yaml").read_text())
    assert content["pipelines"]["small"]["detectors"]["patch-residual"]["resolution"] == 96
    assert (folder / "data/evaluation/small/metrics.csv").read_bytes() != metrics
    assert ran(folder, api) == []


@pytest.mark.slow
def test_a_worse_model_is_kept_out(edited_project: Path, api: str) -> None:
    """The one in use is that of the first run; the candidate, of the edit, has not been at the gate."""
    project = edited_project
    first, in_use = current(project), weights(project, "in-use")
    assert first["reason"] == "first model of this pipeline" and in_use != weights(project, "candidate")
    content = edited(project, promotion={"metric": "pixel_auroc", "tolerance": 0.0, "detectors": ["patch-residual"]})
    write_pipelines(project, content)
    state = state_of_retrain(project, api)
    assert state.startswith("Kept: patch-residual P-AUROC ") and state.endswith("; ran code, metrics_small, report_small")
    assert "may be worse by more than 0 points" in state
    event = max(events(api, "changepair.kept"), key=lambda one: one["occurred"])
    assert event["payload"]["in use"] == {
        "path": "data/models/small/in-use",
        "hash": first["hash"],
        "model": first["candidate"],
        "commit": first["commit"],
    }
    assert "may be worse" in event["payload"]["reason"] and event["payload"]["metrics"]["parts"].keys() >= {"metauas"}
    assert current(project) == first and weights(project, "in-use") == in_use
    shown = artifact(api, "small-summary")
    assert shown.startswith("# small: Kept") and re.search(r"\| patch-residual \|.*\| no \|", shown)
    assert "parts: **Not ready: " in shown and "Recommended: " in shown and "Image AUROC" in shown and "](data:image/jpeg;base64," in shown
    assert "`changepair predict --model small --category parts/bricks part.png`" in shown
    assert re.search(r"\| 1, \d{4}-\d\d-\d\d: Promoted \| I-AUROC \d", shown) and "| this run |" in shown


def test_a_model_is_promoted_and_rolled_back_by_hand(edited_project: Path) -> None:
    project = edited_project
    first, in_use = current(project), weights(project, "in-use")
    refused = run(project, "changepair", "rollback", "small")
    assert refused.returncode == 2 and "no model before the current one" in refused.stderr
    for _time in range(2):  # the second changes nothing, and is not what a rollback goes back to
        by_hand = run(project, "changepair", "promote", "small")
        said = by_hand.stdout + by_hand.stderr
        assert by_hand.returncode == 0 and re.search(r"is now current; active detector: [a-z-]+, [IP]-AUROC", said), said
    assert weights(project, "in-use") == weights(project, "candidate") != in_use
    assert current(project)["metrics"] == json.loads((project / "data/evaluation/small/metrics.json").read_text())
    back = run(project, "changepair", "rollback", "small")
    assert back.returncode == 0 and weights(project, "in-use") == in_use
    assert (current(project)["hash"], current(project)["action"]) == (first["hash"], "rolled back")
    history = [json.loads(line) for line in (project / "data/models/small/history.jsonl").read_text().splitlines()]
    assert [line["action"] for line in history] == ["promoted", "promoted", "promoted", "rolled back"]
    assert history[0]["candidate"] != history[1]["candidate"]
    again = run(project, "changepair", "rollback", "small")
    assert again.returncode == 2 and "no model before the current one" in again.stderr
    message = run(project, "changepair", "history", "small").stdout
    assert f"current model {first['candidate'][:8]}" in message and "by hand" in message
    assert "up to date" in run(project, "dvc", "status", "data/models/small/in-use.dvc").stdout


def test_plain_dvc_carries_the_model_in_use_to_a_clone_and_keeps_it(project: Path, tmp_path: Path) -> None:
    """push, pull, checkout and gc as anyone types them, with no name of the model."""
    in_use = weights(project, "in-use")
    assert run(project, "dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store")).returncode == 0
    assert run(project, "dvc", "push").returncode == 0
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(project), str(clone)], check=True)
    shutil.copyfile(project / ".dvc" / "config.local", clone / ".dvc" / "config.local")
    result = run(clone, "dvc", "pull")
    assert result.returncode == 0 and weights(clone, "in-use") == in_use, result.stderr
    assert run(clone, "dvc", "checkout", "--force").returncode == 0 and weights(clone, "in-use") == in_use
    assert run(clone, "dvc", "gc", "--workspace", "--cloud", "--force").returncode == 0
    shutil.rmtree(clone / "data" / "models" / "small" / "in-use")
    shutil.rmtree(clone / ".dvc" / "cache")
    assert run(clone, "dvc", "pull").returncode == 0 and weights(clone, "in-use") == in_use
    again = run(clone, "dvc", "repro")
    assert again.returncode == 0 and "Data and pipelines are up to date." in again.stdout, again.stdout


def test_everyone_names_the_same_detector(retrained: Path) -> None:
    """The report, the gate, `status`, and `--model <pipeline>` without another option."""
    decision = json.loads((retrained / "data/models/small/in-use/decision.json").read_text())
    assert decision == json.loads((retrained / "data/evaluation/small/decision.json").read_text())
    detector, shots = decision["detector"], decision["uses"][0]["shots"]
    assert f"Recommended: {detector} with {shots} normal picture" in (retrained / "data/evaluation/small/report.html").read_text()
    assert current(retrained)["choice"].startswith(f"{detector}, I-AUROC ")
    assert f"active detector: {detector}, I-AUROC" in run(retrained, "changepair", "status", "small").stdout
    command = re.search(
        r"<code>(changepair predict --model small [^<]+)</code>", (retrained / "data/evaluation/small/report.html").read_text()
    )
    assert command is not None
    scored = run(retrained, *command[1].replace("part.png", "parts/bricks/test/good").split(), "--format", "json")
    assert scored.returncode in (0, 1), scored.stderr
    threshold = next(use["threshold"] for use in decision["uses"] if use["category"] == "bricks")
    assert [json.loads(line)["threshold"] for line in scored.stdout.splitlines()] == [threshold["value"]] * 2
    assert f"small: {detector} of the current model " in scored.stderr


def test_a_sweep_gives_the_metrics_of_the_pipeline_and_leaves_no_other_file(project: Path, tmp_path: Path) -> None:
    def files() -> set[Path]:
        return {file for file in (project / "data").rglob("*") if file.is_file()}

    before, table = files(), tmp_path / "swept.csv"
    result = run(project, "changepair", "sweep", "small", "patch-residual", "top_share=0,0.5", "self_residual=0,0.6", "--out", str(table))
    assert result.returncode == 0 and files() == before, result.stderr
    swept = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len({(row["top_share"], row["self_residual"]) for row in swept}) == 4
    set_by_stage = [row for row in swept if row.pop("top_share") == "0" and row.pop("self_residual") == "0"]
    of_stage = list(csv.DictReader((project / "data/evaluation/small/metrics.csv").open(encoding="utf-8")))
    assert set_by_stage == [row for row in of_stage if row.pop("detector") == "patch-residual"] != []
    (project / "parts/bricks/train/good/0.png").unlink()
    refused = run(project, "changepair", "sweep", "small", "patch-residual", "top_share=0,0.5")
    assert refused.returncode == 2 and "the stage sample_small has to run first" in refused.stderr, refused.stderr


AGAIN = """
import json
from pathlib import Path
from changepair.flows.promotion.gate import gate, rollback
new, in_use = (Path("data", folder, "decision.json") for folder in ("evaluation/small", "models/small/in-use"))
def ask(): outcome = gate("small"); print(json.dumps([outcome.state, outcome.reason, in_use.read_text() == new.read_text()]))
ask()
text = new.read_text().replace('"found": ', '"found": 1')
new.unlink(); new.write_text(text)
ask(); ask()
rollback("small")
ask()
"""


def test_the_same_model_takes_a_new_decision_unless_it_was_rolled_back(project: Path) -> None:
    result = run(project, "python", "-c", AGAIN)
    assert result.returncode == 0, result.stderr
    before, changed, after, back = map(json.loads, result.stdout.splitlines())
    assert before[0] == after[0] == back[0] == "In use already" and changed[0] == "Promoted"
    assert changed[1].startswith("same model with a new recommendation; active detector: ")
    assert "; `changepair promote small` adopts the new recommendation and thresholds" in back[1]
    assert [before[2], changed[2], after[2], back[2]] == [True, True, True, False]


def test_a_model_is_not_promoted_with_settings_that_it_was_not_measured_with(project: Path) -> None:
    """DVC alone does not see the edit before the stage `code` has run."""
    write_pipelines(project, edited(project, detectors={"patch-residual": {"resolution": 96, "stages": [4]}}))
    before = current(project)
    result = run(project, "changepair", "promote", "small")
    assert result.returncode == 2 and "was changed after score_small_patch-residual ran" in result.stderr, result.stderr
    assert current(project) == before


def test_a_run_that_was_stopped_after_an_edit_is_forecast(project: Path) -> None:
    write_pipelines(project, edited(project, evaluation={"resolution": 48}))
    assert run(project, "changepair", "plan").returncode == run(project, "dvc", "repro", "--single-item", "code").returncode == 0
    lines = run(project, "changepair", "retrain", "small", "--dry-run").stdout.splitlines()
    assert [line for line in lines if line.startswith("would run metrics_small: its settings changed since its last run")], lines


def test_a_person_promotes_where_promotion_is_not_automatic(project: Path) -> None:
    """The first model waits, without a file that Git would see; and so does the same model with a new decision."""
    write_pipelines(project, edited(project, promotion={"automatic": False}))
    models = project / "data/models/small"
    kept = {models / name: (models / name).read_bytes() for name in ("current", "history.jsonl", "in-use.dvc")}
    state, reason, _ = json.loads(run(project, "python", "-c", AGAIN.replace('rollback("small")', "")).stdout.splitlines()[1])
    assert state == "In use already" and "`changepair promote small` adopts the new recommendation" in reason
    assert {file: file.read_bytes() for file in kept} == kept
    for file in kept:
        file.unlink()
    program = "from changepair.flows.promotion.gate import gate; ended = gate('small'); print(ended.state, ended.reason, sep='|')"
    state, reason = run(project, "python", "-c", program).stdout.strip().split("|")
    assert state == "Kept" and reason.endswith("`changepair promote small` makes it the current model")
    assert not any(file.exists() for file in kept)


def test_the_report_shows_the_pairs(retrained: Path) -> None:
    report = (retrained / "data/evaluation/small/report.html").read_text()
    with (retrained / "data/pairs/small/overview/kinds.csv").open() as stream:
        counts = list(csv.DictReader(stream))
    for row in counts:
        assert re.search(rf"<td>{row['kind']}</td>.*<td>{row['pairs']}</td>", report)
        assert f'alt="change pairs of kind {row["kind"].partition(",")[0]}"' in report
    assert "Draws dropped" in report


@pytest.mark.slow
def test_after_a_new_picture_the_model_in_use_is_measured_again(project: Path, api: str) -> None:
    """The stages that depend on the picture run, the training not. With all the tolerance there is, the candidate is promoted."""
    import skimage.data

    save(skimage.data.brick()[300:396, 300:396], project / "parts" / "bricks" / "test" / "good" / "new.png")
    detectors = {"patch-residual": {"resolution": 64, "stages": [4]}}
    write_pipelines(project, edited(project, promotion={"tolerance": 1.0}, detectors=detectors))
    state = state_of_retrain(project, api)
    scores = [f"score_small_{detector}" for detector in ("patch-residual", "metauas", "inctrl")]
    assert state.startswith("Promoted: metauas I-AUROC ")
    assert state.endswith("; ran " + ", ".join(["code", "ingest_parts", "sample_small", *scores, "metrics_small", "report_small"]))
    newest = max((item for item in ask(api, "flow_runs") if item["name"] == "retrain small"), key=lambda item: item["start_time"])
    assert "evaluate current model of small" in {item["name"] for item in ask(api, "task_runs") if item["flow_run_id"] == newest["id"]}
    assert weights(project, "in-use") == weights(project, "candidate")


def test_a_model_in_use_that_is_gone_is_told_and_nothing_changes(project: Path) -> None:
    file, pointer = (project / "data/models/small" / name for name in ("current", "in-use.dvc"))
    pointed = pointer.read_text()
    gone = json.dumps({**json.loads(file.read_text()), "hash": "0" * 32 + ".dir"})
    file.write_text(gone)
    program = (
        "from changepair.flows.promotion.gate import gate\n"
        "from changepair.flows.running.exit_handling import exit_on_bad_input\n"
        "exit_on_bad_input(lambda: gate('small'))"
    )
    result = run(project, "python", "-c", program)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("changepair: data/models/small/current: model ")
    assert "is neither in DVC's cache nor in a remote" in result.stderr
    assert pointer.read_text() == pointed and file.read_text() == gone and weights(project, "in-use")


@pytest.mark.slow  # by stages it is shown in test_ingestion.py and test_runners.py
def test_the_same_bytes_with_another_number_of_workers(project: Path, api: str) -> None:
    promised = [stage for stage in STAGES if stage.startswith(("ingest", "objects", "sample", "inpainter", "synthesize"))]
    before = lock(project)
    content = yaml.safe_load((project / "pipelines.yaml").read_text())
    content["execution"]["workers"] = 1
    write_pipelines(project, content)
    assert ran(project, api, "dvc", "repro", "--force", "--single-item", *promised) == promised
    after = lock(project)
    assert {stage: after[stage] for stage in promised} == {stage: before[stage] for stage in promised}


def test_a_strangers_mistake_ends_a_stage_and_a_run_with_one_line_and_exit_code_2(project: Path, api: str) -> None:
    sources = edited(project)
    sources["pipelines"]["small"]["sources"] = ["parts"]
    write_pipelines(project, sources)
    before = (project / "data/episodes/small.parquet").read_bytes()
    in_use = current(project)
    assert run(project, "changepair", "plan").returncode == run(project, "python", "-m", "changepair.flows.code").returncode == 0
    result = run(project, "python", "-m", "changepair.flows.sample", "small", PREFECT_API_URL=api)
    assert result.returncode == 2 and "Traceback" not in result.stdout + result.stderr
    assert re.match(r"changepair: \d+ pictures are both a source and a target, the first parts/", result.stderr.splitlines()[-1])
    assert (project / "data/episodes/small.parquet").read_bytes() == before

    again = run(project, "changepair", "retrain", "small", PREFECT_API_URL=api)
    why = "pictures are both a source and a target"
    wait_until(lambda: any(why in event["payload"]["reason"] for event in events(api, "changepair.failed")), what="the event")
    assert again.returncode == 2 and "Traceback" not in again.stdout + again.stderr
    assert "pictures are both a source and a target" in again.stderr
    assert "synthesize_small" not in again.stdout
    assert again.stderr.splitlines()[-1].startswith("changepair: stage sample_small: ")
    assert (again.stdout + again.stderr).count("pictures are both a source and a target") == 1
    assert current(project) == in_use and weights(project, "in-use")  # a run that fails leaves the model in use

    failed = [item for item in ask(api, "flow_runs") if item["state_type"] == "FAILED" and item["name"] == "sample small"]
    assert failed and all("pictures are both a source and a target" in item["state"]["message"] for item in failed)
    tries = [item for item in ask(api, "task_runs") if item["name"].startswith("draw episodes") and item["state_type"] == "FAILED"]
    assert tries and all(item["run_count"] == 1 for item in tries)


def test_a_mistake_anywhere_in_the_file_is_told_whichever_stage_is_started(project: Path, api: str) -> None:
    """Rules across fields too, and of a part that the stage does not read."""
    content = edited(project, evaluation={"resolution": 64, "subset": {"metauaz": 3}})
    (project / "pipelines.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    message = "changepair: pipelines.yaml: pipelines.small.evaluation.subset.metauaz: no detector 'metauaz' under detectors"
    for command in (
        ("python", "-m", "changepair.flows.ingest", "parts"),
        ("python", "-m", "changepair.flows.code"),
        ("dvc", "repro", "ingest_parts"),
    ):
        result = run(project, *command, PREFECT_API_URL=api)
        assert result.returncode != 0 and f"{message}; did you mean 'metauas'?" in result.stderr.splitlines(), result.stderr


@pytest.mark.slow
def test_settings_that_ask_for_other_stages_are_planned_anew(project: Path, api: str) -> None:
    """`dvc repro` plans them, says so and is run again; `changepair retrain` plans them as well."""
    content = edited(project)
    del content["pipelines"]["small"]["detectors"]["inctrl"], content["pipelines"]["small"]["training"]["inctrl"]
    (project / "pipelines.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    result = run(project, "dvc", "repro", PREFECT_API_URL=api)
    assert result.returncode != 0
    assert "changepair: dvc.yaml: was out of date with pipelines.yaml and is regenerated now; run the same command again" in result.stderr
    assert "inctrl" not in (project / "dvc.yaml").read_text()
    assert ran(project, api) == ["metrics_small", "report_small"]
    assert set(json.loads((project / "data/evaluation/small/metrics.json").read_text())["parts"]) == {"patch-residual", "metauas"}


# What an edit outdates, as `dvc status` has it in a checkout in which everything was made.

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
    result = run(folder, "dvc", "status", "--json")
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


ROWS: dict[str, tuple[Edit, set[str]]] = {
    "a comment and a docstring everywhere": (commented, set()),
    "what only runs the work": (
        together(
            in_file("flows/running/locks.py", "POLL = 0.5", "POLL = 0.6"),
            in_file("flows/running/secrets.py", 'HIDDEN = "***"', 'HIDDEN = "*****"'),
            in_file("flows/running/api.py", "AWAY = 600.0", "AWAY = 500.0"),
            in_file("flows/schedule/deployments.py", "PAGE = 200", "PAGE = 100"),
            in_file("flows/cli/__init__.py", 'prog="changepair"', 'prog="changepairs"'),
        ),
        set(),
    ),
    "the style of the report": (
        in_file("tasks/reporting/report.html", "<style>", "<style>\n/* wider */ body { margin: 3rem }"),
        {"report_small"},
    ),
    "a metric's formula": (in_file("tasks/scoring/metrics.py", "counts.level / 2", "counts.level / 3"), {"metrics_small", "report_small"}),
    "a detector's module": (
        in_file("tasks/detectors/inctrl/model.py", "BOTTLENECK = 4", "BOTTLENECK = 8"),
        {"train_small_inctrl", "score_small_inctrl"},
    ),
    "a detector's settings": (
        in_settings("detectors", "inctrl", "resolution", value=96),
        {"train_small_inctrl", "score_small_inctrl", "metrics_small", "report_small"},
    ),
    "the settings of one that is not trained": (
        in_settings("detectors", "patch-residual", "top_share", value=0.5),
        {"score_small_patch-residual", "metrics_small", "report_small"},
    ),
    "a training's settings": (in_settings("training", "inctrl", "epochs", value=3), {"train_small_inctrl", "report_small"}),
    "how InCTRL is trained": (in_file("tasks/detectors/inctrl/train.py", "POOL = 32", "POOL = 16"), {"train_small_inctrl"}),
    "synthesis": (
        in_file("tasks/synthesis/changes.py", "MOST_TRANSPARENT = 0.8", "MOST_TRANSPARENT = 0.7"),
        {"synthesize_small"},
    ),
    "what the model is chosen by": (in_settings("promotion", value={"metric": "pixel_aupro"}), {"metrics_small", "report_small"}),
    "how many pictures are shown": (in_settings("evaluation", "shown", value=2), {"report_small"}),
}


QUICK = ("a comment and a docstring everywhere", "a metric's formula", "a detector's module")


@pytest.mark.parametrize("row", [row if row in QUICK else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_an_edit_outdates_what_it_can_change_and_nothing_else(project: Path, row: str) -> None:
    edit, expected = ROWS[row]
    edit(project)
    assert outdated(project) == expected


def test_another_wording_of_the_report_is_there_in_seconds(project: Path, api: str) -> None:
    in_file("tasks/reporting/report.html", "</h1>", ", as measured</h1>")(project)
    start = time.monotonic()
    result = run(project, "dvc", "repro", PREFECT_API_URL=api)
    assert result.returncode == 0 and re.findall(r"Running stage '(.+?)'", result.stdout) == ["code", "report_small"]
    assert time.monotonic() - start < 30 and ", as measured</h1>" in (project / "data/evaluation/small/report.html").read_text()


@pytest.mark.slow
def test_another_formula_scores_no_picture_again(project: Path, api: str) -> None:
    before = json.loads((project / "data/evaluation/small/metrics.json").read_text())
    in_file("tasks/scoring/metrics.py", "PRO_LIMIT = 0.3", "PRO_LIMIT = 0.1")(project)
    result = run(project, "dvc", "repro", PREFECT_API_URL=api)
    assert result.returncode == 0 and re.findall(r"Running stage '(.+?)'", result.stdout) == ["code", "metrics_small", "report_small"]
    after = json.loads((project / "data/evaluation/small/metrics.json").read_text())
    for name, metrics in after["parts"].items():
        assert metrics["image_auroc"] == before["parts"][name]["image_auroc"]
        assert metrics["pixel_aupro"] != before["parts"][name]["pixel_aupro"]


@pytest.mark.slow
def test_a_pipeline_that_trains_nothing_needs_no_sources_and_no_pairs(tmp_path: Path, api: str) -> None:
    """A model that is there already, and words: MetaUAS and MetaUAS*+, under names of their own, and WinCLIP from 0 shots on."""
    folder = make_project(tmp_path / "project")
    settings = MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16))
    record = {"detector": "metauas", "settings": settings_as_json(settings)}
    save_model(folder / "given", create_detector(settings, build_encoder(settings.encoder, 64)), record)
    clip = {"library": "open_clip", "name": make_clip(tmp_path / "clip"), "weights": "hub"}
    content = edited(folder, synthesis={"pairs": 0}, sampling={"shots": [0, 1], "seeds": [0]})
    content["pipelines"]["small"] |= {
        "sources": [],
        "inpainter": {"model": "none"},
        "training": {},
        "detectors": {
            "as-given": {"kind": "metauas", "model": "given", "resolution": 64, "decoder_channels": [16] * 5},
            "with-prior": {"kind": "metauas+", "model_of": "as-given"},
            "winclip": {"encoder": clip, "resolution": 64},
        },
    }
    content["datasets"] = {"packaged": [], "folders": {"parts": {"path": "parts"}}, "objects": {}}
    write_pipelines(folder, content)
    assert "ingest_parts" in ran(folder, api)
    rows = read_metrics(folder / "data/evaluation/small/metrics.csv")
    assert {(row.detector, row.shots) for row in rows if row.protocol == "class-specific"} == {
        ("as-given", 1),
        ("with-prior", 1),
        ("winclip", 0),
        ("winclip", 1),
    }
    assert sha256(folder / "data/models/small/candidate/as-given/model.safetensors") == sha256(folder / "given/model.safetensors")
    config = json.loads((folder / "given" / "config.json").read_text())
    (folder / "given" / "config.json").write_text(json.dumps({**config, "note": "another"}))
    assert "train_small_as-given" in ran(folder, api)  # the model folder that the settings name is a dependency
    assert run(folder, "changepair", "promote", "small", PREFECT_API_URL=api).returncode == 0
    prompted = ("--model", "small/with-prior", "--prompt", "parts/bricks/train/good/0.png", "--format", "csv")
    printed = run(folder, "changepair", "predict", *prompted, "parts/bricks/test/hole")
    assert printed.returncode == 0 and len(printed.stdout.splitlines()) == 3, printed.stderr


@pytest.mark.slow
def test_without_a_server_a_run_that_changes_nothing_is_quick(tmp_path: Path) -> None:
    """Under 25 seconds with a Prefect of its own, under 3 for DVC."""
    folder = make_project(tmp_path / "project")
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    assert run(folder, "changepair", "retrain", "small", **home).returncode == 0
    for command, limit in ((("dvc", "repro"), 3.0), (("changepair", "retrain", "small"), 25.0)):
        start = time.perf_counter()
        assert run(folder, *command, **home).returncode == 0
        assert time.perf_counter() - start < limit
