"""Faults, made to happen: nothing made is lost or half-written, the next run ends with the same artifacts, and the
user is told in one line. docs/pages/how-to/recover.md lists these."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL, STAGES, TINY, make_project, run, write_pipelines
from processes import kill_group, started, wait_until
from servers import ask, free_port, prefect_server

pytestmark = pytest.mark.slow
OF_TINY = (
    "code",
    "ingest_parts",
    "sample_small",
    "inpainter_small",
    "synthesize_small",
    "score_small_patch-residual",
    "metrics_small",
    "report_small",
)
RETRAIN = ("changepair", "retrain", "small")
Made = tuple[Path, dict[str, str]]  # a project, and the hashes of its artifacts


def longer() -> dict[str, Any]:
    """The small pipeline with enough to do in each stage to be stopped in the middle of it."""
    content: dict[str, Any] = copy.deepcopy(SMALL)
    small = content["pipelines"]["small"]
    small["inpainter"] |= {"steps": 40}
    small["synthesis"] |= {"pairs": 60, "pairs_per_shard": 4}
    small["training"]["metauas"] |= {"epochs": 3}
    return content


def artifacts(folder: Path) -> dict[str, str]:
    """path -> md5 of every out, as dvc.lock has them; each is there, and nothing is half-written."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    hashes = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    assert all((folder / path).exists() for path in hashes)
    assert not list((folder / "data").rglob("*.partial"))
    return hashes


def journal(folder: Path) -> dict[str, Any]:
    """Reads the journal of the newest run."""
    files = sorted((folder / "data/runs/small").glob("*.json"), key=lambda file: int(file.stem))
    return json.loads(files[-1].read_text()) if files else {"number": 0, "stages": []}


def at_work(folder: Path, stage: str, after: int) -> bool:
    """Tells whether a run later than number `after` is in that stage."""
    now = journal(folder)
    return now["number"] > after and any(item["name"] == stage and item["state"] == "Running" for item in now["stages"])


def forget(folder: Path) -> None:
    """Everything that was made."""
    for path in ("data", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
        if (folder / path).is_dir():
            shutil.rmtree(folder / path)
        else:
            (folder / path).unlink(missing_ok=True)


def retrained(folder: Path, api: str) -> None:
    result = run(folder, *RETRAIN, PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, api: str) -> Made:
    folder = make_project(tmp_path_factory.mktemp("run") / "project", longer())
    retrained(folder, api)
    return folder, artifacts(folder)


def stage_processes(folder: Path) -> list[int]:
    """Lists the processes that run a stage of the project."""
    import psutil

    names = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:2] == ["-m"] and process.cmdline()[2].startswith("changepair.flows.") and process.cwd() == str(folder):
                names.append(process.pid)
        except (psutil.Error, IndexError):
            continue
    return names


def test_killed_in_each_stage_the_next_run_goes_on_and_ends_with_the_same_artifacts(undisturbed: Made, api: str) -> None:
    """They are killed as by a power cut: the run and all it started, with SIGKILL, once in every stage, a little later in each."""
    folder, expected = undisturbed
    forget(folder)
    for number, stage in enumerate(STAGES):
        with started(folder, *RETRAIN, PREFECT_API_URL=api) as process:
            wait_until(lambda stage=stage, number=number: at_work(folder, stage, number), process=process, what=stage)  # type: ignore[misc]
            time.sleep(0.5 + number / 5)
            assert process.poll() is None
            kill_group(process)
        assert "Died" in run(folder, "changepair", "status").stdout
    retrained(folder, api)
    assert artifacts(folder) == expected
    assert [item["state"] for item in journal(folder)["stages"]] == ["Up to date"] * (len(STAGES) - 1) + ["Ran"]


def test_a_stage_whose_run_was_killed_stops_by_itself_and_the_next_run_waits_for_it(undisturbed: Made, api: str) -> None:
    folder, expected = undisturbed
    forget(folder)
    with started(folder, *RETRAIN, PREFECT_API_URL=api) as process:
        wait_until(lambda: list((folder / "data/checkpoints/small/pairs").glob("*/records/*.json")), process=process, what="a shard")
        process.kill()
        process.wait()
        assert stage_processes(folder)
        retrained(folder, api)
    assert artifacts(folder) == expected and not stage_processes(folder)
    assert "changepair: stopped (synthesize, " in (folder / "output.log").read_text()


@pytest.mark.parametrize(
    ("stage", "reached", "message"),
    [
        ("inpainter_small", "data/checkpoints/small", r"train inpainter, step \d+ of 40"),
        ("synthesize_small", "data/checkpoints/small/pairs/*/records/*.json", r"synthesize, \d+ of 15 shards made"),
        ("train_small_metauas", "data/checkpoints/small/metauas/checkpoint.pt", r"train metauas, step \d+ of \d+"),
    ],
)
def test_sigterm_finishes_the_step_saves_and_exits_143(undisturbed: Made, api: str, stage: str, reached: str, message: str) -> None:
    folder, expected = undisturbed
    shutil.rmtree(folder / "data/checkpoints", ignore_errors=True)
    forget_stage(folder, stage)
    number = journal(folder)["number"]
    (folder / "output.log").unlink(missing_ok=True)
    with started(folder, *RETRAIN, PREFECT_API_URL=api) as process:
        wait_until(lambda: at_work(folder, stage, number), process=process, what=stage)
        wait_until(lambda: working(folder, stage, api), process=process, what=f"work in {stage}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    output = (folder / "output.log").read_text()
    last = [line for line in output.splitlines() if line.startswith("changepair: ")][-1]
    assert last.startswith("changepair: stopped (retrain, in stage ") and last.endswith("the next run resumes from there")
    assert re.search(rf"changepair: stopped \(retrain, in stage {stage}: {message}\); finished work is kept", output), output[-3000:]
    assert "Traceback" not in output and not stage_processes(folder)
    assert list(folder.glob(reached))
    retrained(folder, api)
    assert artifacts(folder) == expected


def forget_stage(folder: Path, stage: str) -> None:
    """Takes what it made out of the checkout, from the cache and from dvc.lock."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    for out in lock["stages"].pop(stage)["outs"]:
        shutil.rmtree(folder / out["path"]) if (folder / out["path"]).is_dir() else (folder / out["path"]).unlink()
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)


def working(folder: Path, stage: str, api: str) -> bool:
    """Tells whether the stage has made something that it goes on from, a shard; or is at its steps."""
    if stage == "synthesize_small":
        return bool(list((folder / "data/checkpoints/small").glob("pairs/*/records/*.json")))
    step = {"inpainter_small": "train inpainter", "train_small_metauas": "train metauas"}[stage]
    return any(one["name"].startswith(step) and one["state_type"] == "RUNNING" for one in ask(api, "task_runs"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, api: str) -> Made:
    """The pipeline that trains nothing, retrained once."""
    folder = make_project(tmp_path_factory.mktemp("tiny") / "project", TINY)
    retrained(folder, api)
    return folder, artifacts(folder)


def test_a_second_run_waits_or_is_skipped_and_never_works_in_the_same_checkout(tiny: Made, api: str) -> None:
    folder, expected = tiny
    forget(folder)  # so that the first has enough to do
    with started(folder, *RETRAIN, log="first.log", PREFECT_API_URL=api) as first:
        wait_until(lambda: at_work(folder, "ingest_parts", 0), process=first, what="ingest")
        output = run(folder, "changepair", "status").stdout
        assert f"running: retrain small (process {first.pid} on {socket.gethostname()}" in output
        with started(folder, *RETRAIN, log="second.log", PREFECT_API_URL=api) as second:
            wait_until(lambda: "waiting for it to end" in (folder / "second.log").read_text(), process=second, what="the wait")
            content = yaml.safe_load((folder / "pipelines.yaml").read_text())
            write_pipelines(folder, {**content, "runs": {"overlap": "skip"}})
            skipped = run(folder, *RETRAIN, PREFECT_API_URL=api)
            write_pipelines(folder, content)
            assert skipped.returncode == 0 and first.poll() is None
            assert first.wait(timeout=120) == 0 and second.wait(timeout=120) == 0
    states = [item["state"]["name"] for item in ask(api, "flow_runs") if item["name"] == "retrain small"]
    assert states.count("Skipped") == 1
    assert [item["state"] for item in journal(folder)["stages"]] == ["Up to date"] * len(OF_TINY)  # the second found all made
    assert artifacts(folder) == expected


def test_a_server_that_is_stopped_and_started_mid_run_costs_nothing(tiny: Made, tmp_path: Path) -> None:
    folder, expected = tiny
    forget(folder)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    with prefect_server(tmp_path / "prefect", port=port):
        context = started(folder, *RETRAIN, PREFECT_API_URL=url)
        process = context.__enter__()
        wait_until(lambda: at_work(folder, "sample_small", 0), process=process, what="sample")
    try:
        time.sleep(8)
        with prefect_server(tmp_path / "prefect", port=port):
            assert process.wait(timeout=180) == 0, (folder / "output.log").read_text()[-3000:]
            [retrain] = [item for item in ask(url, "flow_runs") if item["name"] == "retrain small"]
            assert retrain["state"]["name"] == "Promoted"
    finally:
        context.__exit__(None, None, None)
    assert artifacts(folder) == expected


@pytest.mark.parametrize("room", [64, 1536])
def test_a_full_disk_is_told_in_one_line_and_with_room_again_the_run_ends_as_ever(tiny: Made, api: str, tmp_path: Path, room: int) -> None:
    """A small disk of its own, filled but for that many KiB."""
    folder, expected = tiny
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here; that takes root and the right to mount")
    try:
        shutil.copytree(folder, disk / "project", ignore=shutil.ignore_patterns("data", "cache", "tmp", "dvc.lock", "*.log"), symlinks=True)
        project = disk / "project"
        free = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - room * 1024))
        result = run(project, *RETRAIN, PREFECT_API_URL=api)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr[-3000:]
        assert re.match(r"changepair: .*([Nn]o space left|disk is full)", result.stderr.splitlines()[-1]), result.stderr.splitlines()[-1]
        (disk / "ballast").unlink()
        retrained(project, api)
        assert artifacts(project) == expected
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_damaged_object_in_dvcs_cache_is_found_taken_out_and_made_again(tiny: Made, api: str) -> None:
    folder, expected = tiny
    retrained(folder, api)
    md5 = expected["data/episodes/small.targets.parquet"]
    cached = folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes()[:-100] + bytes(100))
    cached.chmod(0o444)
    (folder / "data/episodes/small.targets.parquet").unlink()
    output = run(folder, "changepair", "verify").stdout
    assert (
        output.startswith("data/episodes/small.targets.parquet: was damaged in DVC's cache and is removed")
        and len(output.splitlines()) == 1
    )
    retrained(folder, api)
    assert artifacts(folder) == expected
    assert run(folder, "changepair", "verify").stdout.strip() == "DVC's cache is intact"


@pytest.fixture(scope="module")
def faketime() -> Iterator[str]:
    """The library that moves a process's clock."""
    if shutil.which("faketime") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "--yes", "faketime"], capture_output=True)
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("no faketime here: apt-get install faketime")
    yield str(libraries[0])


def test_a_clock_that_jumps_changes_nothing(tiny: Made, tmp_path: Path, faketime: str) -> None:
    """A day back and then a day forward, in the middle of a run; its server's clock stays. And a run of the day before follows it."""
    folder, expected = tiny
    forget(folder)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    # The clock's file is read once a second. Read whenever the time is asked for, it made each stage some three times as long.
    jumping = {"LD_PRELOAD": faketime, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1", "DONT_FAKE_MONOTONIC": "1"}
    with prefect_server(tmp_path / "prefect") as api:
        with started(folder, *RETRAIN, PREFECT_API_URL=api, **jumping) as process:
            for stage, jump in (("sample_small", "-1d"), ("score_small_patch-residual", "+1d")):
                wait_until(lambda stage=stage: at_work(folder, stage, 0), process=process, what=stage)  # type: ignore[misc]
                clock.write_text(jump)
            assert process.wait(timeout=180) == 0, (folder / "output.log").read_text()[-3000:]
        assert artifacts(folder) == expected
        clock.write_text("-1d")
        result = run(folder, *RETRAIN, PREFECT_API_URL=api, **jumping)
        assert result.returncode == 0, result.stderr[-3000:]
    assert journal(folder)["number"] == 2 and [item["state"] for item in journal(folder)["stages"]] == ["Up to date"] * len(OF_TINY)
    assert run(folder, "changepair", "status").stdout.index("run 2, ") < run(folder, "changepair", "status").stdout.index("run 1, ")
