"""Shards are the same wherever they are made; killed anywhere, nothing whole is lost and the next run ends with the same bytes."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusters import cluster
from conftest import ROOT, make_project, run, write_pipelines
from processes import kill_group, started, wait_until
from servers import ask, free_port

from changepair.tasks.common.files import sha256

pytestmark = pytest.mark.slow  # what a run of the whole pipeline does is in test_pipeline.py
SYNTHESIZE = ("python", "-m", "changepair.flows.synthesize", "small")
SHARDS = 20


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, api: str) -> Path:
    """The small pipeline with everything made that synthesize reads."""
    folder = make_project(tmp_path_factory.mktemp("run") / "project")
    result = run(folder, "dvc", "repro", "inpainter_small", PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def execution(folder: Path, **values: Any) -> None:
    content = yaml.safe_load((folder / "pipelines.yaml").read_text())
    content["execution"] = values
    content["pipelines"]["small"]["synthesis"].update({"pairs": 5 * SHARDS, "pairs_per_shard": 5})
    write_pipelines(folder, content)


def pairs_made(folder: Path) -> dict[str, str]:
    pairs = folder / "data" / "pairs" / "small"
    return {str(file.relative_to(pairs)): sha256(file) for file in sorted(pairs.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(project: Path, api: str) -> dict[str, str]:
    execution(project, workers=2, runner="processes")
    result = run(project, *SYNTHESIZE, PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    files = pairs_made(project)
    assert len([name for name in files if name.endswith(".tar")]) == SHARDS
    assert not list((project / "data" / "checkpoints" / "small" / "pairs").iterdir())
    return files


def test_threads_make_the_same_bytes(project: Path, api: str, undisturbed: dict[str, str]) -> None:
    execution(project, workers=3, runner="threads")
    result = run(project, *SYNTHESIZE, PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    assert pairs_made(project) == undisturbed


def test_a_dask_cluster_of_its_own_makes_the_same_bytes(project: Path, api: str, undisturbed: dict[str, str]) -> None:
    execution(project, workers=2, runner="dask")
    result = run(project, *SYNTHESIZE, PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    assert pairs_made(project) == undisturbed


def records(folder: Path) -> list[Path]:
    return list((folder / "data" / "checkpoints" / "small" / "pairs").glob("*/records/*.json"))


def wait_for_records(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: len(records(folder)) >= count, process=process, what=f"the making of {count} shards")


def test_killed_midway_the_next_run_keeps_whole_shards_and_ends_with_the_same_bytes(
    project: Path, api: str, undisturbed: dict[str, str]
) -> None:
    execution(project, workers=2, runner="processes")
    with started(project, *SYNTHESIZE, PREFECT_API_URL=api) as process:
        wait_for_records(project, 4, process)
    kept = len(records(project))
    assert 4 <= kept < SHARDS
    assert pairs_made(project) == undisturbed  # what an earlier run made is there until a new one is whole
    before = {record: record.stat().st_mtime_ns for record in records(project)}
    work = next((project / "data" / "checkpoints" / "small" / "pairs").iterdir())
    (work / "pairs" / ".00019.tar.1.partial").write_bytes(b"half")
    result = run(project, *SYNTHESIZE, PREFECT_API_URL=api, PREFECT_LOGGING_LEVEL="INFO")
    assert result.returncode == 0, result.stdout + result.stderr
    kept_shards = re.search(r"(\d+) of 20 shards are there from a run that was stopped", result.stdout + result.stderr)
    assert kept_shards and int(kept_shards[1]) == len(before)
    assert pairs_made(project) == undisturbed and not work.exists()


def test_a_dask_worker_killed_midway_costs_its_shards_a_retry_and_nothing_else(
    project: Path, api: str, undisturbed: dict[str, str]
) -> None:
    """A scheduler and two workers of their own, as on two machines that share the checkout."""
    port = free_port()
    execution(project, workers=2, runner="dask", address=f"tcp://127.0.0.1:{port}")
    quiet = {"PREFECT_API_URL": api, "PREFECT_LOGGING_LEVEL": "WARNING"}
    with (
        cluster(project, port, {"first": (), "second": ()}, **quiet) as workers,
        started(project, *SYNTHESIZE, **quiet) as process,
    ):
        wait_for_records(project, 3, process)
        kill_group(workers["first"])
        assert process.wait(timeout=150) == 0, (project / "output.log").read_text()[-3000:]
        assert workers["second"].poll() is None
    assert pairs_made(project) == undisturbed


def test_a_dask_cluster_scores_the_categories_to_the_same_bytes(project: Path, api: str) -> None:
    """Two workers, one of which dies with the first part that it has."""
    score = ("python", "-m", "changepair.flows.score", "small", "patch-residual")
    scores = project / "data" / "scores" / "small" / "patch-residual"
    execution(project, workers=2, runner="processes")
    result = run(project, *score, PREFECT_API_URL=api)
    assert result.returncode == 0, result.stdout + result.stderr
    alone = {file.relative_to(scores): sha256(file) for file in scores.rglob("*") if file.is_file()}
    shutil.rmtree(scores)
    port = free_port()
    execution(project, workers=2, runner="dask", address=f"tcp://127.0.0.1:{port}")
    quiet = {"PREFECT_API_URL": api, "PREFECT_LOGGING_LEVEL": "WARNING"}
    before = {one["id"] for one in ask(api, "task_runs")}

    def parts() -> list[dict[str, Any]]:
        return [one for one in ask(api, "task_runs") if one["id"] not in before and one["name"].startswith("score patch-residual, part")]

    with (
        cluster(project, port, {"first": (), "second": ()}, **quiet) as workers,
        started(project, *score, **quiet) as process,
    ):
        wait_until(lambda: any(one["state_type"] == "RUNNING" for one in parts()), process=process, what="the start of a part")
        kill_group(workers["first"])
        assert process.wait(timeout=150) == 0, (project / "output.log").read_text()[-3000:]
        assert workers["second"].poll() is None
    assert {file.relative_to(scores): sha256(file) for file in scores.rglob("*") if file.is_file()} == alone
    wait_until(lambda: {one["name"] for one in parts()} == {f"score patch-residual, part {part}" for part in range(2)}, what="two parts")


def test_a_source_that_cannot_be_read_stops_the_run_with_one_line_that_names_it(
    project: Path, api: str, undisturbed: dict[str, str]
) -> None:
    execution(project, workers=2, runner="processes")
    photo = project / "data" / "pictures" / "sample-photos" / "train" / "good" / "cat.png"
    whole = photo.read_bytes()
    photo.unlink()  # it may be a link into DVC's cache
    photo.write_bytes(whole[:1000])
    try:
        result = run(project, *SYNTHESIZE, PREFECT_API_URL=api)
    finally:
        photo.write_bytes(whole)
    assert result.returncode == 2 and "Traceback" not in result.stdout + result.stderr
    assert re.match(r"changepair: data/pictures/sample-photos/train/good/cat\.png: a source picture that was ingested cannot be read any more", result.stderr.splitlines()[-1])  # noqa: E501  # fmt: skip
    assert pairs_made(project) == undisturbed


def test_a_full_disk_stops_the_run_with_one_line_that_names_the_file(project: Path, api: str, undisturbed: dict[str, str]) -> None:
    """The disk is a small one of its own where that can be mounted, else with a limit on the size of a file."""
    execution(project, workers=2, runner="processes")
    checkpoints = project / "data" / "checkpoints"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(checkpoints)], capture_output=True).returncode == 0
    try:
        limit = None if mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        variables = {**os.environ, "PYTHONPATH": str(project), "PREFECT_API_URL": api, "PREFECT_LOGGING_LEVEL": "WARNING"}
        result = subprocess.run(
            [sys.executable, *SYNTHESIZE[1:]], cwd=project, env=variables, capture_output=True, text=True, preexec_fn=limit, timeout=120
        )
        left = [file for file in checkpoints.rglob("*.partial")]
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(checkpoints)], check=True)
    assert result.returncode == 2 and "Traceback" not in result.stdout + result.stderr, result.stdout + result.stderr
    assert re.search(r"changepair: .*checkpoints/small/pairs/\w+/\S+: cannot be written, the disk is full \(.*\); make room and run again", result.stderr.splitlines()[-1])  # noqa: E501  # fmt: skip
    assert not left and pairs_made(project) == undisturbed


def test_the_record_of_a_shard_holds_what_the_index_says(project: Path, undisturbed: dict[str, str]) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(project / "data" / "pairs" / "small" / "pairs.parquet").to_pylist()
    assert len(rows) == 5 * SHARDS and [row["index"] for row in rows] == list(range(5 * SHARDS))
    assert {row["kind"] for row in rows} == {"appearance", "disappearance", "exchange", "local-region", "distractor", "none"}
    assert json.loads(json.dumps(rows)) == rows


def test_the_pages_kinds_of_runner_are_the_settings() -> None:
    from typing import get_args

    from changepair.flows.settings.pipelines import Runner

    page = (ROOT / "docs/pages/explanation/change-pairs.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in get_args(Runner))
