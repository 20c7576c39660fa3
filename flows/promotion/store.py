"""Store the files of the current model in DVC's cache, and check them out into in-use/."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_data.hashfile.tree import Tree

from changepair.flows.promotion.history import CURRENT, Model, Stored, folder_of
from changepair.flows.running.places import CANDIDATE, EVALUATION, IN_USE, SETTINGS_NAME
from changepair.flows.running.records import read_record
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text, written_beside
from changepair.tasks.scoring.results import DECISION_NAME, DRAWS_NAME

POINTER = "in-use.dvc"


@dataclass(frozen=True)
class MeasuredAs:
    """Settings and code of a model's evaluation: sections of pipelines.yaml, and hashes of code by detector or stage."""

    detectors: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    code: Mapping[str, str]


def store_candidate(pipeline: str, detectors: Sequence[str], measured_as: MeasuredAs) -> Stored:
    """Store the candidate in DVC's cache: a folder per trained detector, and the settings of its evaluation."""
    folder = folder_of(pipeline)
    folder.mkdir(parents=True, exist_ok=True)  # without training, no stage creates it
    with tempfile.TemporaryDirectory(prefix=".taken-", dir=folder) as work:
        taken = Path(work) / IN_USE
        taken.mkdir()
        for detector in detectors:
            shutil.copytree(folder / CANDIDATE / detector, taken / detector)
        for name in (DRAWS_NAME, DECISION_NAME):
            shutil.copyfile(EVALUATION / pipeline / name, taken / name)
        write_text(taken / SETTINGS_NAME, json.dumps(asdict(measured_as), indent=1, sort_keys=True, default=str) + "\n")
        with Repo() as repo, repo.lock:
            staged, meta, stored = build(repo.cache.local, str(taken), repo.fs, "md5")
            transfer(staged, repo.cache.local, {stored.hash_info}, shallow=False)
    return Stored(str(stored.hash_info.value), int(meta.size or 0), int(meta.nfiles or 0))


def settle(pipeline: str, model: Model) -> None:
    """Check out a model into in-use/ from DVC's cache or its remote. Raises BadInput, and keeps in-use/, if neither has it."""
    folder = folder_of(pipeline)
    pointer = folder / POINTER
    # A frozen out: DVC stores and moves the files, but never records changed or missing files as a new version.
    wanted = f"frozen: true\nouts:\n- md5: {model.hash}\n  size: {model.size}\n  nfiles: {model.files}\n  hash: md5\n  path: {IN_USE}\n"
    before = pointer.read_bytes() if pointer.is_file() else None  # a merge or an edit may have damaged it
    if before != wanted.encode():
        write_text(pointer, wanted)
    try:
        with Repo() as repo:
            if not _cached(repo, model):
                repo.fetch(targets=[str(pointer)])
                if not _cached(repo, model):  # a checkout would then empty in-use/
                    raise DvcException("not in the remote")
            repo.checkout(targets=[str(pointer)], force=True)
    except DvcException as error:
        if before is not None and before != wanted.encode():
            with written_beside(pointer) as file:
                file.write_bytes(before)
        raise BadInput(
            f"{folder / CURRENT}: model {model.candidate[:8]} is neither in DVC's cache nor in a remote; run `dvc push {pointer}` on the "
            f"machine that has it, or promote the new model with `changepair promote {pipeline}`"
        ) from error


def _cached(repo: Repo, model: Model) -> bool:
    cache = repo.cache.local
    try:
        return all(cache.exists(entry.value) for _key, _meta, entry in Tree.load(cache, HashInfo("md5", model.hash)))
    except FileNotFoundError:
        return False


def read_measured_as(pipeline: str) -> MeasuredAs:
    """Read the settings that the current model was measured with. Raises BadInput if they are missing or damaged."""
    folder = folder_of(pipeline)
    hint = f"restore it with `dvc checkout --force {folder / POINTER}`, or `dvc pull`"
    return read_record(MeasuredAs, folder / IN_USE / SETTINGS_NAME, hint)
