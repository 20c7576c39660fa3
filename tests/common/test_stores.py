"""Data in a store: datasets, masks and models named by URL are read where they are, and come to what the same files come to here."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL, make_project, run
from servers import free_port
from stores import S3, client, store, upload

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import place_of

pytestmark = pytest.mark.slow
METRICS = "data/evaluation/small/metrics.csv"
MODELS = "data/models/small/candidate"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which s3:// is a real server."""
    with store(tmp_path_factory.mktemp("s3"), free_port()) as url:
        yield {**S3, "AWS_ENDPOINT_URL": url}


def made(folder: Path, *stages: str) -> dict[str, str]:
    """The hashes of what some stages of a project made."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages for out in lock[stage]["outs"]}


def test_a_pipeline_over_datasets_in_a_store_comes_to_what_it_comes_to_here(
    retrained: Path, api_of_retrained: str, tmp_path: Path, s3: dict[str, str]
) -> None:
    content: dict[str, Any] = copy.deepcopy(SMALL)
    url = s3["AWS_ENDPOINT_URL"]
    content["datasets"]["folders"]["parts"]["path"] = upload(url, retrained / "parts", "datasets/parts")
    content["datasets"]["objects"]["sample-photos"]["path"] = upload(url, retrained / "masks", "datasets/masks")
    folder = make_project(tmp_path / "project", content)
    shutil.rmtree(folder / "parts")
    shutil.rmtree(folder / "masks")
    result = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api_of_retrained, **s3)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    same = ("synthesize_small", "train_small_metauas", "train_small_inctrl")
    assert made(folder, *same) == made(retrained, *same)
    assert (folder / METRICS).read_bytes() == (retrained / METRICS).read_bytes()
    assert not list((folder / "data/pictures/parts").rglob("*"))  # no copy of it here
    again = run(folder, "dvc", "repro", PREFECT_API_URL=api_of_retrained, **s3)
    assert again.returncode == 0 and "Data and pipelines are up to date." in again.stdout, again.stdout + again.stderr

    client(url).put_object(Bucket="changepair", Key="datasets/parts/bricks/test/good/notes.txt", Body=b"no picture")
    changed = run(folder, "dvc", "status", **s3)
    assert "s3://changepair/datasets/parts" in changed.stdout, changed.stdout + changed.stderr


def test_a_model_in_a_store_comes_to_what_it_comes_to_here(
    retrained: Path, api_of_retrained: str, tmp_path: Path, s3: dict[str, str]
) -> None:
    url = s3["AWS_ENDPOINT_URL"]
    content: dict[str, Any] = copy.deepcopy(SMALL)
    small = content["pipelines"]["small"]
    for name in ("metauas", "inctrl"):
        small["detectors"][name]["model"] = upload(url, retrained / MODELS / name, f"models/{name}")
    small["training"] = {}
    small["sources"], small["synthesis"], small["inpainter"] = [], {"pairs": 0}, {"model": "none"}
    content["datasets"]["packaged"], content["datasets"]["objects"] = [], {}
    folder = make_project(tmp_path / "project", content)
    result = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api_of_retrained, **s3)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for name in ("metauas", "inctrl"):
        weights = f"{MODELS}/{name}/model.safetensors"
        assert (folder / weights).read_bytes() == (retrained / weights).read_bytes(), name
    assert (folder / METRICS).read_bytes() == (retrained / METRICS).read_bytes()


def test_a_store_that_is_away_and_a_folder_that_is_not_there_are_told_in_a_line(tmp_path: Path, s3: dict[str, str]) -> None:
    content: dict[str, Any] = copy.deepcopy(SMALL)
    content["datasets"]["folders"]["parts"]["path"] = "s3://changepair/no/such"
    folder = make_project(tmp_path / "project", content)
    for environment in (s3, {**s3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}):
        result = run(folder, "python", "-m", "changepair.flows.ingest", "parts", **environment)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        assert "changepair/no/such" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("named", ["s3://", "s3:///", "nowhere://parts"])
def test_a_url_that_names_nothing_is_told(named: str) -> None:
    with pytest.raises(BadInput, match=r"names no folder in the store|no installed package reads nowhere://"):
        place_of(named)
