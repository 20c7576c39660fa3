"""Keeps the clean clone in which a scheduled run works, and sends its results: the artifacts to DVC's remote, dvc.lock and figures to Git.

<workspaces>/
  cache/               DVC's cache, shared by all clones of this machine
  <pipeline>/          the clone, kept from run to run: what a run that was killed had made, the next one goes on with
  <pipeline>.lock      held by the run that works in it

The results of a run are one commit: the tree of the revision that it worked at, and in it what the run wrote that Git keeps. Its parents
are the results before it and that revision. `git checkout` of it and `dvc pull` bring back all of a run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.config import Config, ConfigError
from dvc.utils.serialize import dump_yaml

from changepair.flows.plan import DVC_YAML, PLAN, is_of
from changepair.flows.promotion.store import POINTER
from changepair.flows.running.cache import verify
from changepair.flows.running.places import EVALUATION, MODELS
from changepair.flows.running.provenance import LOCK, locked, parse_lock
from changepair.flows.schedule.commands import CommandFailed, clear_locks, committed, git, of_this_environment, own, run
from changepair.flows.schedule.origins import refuse_other_origin
from changepair.flows.settings import overriding
from changepair.flows.settings.reader import FILE
from changepair.flows.settings.runs import Results, branch_of
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.common.texts import decode, read_text

IDENTITY = {"NAME": "changepair", "EMAIL": "changepair@localhost"}
AUTHOR = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in IDENTITY.items()}
LOCAL = Path(".dvc/config.local")
UNFINISHED = Path(".git/changepair-unfinished")  # within a clone, while a run works there: the results it began from
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Workspace:
    """One pipeline's clone."""

    root: Path
    pipeline: str
    repository: str
    results: Results
    remote: str | None
    remote_timeout: float
    purpose: str = ""  # what the clone's name ends with, where it is not the one that the pipeline is retrained in

    @property
    def folder(self) -> Path:
        return self.root / f"{self.pipeline}{self.purpose}"

    @property
    def branch(self) -> str:
        """The branch of the results, or the start of their tags' names."""
        return branch_of(self.pipeline)


def prepare(workspace: Workspace, revision: str, tell: Tell) -> str:
    """Makes the clone what `revision` is, with what the last run's results hold; gives the revision's commit. Raises BadInput."""
    folder = workspace.folder
    if not (folder / ".git").is_dir():
        _clone(workspace)
    clear_locks(folder, tell)
    refuse_other_origin(folder, workspace.repository)
    git(folder, "fetch", "--quiet", "--prune", "--tags", "--force", "origin", what=f"cannot fetch from {workspace.repository}")
    commit = _commit_of(folder, f"origin/{revision}") or _commit_of(folder, revision)
    if commit is None:
        raise BadInput(f"runs.revision: {workspace.repository} has no branch, tag or commit {revision!r}")
    before = _last_results(workspace)
    left = _left_by_a_run_that_died(folder, before)
    git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    git(folder, "clean", "-d", "--force", "--quiet", f"--exclude=/{LOCAL.as_posix()}")
    _share_cache(workspace)
    _take_over(workspace, commit, before, left)
    write_text(folder / UNFINISHED, before or "")
    if before is not None:
        tell(f"{workspace.pipeline}: at {commit[:8]}, with the results of {before[:8]}")
    else:
        tell(f"{workspace.pipeline}: at {commit[:8]}, with no results before")
    return commit


def override(workspace: Workspace, settings: Mapping[str, Any]) -> list[str]:
    """Writes settings of the pipeline into the clone's pipelines.yaml; gives a line for each that changed. Raises BadInput."""
    return overriding.override(workspace.pipeline, settings, workspace.folder / FILE) if settings else []


def pull(workspace: Workspace, tell: Tell, *, model_alone: bool = False) -> None:
    """Brings what dvc.lock names, and the model in use, into the clone, from the shared cache and, where there is one, from the remote.
    What cannot be had is told and left for the stages to make again."""
    dvc = own("dvc")
    targets = _targets(workspace.folder, workspace.pipeline, model_alone=model_alone)
    if not targets:
        return
    for path in verify(workspace.folder):
        tell(f"{workspace.pipeline}: {path} is damaged in the cache; it was taken out, and is fetched or made again")
    if has_remote(workspace):
        try:
            _dvc(workspace, [*dvc, "fetch", *_remote(workspace), *targets], "cannot pull", workspace.remote_timeout)
        except CommandFailed as error:
            tell(f"{workspace.pipeline}: {error}; what is missing is made again")
    try:
        _dvc(workspace, [*dvc, "checkout", "--force", "--allow-missing", *targets], "cannot check out", None)
    except CommandFailed as error:
        tell(f"{workspace.pipeline}: {error}; what is missing is made again")


def retrain(workspace: Workspace, tell: Tell) -> None:
    """Runs `changepair retrain` in the clone, by its code. Raises CommandFailed with the line that it ended with."""
    command = own("changepair.flows.cli", "retrain", workspace.pipeline)
    run(command, cwd=workspace.folder, what=f"retrain {workspace.pipeline}", tell=tell, environment=of_this_environment(workspace.folder))


def score(workspace: Workspace, tell: Tell) -> None:
    """Runs `changepair watch` in the clone, by its code. Raises CommandFailed with the line that it ended with."""
    (workspace.folder / UNFINISHED).unlink(missing_ok=True)  # nothing of a retraining is made here
    command = own("changepair.flows.cli", "watch", workspace.pipeline)
    run(command, cwd=workspace.folder, what=f"score {workspace.pipeline}", tell=tell, environment=of_this_environment(workspace.folder))


def push(workspace: Workspace) -> None:
    """Sends the artifacts to the remote, if there is one. Raises BadInput if it does not take them."""
    if not has_remote(workspace):
        return
    targets = _targets(workspace.folder, workspace.pipeline)
    try:
        command = [*own("dvc"), "push", *_remote(workspace), *targets]
        _dvc(workspace, command, "cannot push", workspace.remote_timeout)
    except CommandFailed as error:
        raise BadInput(f"{workspace.pipeline}: {error}; its artifacts are kept in {workspace.root}, and the next run sends them") from error


def commit_results(workspace: Workspace, revision: str, message: str, *, promoted: bool) -> str | None:
    """Commits what the run wrote that Git keeps, in the clone; gives the commit, or None if that is nothing new. Nothing is sent yet.
    promoted: whether a model was put to use; it becomes a version of the pipeline's artifact, a tag by GTO's convention."""
    results = None if workspace.results == "none" else _commit(workspace, revision, message)
    if results is not None and promoted:
        from gto import api  # half a second

        api.register(str(workspace.folder), workspace.pipeline, results, author=IDENTITY["NAME"], author_email=IDENTITY["EMAIL"])
    (workspace.folder / UNFINISHED).unlink(missing_ok=True)
    return results


def _commit(workspace: Workspace, revision: str, message: str) -> str | None:
    folder, before = workspace.folder, _last_results(workspace)
    git(
        folder,
        "add",
        "--all",
        "--",
        *(path for path in (LOCK.as_posix(), DVC_YAML.as_posix(), PLAN.as_posix(), FILE.as_posix(), "data") if (folder / path).exists()),
    )
    tree = git(folder, "write-tree")
    if before is not None and tree == git(folder, "rev-parse", f"{before}^{{tree}}"):
        return None
    parents = [part for parent in (before, revision) if parent is not None for part in ("-p", parent)]
    results = run(["git", "commit-tree", tree, *parents, "-m", message], cwd=folder, what="git commit-tree", environment=AUTHOR).strip()
    name = f"refs/heads/{workspace.branch}" if workspace.results == "branch" else f"refs/tags/{workspace.branch}/{_next_number(workspace)}"
    git(folder, "update-ref", name, results)
    return results


def send_results(workspace: Workspace) -> str | None:
    """Pushes the results that the repository does not have yet; gives the newest's name, None if there is none. Raises BadInput."""
    folder = workspace.folder
    if workspace.results == "none":
        return None
    pattern = f"refs/heads/{workspace.branch}" if workspace.results == "branch" else f"refs/tags/{workspace.branch}/*"
    names = git(folder, "for-each-ref", "--format=%(refname)", pattern).split()
    if not names:
        return None
    versions = git(folder, "for-each-ref", "--format=%(refname)", f"refs/tags/{workspace.pipeline}@v*").split()
    try:
        git(folder, "push", "--quiet", "origin", *names, *versions, what=f"cannot push to {workspace.repository}")
    except CommandFailed as error:
        raise BadInput(f"{workspace.pipeline}: {error}; the results are kept in {folder}, and the next run sends them") from error
    newest = max(names, key=_number) if workspace.results == "tag" else names[0]
    return newest.split("/", 2)[2]


def has_remote(workspace: Workspace) -> bool:
    """Tells whether DVC has a remote to use. Raises BadInput if the one that runs.remote names is not there."""
    text = run([*own("dvc"), "remote", "list"], cwd=workspace.folder, what="dvc remote list")
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if workspace.remote is not None and workspace.remote not in names:
        raise BadInput(f"runs.remote: DVC has no remote {workspace.remote!r}; add it with `dvc remote add` and commit .dvc/config")
    return workspace.remote is not None or "(default)" in text


def _clone(workspace: Workspace) -> None:
    if workspace.folder.is_dir() and any(workspace.folder.iterdir()):
        raise BadInput(f"{workspace.folder}: is there and is no clone of ours; move it away, or name another folder in runs.workspaces")
    partial = workspace.root / f".{workspace.folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    workspace.root.mkdir(parents=True, exist_ok=True)
    git(
        workspace.root,
        "clone",
        "--quiet",
        "--no-checkout",
        "--",
        workspace.repository,
        str(partial),
        what=f"cannot clone {workspace.repository}",
        timeout=3600,
    )
    os.replace(partial, workspace.folder)  # which may be there, and empty


def _commit_of(folder: Path, name: str) -> str | None:
    try:
        return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").splitlines()[-1]
    except CommandFailed:
        return None


def _share_cache(workspace: Workspace) -> None:
    """Set the cache in DVC's configuration of this clone alone, and keep what a user wrote there, such as the keys of a store. DVC links
    where the disk can, so that a big artifact is there once."""
    folder = workspace.folder / ".dvc"
    if not folder.is_dir():
        raise BadInput(f"{workspace.repository}: no project of changepair: there is no folder .dvc in it")
    try:
        with Config(str(folder)).edit("local") as config:
            config["cache"]["dir"] = str(workspace.root.resolve() / "cache")
            config["cache"].setdefault("type", ["reflink", "hardlink", "copy"])
    except ConfigError as error:
        raise BadInput(
            f"{workspace.folder / LOCAL}: DVC cannot read its configuration ({' '.join(str(error).split())}); repair it"
        ) from error


def _last_results(workspace: Workspace) -> str | None:
    """Finds the newest results: those of this clone if they follow on those of the repository, as after a run that could not send them."""
    folder = workspace.folder
    if workspace.results == "tag":
        names = git(folder, "for-each-ref", "--format=%(refname)", f"refs/tags/{workspace.branch}/*").split()
        return _commit_of(folder, max(names, key=_number)) if names else None
    local, remote = (_commit_of(folder, f"refs/{kind}/{workspace.branch}") for kind in ("heads", "remotes/origin"))
    if local is None or remote is None:
        return local or remote
    if git(folder, "merge-base", local, remote) == remote:
        return local
    git(folder, "update-ref", f"refs/heads/{workspace.branch}", remote)  # another machine has gone on
    return remote


def _number(name: str) -> int:
    ending = name.rpartition("/")[2]
    return int(ending) if ending.isdecimal() else -1


def _next_number(workspace: Workspace) -> int:
    names = git(workspace.folder, "for-each-ref", "--format=%(refname)", f"refs/tags/{workspace.branch}/*").split()
    return max((_number(name) for name in names), default=0) + 1


def _left_by_a_run_that_died(folder: Path, before: str | None) -> Mapping[str, Any]:
    """Reads dvc.lock as such a run left it, which names what it had made; empty if the last run ended, or others have committed results
    since."""
    file = folder / UNFINISHED
    if not file.is_file() or file.read_text(encoding="utf-8") != (before or "") or not (folder / LOCK).is_file():
        return {}
    try:
        return parse_lock(read_text(folder / LOCK), LOCK)
    except BadInput:  # whatever killed it may have left anything
        return {}


def _take_over(workspace: Workspace, commit: str, before: str | None, left: Mapping[str, Any]) -> None:
    """Puts what the last run's results say of the pipeline into the clone: its stages in dvc.lock, its figures, its models; and of a run
    that died the stages that it had ended."""
    folder, pipeline = workspace.folder, workspace.pipeline
    new, old = (_lock_at(folder, at) if at is not None else {} for at in (commit, before))
    if before is not None:
        for path in (MODELS / pipeline, EVALUATION / pipeline):
            names = git(folder, "ls-tree", "-r", "--name-only", before, "--", path.as_posix()).splitlines()
            if names:
                git(folder, "checkout", "--quiet", before, "--", *names)
    stages = dict(new.get("stages", {}))
    for lock in (old, left):
        stages |= {name: stage for name, stage in lock.get("stages", {}).items() if is_of(name, pipeline)}
    if before is not None and stages == old.get("stages", {}):
        git(folder, "checkout", "--quiet", before, "--", LOCK.as_posix())
    elif stages:
        dump_yaml(str(folder / LOCK), {"schema": "2.0", **new, **old, "stages": stages})


def _lock_at(folder: Path, commit: str) -> Mapping[str, Any]:
    """Reads a commit's dvc.lock; empty if it has none. Raises BadInput if DVC could not use it."""
    data, named = committed(folder, commit, LOCK), f"{LOCK} of {commit[:8]}"
    return {} if data is None else parse_lock(decode(data, named), named)


def _targets(folder: Path, pipeline: str, *, model_alone: bool = False) -> list[str]:
    """Lists what DVC is to push and pull: the pipeline's stages, and the model in use."""
    pointer = MODELS / pipeline / POINTER
    if model_alone:
        return [pointer.as_posix()] if (folder / pointer).is_file() else []
    remote = [name for name in locked(folder) if is_of(name, pipeline)]
    return [*remote, *([pointer.as_posix()] if (folder / pointer).is_file() else [])]


def _remote(workspace: Workspace) -> list[str]:
    return ["--remote", workspace.remote] if workspace.remote is not None else []


def _dvc(workspace: Workspace, command: list[str], what: str, timeout: float | None) -> str:
    return run(command, cwd=workspace.folder, what=what, timeout=timeout, environment=of_this_environment(workspace.folder))
