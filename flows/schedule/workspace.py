"""Maintain the clean clone of scheduled runs, and publish their results: artifacts to DVC's remote, dvc.lock and metrics to Git.

    <workspaces>/
      cache/               DVC's cache, shared by all clones on this machine
      <pipeline>/          the clone, kept between runs, so that a run resumes a killed one
      <pipeline>.lock      lock of the run that works in the clone

The results of a run are one commit. Its tree is the tree of the revision with the files of the run that Git tracks. Its parents are the
previous results and the revision. `git checkout` of this commit and `dvc pull` restore the whole run.
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

from changepair.flows.plan import is_of
from changepair.flows.promotion.store import POINTER
from changepair.flows.running.cache import verify
from changepair.flows.running.places import EVALUATION, MODELS
from changepair.flows.running.provenance import LOCK, locked, parse_lock
from changepair.flows.schedule.commands import CommandFailed, clear_locks, committed, git, of_this_environment, own, run
from changepair.flows.schedule.origins import refuse_other_origin
from changepair.flows.settings import overriding
from changepair.flows.settings.reader import FILE, load_yaml
from changepair.flows.settings.runs import Results, branch_of
from changepair.flows.stage import DVC_YAML, PLAN
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.common.texts import decode, read_text

IDENTITY = {"NAME": "changepair", "EMAIL": "changepair@localhost"}
AUTHOR = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in IDENTITY.items()}
LOCAL = Path(".dvc/config.local")
UNFINISHED = Path(".git/changepair-unfinished")  # in a clone, during a run: the commit of the results that the run started from
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Workspace:
    """The clone of one pipeline."""

    root: Path
    pipeline: str
    repository: str
    results: Results
    remote: str | None
    remote_timeout: float
    purpose: str = ""  # suffix of the clone's name, unless the clone is for retraining

    @property
    def folder(self) -> Path:
        return self.root / f"{self.pipeline}{self.purpose}"

    @property
    def branch(self) -> str:
        """Branch of the results, or prefix of their tags."""
        return branch_of(self.pipeline)


def prepare(workspace: Workspace, revision: str, tell: Tell) -> str:
    """Check out `revision` in the clone, with the last run's results; return the revision's commit. Raises BadInput."""
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
    left = _lock_of_killed_run(folder, before)
    git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    git(folder, "clean", "-d", "--force", "--quiet", f"--exclude=/{LOCAL.as_posix()}")
    _share_cache(workspace)
    _take_over(workspace, commit, before, left)
    write_text(folder / UNFINISHED, before or "")
    tell(f"{workspace.pipeline}: at {commit[:8]}, with {f'the results of {before[:8]}' if before is not None else 'no previous results'}")
    return commit


def override(workspace: Workspace, settings: Mapping[str, Any]) -> list[str]:
    """Write settings of the pipeline into the clone's pipelines.yaml; return a line for each change. Raises BadInput."""
    return overriding.override(workspace.pipeline, settings, workspace.folder / FILE) if settings else []


def pull(workspace: Workspace, tell: Tell, *, model_alone: bool = False) -> None:
    """Fetch the outs of dvc.lock and the current model into the clone, from the shared cache and the remote.

    Missing artifacts are reported, and the stages regenerate them.
    """
    targets = _targets(workspace.folder, workspace.pipeline, model_alone=model_alone)
    if not targets:
        return
    for path in verify(workspace.folder):
        tell(f"{workspace.pipeline}: {path} is damaged in the cache; removed it, to be fetched or regenerated")
    steps: list[tuple[str, list[str], float | None]] = [("cannot check out", ["checkout", "--force", "--allow-missing"], None)]
    if has_remote(workspace):
        steps.insert(0, ("cannot pull", ["fetch", *_remote(workspace)], workspace.remote_timeout))
    for what, command, timeout in steps:
        try:
            _dvc(workspace, what, *command, *targets, timeout=timeout)
        except CommandFailed as error:
            tell(f"{workspace.pipeline}: {error}; missing artifacts will be regenerated")


def retrain(workspace: Workspace, tell: Tell) -> None:
    """Run `changepair retrain` in the clone with the clone's code. Raises CommandFailed with its last line."""
    _ours(workspace, "retrain", "retrain", tell)


def score(workspace: Workspace, tell: Tell) -> None:
    """Run `changepair watch` in the clone with the clone's code. Raises CommandFailed with its last line."""
    (workspace.folder / UNFINISHED).unlink(missing_ok=True)  # scoring leaves no stages to resume
    _ours(workspace, "watch", "score", tell)


def push(workspace: Workspace) -> None:
    """Push the artifacts to the remote, if the project has one. Raises BadInput if that fails."""
    if not has_remote(workspace):
        return
    targets = _targets(workspace.folder, workspace.pipeline)
    try:
        _dvc(workspace, "cannot push", "push", *_remote(workspace), *targets, timeout=workspace.remote_timeout)
    except CommandFailed as error:
        raise BadInput(
            f"{workspace.pipeline}: {error}; the artifacts are kept in {workspace.root}, and the next run pushes them"
        ) from error


def commit_results(workspace: Workspace, revision: str, message: str, *, promoted: bool) -> str | None:
    """Commit the run's tracked files in the clone; return the commit, or None if nothing changed. Nothing is pushed yet.

    If a model was promoted (`promoted`), it also becomes a version of the pipeline's artifact, as a tag in GTO's format.
    """
    results = None if workspace.results == "none" else _commit(workspace, revision, message)
    if results is not None and promoted:
        from gto import api  # takes half a second

        api.register(str(workspace.folder), workspace.pipeline, results, author=IDENTITY["NAME"], author_email=IDENTITY["EMAIL"])
    (workspace.folder / UNFINISHED).unlink(missing_ok=True)
    return results


def _commit(workspace: Workspace, revision: str, message: str) -> str | None:
    folder, before = workspace.folder, _last_results(workspace)
    git(folder, "add", "--all", "--", *(str(path) for path in (LOCK, DVC_YAML, PLAN, FILE, "data") if (folder / path).exists()))
    tree = git(folder, "write-tree")
    if before is not None and tree == git(folder, "rev-parse", f"{before}^{{tree}}"):
        return None
    parents = [part for parent in (before, revision) if parent is not None for part in ("-p", parent)]
    results = run(["git", "commit-tree", tree, *parents, "-m", message], cwd=folder, what="git commit-tree", environment=AUTHOR).strip()
    name = f"refs/heads/{workspace.branch}"
    if workspace.results == "tag":
        tags = f"refs/tags/{workspace.branch}"
        name = f"{tags}/{max(map(_number, _refs(folder, f'{tags}/*')), default=0) + 1}"
    git(folder, "update-ref", name, results)
    return results


def send_results(workspace: Workspace) -> str | None:
    """Push the results that the repository lacks; return the name of the newest, or None without results. Raises BadInput."""
    folder = workspace.folder
    if workspace.results == "none":
        return None
    pattern = f"refs/heads/{workspace.branch}" if workspace.results == "branch" else f"refs/tags/{workspace.branch}/*"
    names = _refs(folder, pattern)
    if not names:
        return None
    versions = _refs(folder, f"refs/tags/{workspace.pipeline}@v*")
    try:
        git(folder, "push", "--quiet", "origin", *names, *versions, what=f"cannot push to {workspace.repository}")
    except CommandFailed as error:
        raise BadInput(f"{workspace.pipeline}: {error}; the results are kept in {folder}, and the next run pushes them") from error
    newest = max(names, key=_number) if workspace.results == "tag" else names[0]
    return newest.split("/", 2)[2]


def has_remote(workspace: Workspace) -> bool:
    """Return whether DVC has a remote to use.

    Raises BadInput if the remote in `runs.remote` does not exist, or if its path is relative: in the clone it names another folder.
    """
    text = run([*own("dvc"), "remote", "list"], cwd=workspace.folder, what="dvc remote list")
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if workspace.remote is not None and workspace.remote not in names:
        raise BadInput(f"runs.remote: DVC has no remote {workspace.remote!r}; add it with `dvc remote add` and commit .dvc/config")
    name, url = _committed_remote(workspace)
    if url and "://" not in url and not os.path.isabs(os.path.expanduser(url)):
        raise BadInput(
            f".dvc/config: the remote {name!r} has the relative path {url}, which is another folder in the clone of a scheduled run; "
            f"run `dvc remote modify {name} url <absolute path or URL>` and commit .dvc/config"
        )
    return workspace.remote is not None or "(default)" in text


def _committed_remote(workspace: Workspace) -> tuple[str, str]:
    """Return the name of the remote to use, and its URL as in .dvc/config. The URL is empty if the clone's config.local replaces it.

    Follows remote://<name>/<folder>, the URL of a remote in another one.
    """
    folder = workspace.folder / ".dvc"
    name = workspace.remote or Config(str(folder))["core"].get("remote", "")
    levels = [Config.load_file(str(file)) if file.is_file() else {} for file in (folder / Config.CONFIG, folder / Config.CONFIG_LOCAL)]
    ours, local = (level.get("remote", {}) for level in levels)
    for _follow in ours:
        url = "" if "url" in local.get(name, {}) else str(ours.get(name, {}).get("url", ""))
        if not url.startswith("remote://"):
            return name, url
        name = url.split("/")[2]
    return name, ""


def _clone(workspace: Workspace) -> None:
    if workspace.folder.is_dir() and any(workspace.folder.iterdir()):
        raise BadInput(f"{workspace.folder}: exists and is not a clone of changepair; move it, or set runs.workspaces to another folder")
    partial = workspace.root / f".{workspace.folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    workspace.root.mkdir(parents=True, exist_ok=True)
    command = ("clone", "--quiet", "--no-checkout", "--", workspace.repository, str(partial))
    git(workspace.root, *command, what=f"cannot clone {workspace.repository}", timeout=3600)
    os.replace(partial, workspace.folder)  # it may exist and be empty


def _commit_of(folder: Path, name: str) -> str | None:
    try:
        return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").splitlines()[-1]
    except CommandFailed:
        return None


def _share_cache(workspace: Workspace) -> None:
    """Set the shared cache in the clone's DVC configuration. The user's settings there, such as the keys of a store, stay unchanged.

    DVC links files if the file system supports it, so that a large artifact is stored once.
    """
    folder = workspace.folder / ".dvc"
    if not folder.is_dir():
        raise BadInput(f"{workspace.repository}: not a changepair project, because it has no folder .dvc; create one with `changepair new`")
    try:
        with Config(str(folder)).edit("local") as config:
            config["cache"]["dir"] = str(workspace.root.resolve() / "cache")
            config["cache"].setdefault("type", ["reflink", "hardlink", "copy"])
    except ConfigError as error:
        why = " ".join(str(error).split())
        raise BadInput(f"{workspace.folder / LOCAL}: DVC cannot read this configuration ({why}); repair the file") from error


def _last_results(workspace: Workspace) -> str | None:
    """Find the newest results. They are this clone's if those descend from the repository's, as after a failed push."""
    folder = workspace.folder
    if workspace.results == "tag":
        names = _refs(folder, f"refs/tags/{workspace.branch}/*")
        return _commit_of(folder, max(names, key=_number)) if names else None
    local, remote = (_commit_of(folder, f"refs/{kind}/{workspace.branch}") for kind in ("heads", "remotes/origin"))
    if local is None or remote is None:
        return local or remote
    if git(folder, "merge-base", local, remote) == remote:
        return local
    git(folder, "update-ref", f"refs/heads/{workspace.branch}", remote)  # another machine has pushed newer results
    return remote


def _number(name: str) -> int:
    ending = name.rpartition("/")[2]
    return int(ending) if ending.isdecimal() else -1


def _refs(folder: Path, pattern: str) -> list[str]:
    return git(folder, "for-each-ref", "--format=%(refname)", pattern).split()


def _lock_of_killed_run(folder: Path, before: str | None) -> Mapping[str, Any]:
    """Read the dvc.lock of a killed run, with its finished stages. {} if the last run ended, or others have committed results since."""
    file = folder / UNFINISHED
    if not file.is_file() or file.read_text(encoding="utf-8") != (before or "") or not (folder / LOCK).is_file():
        return {}
    try:
        return parse_lock(read_text(folder / LOCK), LOCK)
    except BadInput:  # a killed run may leave a damaged file
        return {}


def _take_over(workspace: Workspace, commit: str, before: str | None, left: Mapping[str, Any]) -> None:
    """Restore the pipeline's last results in the clone: stages in dvc.lock, metrics and models. Add the finished stages of a killed run."""
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
    data, named = committed(folder, commit, LOCK), f"{LOCK} of {commit[:8]}"
    return {} if data is None else parse_lock(decode(data, named), named)


def _targets(folder: Path, pipeline: str, *, model_alone: bool = False) -> list[str]:
    """List the targets that DVC pushes and pulls: the pipeline's stages, and the current model."""
    pointer = MODELS / pipeline / POINTER
    known = load_yaml(folder / DVC_YAML)["stages"] if (folder / DVC_YAML).is_file() else {}  # a lock also lists removed stages
    stages = [] if model_alone else [name for name in locked(folder) if name in known and is_of(name, pipeline)]
    return [*stages, pointer.as_posix()] if (folder / pointer).is_file() else stages


def _remote(workspace: Workspace) -> list[str]:
    return ["--remote", workspace.remote] if workspace.remote is not None else []


def _ours(workspace: Workspace, command: str, what: str, tell: Tell) -> None:
    folder, ours = workspace.folder, own("changepair.flows.cli", command, workspace.pipeline)
    run(ours, cwd=folder, what=f"{what} {workspace.pipeline}", tell=tell, environment=of_this_environment(folder))


def _dvc(workspace: Workspace, what: str, *arguments: str, timeout: float | None = None) -> None:
    folder = workspace.folder
    run([*own("dvc"), *arguments], cwd=folder, what=what, timeout=timeout, environment=of_this_environment(folder))
