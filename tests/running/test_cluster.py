"""Every stage that divides goes to the workers of a Dask cluster, and comes to what one machine comes to."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clusters import LOG, cluster
from conftest import ROOT, SMALL, copied, make_project, run, save, write_pipelines
from lines import old, picture
from machines import Machine, machines
from processes import kill_group, started, wait_until
from servers import ask, free_port
from stores import BUCKET, S3

from changepair.tasks.common.files import sha256
from changepair.tasks.monitoring.record import Record

pytestmark = pytest.mark.slow
INGEST, SYNTHESIZE = ("python", "-m", "changepair.flows.ingest", "many"), ("python", "-m", "changepair.flows.synthesize", "small")
SCORE = ("python", "-m", "changepair.flows.score", "small", "patch-residual")
PICTURES = 4600  # three portions of ingestion


@pytest.fixture(scope="module")
def project(retrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was retrained, with a larger dataset beside it, one picture of which is broken."""
    folder = copied(retrained, tmp_path_factory.mktemp("cluster") / "project")
    pixels = np.random.default_rng(0).integers(0, 255, (PICTURES, 8, 8, 3), dtype=np.uint8)
    for number in range(PICTURES):
        save(pixels[number], folder / f"many/{number:05d}.png")
    (folder / "many/00007.png").write_bytes((folder / "many/00007.png").read_bytes()[:40])
    return folder


def told(folder: Path, change: Any = None, **execution: Any) -> None:
    """Writes the project's settings: where it runs, and what `change` does to them."""
    content = yaml.safe_load((folder / "pipelines.yaml").read_text())
    content["execution"] = execution
    content["datasets"]["folders"]["many"] = {"path": "many", "layout": "photographs"}
    if change is not None:
        change(content["pipelines"]["small"])
    write_pipelines(folder, content)


@pytest.fixture(scope="module")
def workers(project: Path, api_of_retrained: str) -> Iterator[str]:
    """Two workers, one of which has a GPU, or says so; gives the scheduler's address."""
    port = free_port()
    with cluster(project, port, {"first": ("--resources", "GPU=1"), "second": ()}, PREFECT_API_URL=api_of_retrained):
        yield f"tcp://127.0.0.1:{port}"


def made(folder: Path, path: str) -> dict[str, str]:
    """The hash of each file in a folder that was made; the folder is taken away."""
    hashes = {str(file.relative_to(folder / path)): sha256(file) for file in (folder / path).rglob("*") if file.is_file()}
    shutil.rmtree(folder / path)
    return hashes


def done_by(folder: Path, worker: str, task: str) -> int:
    """How many tasks of a name a worker has said that it ended."""
    return len(re.findall(rf"Task run '{task}[^']*' - Finished in state Completed", (folder / LOG.format(worker)).read_text()))


def test_a_dataset_is_read_by_the_workers_one_of_which_dies(project: Path, workers: str, api_of_retrained: str) -> None:
    manifest, listed = (project / f"data/manifests/many.{ending}" for ending in ("parquet", "rejected.csv"))
    told(project, workers=2)
    assert run(project, *INGEST, PREFECT_API_URL=api_of_retrained).returncode == 0
    alone = manifest.read_bytes(), listed.read_bytes()
    assert b"00007.png" in alone[1]
    (project / "data/checkpoints/ingest/many.sqlite").unlink()
    told(project, runner="dask", address=workers)
    before = {one["id"] for one in ask(api_of_retrained, "task_runs")}

    def looks() -> list[str]:
        return [
            one["state_type"]
            for one in ask(api_of_retrained, "task_runs")
            if one["id"] not in before and one["name"].startswith("check pictures")
        ]

    dying = ("dask", "worker", workers, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
    with (
        started(project, *dying, log="dying.log", PREFECT_API_URL=api_of_retrained) as third,
        started(project, *INGEST, PREFECT_API_URL=api_of_retrained) as process,
    ):
        wait_until(lambda: "RUNNING" in looks(), process=process, what="a portion's start")
        kill_group(third)
        assert process.wait(timeout=150) == 0, (project / "output.log").read_text()[-3000:]
    assert (manifest.read_bytes(), listed.read_bytes()) == alone
    wait_until(lambda: looks().count("COMPLETED") >= 3, what="three portions")


def test_what_computes_on_a_gpu_goes_to_the_workers_that_have_one(project: Path, workers: str, api_of_retrained: str) -> None:
    expected = {path: made(project, path) for path in ("data/pairs/small", "data/scores/small/patch-residual")}
    told(project, runner="dask", address=workers, gpu="GPU")
    for command in (SYNTHESIZE, SCORE):
        result = run(project, *command, PREFECT_API_URL=api_of_retrained)
        assert result.returncode == 0, result.stdout + result.stderr
    assert {path: made(project, path) for path in expected} == expected
    for task, count in (("generate shard", 3), ("score patch-residual, part", 2)):
        assert done_by(project, "first", task) >= count and not done_by(project, "second", task)


def test_new_pictures_are_scored_by_the_workers_each_once(project: Path, workers: str, api_of_retrained: str) -> None:
    for place in range(70):
        old(save(picture(place % 30, hole=place % 9 == 0), project / f"line/{place}.png"))
        save(picture(place), project / f"normals/{place}.png") if place < 30 else None
    watch = {
        "folder": "line",
        "prompts": "parts/bricks/train/good",
        "normals": "normals",
        "detector": "patch-residual",
        "false_alarms": 0.1,
    }
    scores = {}
    for record, execution in (("here", {"workers": 2}), ("there", {"runner": "dask", "address": workers})):
        told(project, lambda small, record=record: small.update(watch=watch | {"record": record}), **execution)  # type: ignore[misc]
        result = run(project, "changepair", "watch", "small", PREFECT_API_URL=api_of_retrained)
        assert result.returncode == 0, result.stdout + result.stderr
        rows = Record(project / record).rows()
        scores[record] = [(row.picture, row.score, row.verdict) for row in rows]
        assert all(Record(project / record).overlay(row).is_file() for row in rows if row.verdict == "anomalous")
    assert scores["here"] == scores["there"] and len(scores["here"]) == 70
    assert done_by(project, "first", "score part") + done_by(project, "second", "score part") == 3


def answers(head: Machine) -> bool:
    """Whether a machine's Prefect server does."""
    asked = f"import httpx; httpx.get('http://{head.address}:4200/api/health').raise_for_status()"
    return subprocess.run(head.command("python", "-c", asked), capture_output=True).returncode == 0


def test_two_machines_and_a_store_make_what_one_machine_makes(retrained: Path, tmp_path: Path) -> None:
    """The checkout is a folder that the machines share, the datasets are in a store, the server and the scheduler on a third machine."""
    content: dict[str, Any] = copy.deepcopy(SMALL)
    content["datasets"]["folders"]["parts"]["path"] = f"s3://{BUCKET}/parts"
    content["datasets"]["objects"]["sample-photos"]["path"] = f"s3://{BUCKET}/masks"
    with machines(3) as (head, first, second):
        content["execution"] = {"runner": "dask", "address": f"tcp://{head.address}:8786"}
        folder = make_project(tmp_path / "project", content)
        for name in ("parts", "masks"):
            (folder / name).rename(tmp_path / name)
        environment = {
            **S3,
            "AWS_ENDPOINT_URL": f"http://{head.address}:5000",
            "PREFECT_API_URL": f"http://{head.address}:4200/api",
            "PREFECT_HOME": str(tmp_path / "prefect"),
        }
        server = head.command("prefect", "server", "start", "--host", head.address, "--port", "4200")
        at = {"scheduler": head, "first": first, "second": second}
        with (
            started(tmp_path, *server, PREFECT_HOME=environment["PREFECT_HOME"], log="server.log"),
            started(tmp_path, *head.command("moto_server", "-H", head.address, "-p", "5000"), log="store.log"),
            cluster(folder, 8786, {"first": (), "second": ()}, at=at, **environment),
        ):
            wait_until(lambda: answers(head), what="the server")
            upload = f"from stores import *; url = 'http://{head.address}:5000'; client(url).create_bucket(Bucket=BUCKET);"
            upload += f"from pathlib import Path; [upload(url, Path({str(tmp_path)!r}, name), name) for name in ('parts', 'masks')]"
            result = run(ROOT / "tests/support", *head.command("python", "-c", upload), **environment)
            assert result.returncode == 0, result.stderr
            result = run(folder, *head.command("changepair", "retrain", "small"), **environment)
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    lock, expected = (yaml.safe_load((one / "dvc.lock").read_text())["stages"] for one in (folder, retrained))
    for stage in ("ingest_sample-photos", "synthesize_small", "train_small_metauas", "train_small_inctrl"):
        assert lock[stage]["outs"] == expected[stage]["outs"], stage
    metrics = "data/evaluation/small/metrics.csv"
    assert (folder / metrics).read_bytes() == (retrained / metrics).read_bytes()
    for task, count in (("check pictures", 2), ("generate shard", 3), ("score ", 6)):
        shares = [done_by(folder, worker, task) for worker in ("first", "second")]
        assert sum(shares) >= count, (task, shares)
    assert all(done_by(folder, worker, "") for worker in ("first", "second"))
