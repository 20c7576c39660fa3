"""What runs write down, as a merge, a disk or a hand leaves it: much of it is in Git. Every command that reads it answers, or says in one
line which file it is and what to do."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SMALL, commit, write_pipelines
from dvc.repo import Repo
from hostile import attack, changed, damaged
from team import git

from changepair.flows.cli.models import history
from changepair.flows.code import code_now
from changepair.flows.dry_run import _changed_code
from changepair.flows.promotion.gate import rollback
from changepair.flows.promotion.history import CURRENT, HISTORY, Model, folder_of, read_recommendation, write_current
from changepair.flows.promotion.store import MeasuredAs, read_measured_as
from changepair.flows.running.cache import verify
from changepair.flows.running.locks import FOLDER, holder
from changepair.flows.running.places import CODE, DATA, IN_USE, SETTINGS_NAME
from changepair.flows.running.provenance import LOCK, artifacts, locked
from changepair.flows.runs.journal import Journal, Time, read_runs, write_time
from changepair.flows.runs.states import RunState, StageState
from changepair.flows.runs.status import print_status
from changepair.flows.schedule.workspace import Workspace, prepare
from changepair.tasks.common.decoding import UNKNOWN
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.prediction.calibration import calibrated
from changepair.tasks.scoring.decision import Choice
from changepair.tasks.scoring.recommendation import Prompt, Recommendation, Use, write_recommendation
from changepair.tasks.scoring.results import DECISION_NAME

pytestmark = pytest.mark.attack
METRICS = {"parts": {"metauas": {"image_auroc": 0.8, "pixel_aupro": None}}}
MD5 = "0123456789abcdef" * 2
FIRST = Model(f"{MD5}.dir", 9, 2, MD5, "c" * 40, METRICS, "the first", "2026-01-02T03:04:05+00:00", choice="metauas")
UP = "../" * 6
"""From a folder of DVC's cache to above the project."""
LOCKED = f"""schema: '2.0'
stages:
  train_small_metauas:
    cmd: python -m changepair.flows.train small metauas
    deps:
    - path: data/pairs/small
      hash: md5
      md5: {MD5}.dir
      size: 9
      nfiles: 2
    outs:
    - path: data/models/small/candidate/metauas
      hash: md5
      md5: {MD5}.dir
      size: 9
      nfiles: 2
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with two decisions, a run, a time, a lock, what its code was, and what DVC has."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    for part in ("flows", "tasks", "requirements.lock"):
        (tmp_path / part).symlink_to(ROOT / part)
    write_pipelines(tmp_path, SMALL)
    write_current("small", FIRST)
    write_current("small", replace(FIRST, candidate=MD5[::-1], hash=f"{MD5[::-1]}.dir", time="2026-01-03T03:04:05+00:00"))
    pointer = f"frozen: true\nouts:\n- md5: {MD5}.dir\n  size: 9\n  nfiles: 2\n  hash: md5\n  path: in-use\n"
    write_text(folder_of("small") / "in-use.dvc", pointer)
    measured_as = MeasuredAs({"metauas": {"resolution": 64}}, {"resolution": 64}, {"metrics": "0" * 16})
    write_text(folder_of("small") / IN_USE / SETTINGS_NAME, json.dumps(asdict(measured_as)))
    threshold = calibrated([0.1, 0.2, 0.3], [0.5], 0.25)
    use = Use("parts", "bricks", "class-specific", 1, 0, 0.8, (Prompt("parts/0.png", "0" * 64),), threshold, UNKNOWN, 2, 1)
    write_recommendation(
        folder_of("small") / IN_USE / DECISION_NAME, Recommendation("metauas", Choice("metauas", 0.8, "image_auroc"), (use,))
    )
    run = Journal("small", "c" * 40, "")
    run.begin("metrics_small")
    run.end("metrics_small", StageState.RAN)
    run.close(RunState.PROMOTED, "the first", METRICS, MD5)
    write_time("small", "metauas", Time(0.1, "cpu"))
    write_text(FOLDER / "retrain.lock", json.dumps({"what": "retrain small", "process": 1, "host": "here", "started": FIRST.time}))
    write_text(Path(LOCK), LOCKED)
    code = code_now()  # takes a second
    monkeypatch.setattr("changepair.flows.dry_run.code_now", lambda: code)
    write_text(CODE / "report.json", json.dumps({"modules": {"changepair.flows.report": "0"}, "files": {}, "packages": {}}))


def merged(data: bytes, draw: random.Random) -> bytes:
    """Gives a text as a merge leaves it that nobody has gone through."""
    lines = data.splitlines(keepends=True)
    at, count = draw.randrange(len(lines)), draw.randrange(1, 4)
    ours, theirs = lines[at : at + count], [line.replace(b"0", b"1") for line in lines[at : at + count]]
    marked = [b"<<<<<<< HEAD\n", *ours, b"=======\n", *theirs, b">>>>>>> theirs\n"]
    return b"".join([*lines[:at], *marked, *lines[at + count :]])


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """Gives a text of JSON, whole or a line each, or of YAML, with bytes or values that it should not have."""
    match draw.choice(("bytes", "merge", "values", "values", "values", "deep", "swapped")):
        case "bytes":
            return damaged(data, draw)
        case "merge":
            return merged(data, draw)
        case "deep":
            return b"[" * draw.choice((10, 100_000))
        case "swapped":
            return draw.choice((b"", b"null", b"[]", b"{}", b"7", b'"x"', b"\xef\xbb\xbf" + data, data.decode().encode("utf-16")))
    lines = [data] if data.startswith(b"{\n") else data.splitlines()
    try:
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), draw)).encode()
    except ValueError:  # not JSON
        tree = None
        with suppress(yaml.YAMLError):
            tree = yaml.safe_load(data)
        return json.dumps(changed(tree, draw)).encode() if isinstance(tree, dict) else damaged(data, draw)
    return b"\n".join(lines)


def recommended() -> object:
    """Does what console and `predict` do with a decision."""
    read = read_recommendation(MODELS / IN_USE)
    return read and (read.lines, str(read), read.find(None), read.find("bricks"))


MODELS = folder_of("small")
OF_A_MODEL: list[Callable[[], Any]] = [
    lambda: print_status("small", 5),
    lambda: history("small"),
    lambda: rollback("small"),
]
READERS: dict[Path, list[Callable[[], Any]]] = {
    MODELS / CURRENT: OF_A_MODEL,
    MODELS / HISTORY: OF_A_MODEL,
    MODELS / IN_USE / SETTINGS_NAME: [lambda: read_measured_as("small")],
    MODELS / IN_USE / DECISION_NAME: [recommended],
    MODELS / "in-use.dvc": [lambda: rollback("small"), lambda: verify(Path())],
    DATA / "runs/small/1.json": [lambda: print_status("small", 5)],
    DATA / "runs/small/times/metauas.json": [lambda: print_status("small", 5)],
    FOLDER / "retrain.lock": [lambda: print_status("small", 5), lambda: holder(FOLDER / "retrain.lock")],
    LOCK: [lambda: artifacts(["train_small_metauas"]), lambda: verify(Path())],
    CODE / "report.json": [_changed_code],
}


@pytest.mark.parametrize("file", READERS, ids=lambda file: file.name)
def test_what_runs_write_down(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What one reader refuses keeps no other from answering."""
    whole = {one: one.read_bytes() for one in READERS}

    def attempt(data: bytes) -> None:
        for one, content in whole.items():
            one.write_bytes(content)
        file.write_bytes(data)
        refused = []
        for ask in READERS[file]:
            try:
                ask()
            except BadInput as error:
                refused.append(error)
        capsys.readouterr()  # it is not shown
        for error in refused:
            assert "\n" not in str(error), error
        if refused:
            raise refused[0]

    attack(f"records, {file.name}", lambda draw: spoilt(whole[file], draw), attempt)


@pytest.mark.parametrize("where", ["at the revision", "in the last results", "left by a run that died"])
def test_a_scheduled_run_begins_from_a_lock_that_dvc_can_use(where: str, tmp_path: Path) -> None:
    """A clone is prepared from the revision, the results before it, and what a run that died had made: the first two are people's
    and may be of a merge, the last is used where it is whole."""
    place = Workspace(tmp_path / "workspaces", "small", str(tmp_path / "origin"), "branch", None, 60)
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", "origin"], check=True, cwd=tmp_path)
    origin = tmp_path / "origin"
    write_text(origin / ".dvc/config", "")
    write_text(origin / LOCK, LOCKED)
    commit(origin, "a project")
    git(origin, "branch", place.branch)
    branch = {"at the revision": "main", "in the last results": place.branch}.get(where)

    def attempt(data: bytes) -> None:
        if branch is None:
            prepare(place, "main", print)  # and dies
            (place.folder / LOCK).write_bytes(data)
        else:
            git(origin, "checkout", "--quiet", branch)
            (origin / LOCK).write_bytes(data)
            git(origin, "-c", "core.autocrlf=false", "add", "--", str(LOCK))
            commit(origin, "another")
        try:
            prepare(place, "main", print)
        except BadInput as error:
            assert branch is not None and f"dvc.lock of {git(origin, 'rev-parse', branch)[:8]}: " in str(error)
            raise
        try:
            locked(place.folder)
        except BadInput as error:
            raise AssertionError(f"a run was to begin from what DVC cannot use: {error}") from error

    attack(f"records, dvc.lock {where}", lambda draw: spoilt(LOCKED.encode(), draw), attempt)


def test_as_they_are_all_are_read() -> None:
    assert [run.state for run in read_runs("small")] == [RunState.PROMOTED]
    refused = []
    for ask in {ask for readers in READERS.values() for ask in readers}:
        try:
            ask()
        except BadInput as error:
            refused.append(str(error))
    assert refused and all("is neither in DVC's cache nor in a remote" in one for one in refused)  # a rollback finds no model there


@pytest.mark.parametrize("path", ["../outside/kept", "{}/outside/kept", "link/kept", "data/../../outside/kept", "link/../kept", "."])
@pytest.mark.parametrize("md5", [MD5, MD5[:2] + UP + "outside/kept", "..//{}/outside/kept", f"{MD5}.dir"])
def test_no_file_is_deleted_by_a_name_that_dvc_would_not_give_it(path: str, md5: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`changepair verify` deletes what is damaged, by the names in dvc.lock, which may be somebody else's: here the objects are damaged."""
    above = Path.cwd()
    write_text(above / "outside/kept", "mine")
    (above / "project").mkdir()
    monkeypatch.chdir(above / "project")
    Repo.init(no_scm=True).close()
    Path("link").symlink_to(above / "outside")
    objects = Path(f".dvc/cache/files/md5/{MD5[:2]}")
    write_text(objects / MD5[2:], "damaged")
    listed = [{"md5": name, "relpath": "x"} for name in (f"..//{above}/outside/kept", MD5[:2] + UP + "outside/kept", MD5)]
    write_text(objects / f"{MD5[2:]}.dir", json.dumps(listed))
    out = {"path": path.format(above), "md5": md5.format(above), "hash": "md5"}
    write_text(Path(LOCK), json.dumps({"schema": "2.0", "stages": {"train": {"cmd": "true", "outs": [out]}}}))
    verify(Path())
    assert (above / "outside/kept").read_text() == "mine" and Path("link").is_symlink() and Path(LOCK).is_file()


def test_a_merge_that_nobody_went_through_is_called_one() -> None:
    file = folder_of("small") / HISTORY
    file.write_bytes(b"<<<<<<< HEAD\n" + file.read_bytes())
    with pytest.raises(BadInput, match=r"history.jsonl: line 1: damaged \(merge conflict markers\); restore the file from"):
        history("small")
