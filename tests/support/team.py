"""A team's repository, DVC remote and project, for tests of scheduled runs."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from conftest import TINY, commit, make_project, run, write_pipelines
from processes import started
from servers import ask

SCHEDULED = """
import json, sys
from changepair.flows.schedule.flow import scheduled
from changepair.flows.running.exit_handling import exit_on_bad_input
exit_on_bad_input(lambda: scheduled(**json.loads(sys.argv[1])))
"""
"""A program: the flow as a worker starts it, with the parameters that its argument gives as JSON."""


class Team:
    """A repository, a remote, and a project deployed to a server."""

    def __init__(self, top: Path, api: str, runs: dict[str, Any], remote: list[str]) -> None:
        self.top, self.api = top, api
        self.project, self.origin, self.workspaces = top / "project", top / "origin.git", top / "workspaces"
        content = copy.deepcopy(TINY)
        content["runs"] = {"workspaces": str(self.workspaces), **runs}
        shutil.move(make_project(self.project, content) / "parts", top / "parts")  # pictures are where all machines see them
        content["datasets"]["folders"]["parts"]["path"] = str(top / "parts")  # type: ignore[index]
        write_pipelines(self.project, content)
        for command in (["dvc", "remote", "add", "--default", "store", remote[0]], *remote[1:]):
            result = run(self.project, *(command if isinstance(command, list) else command.split()))
            assert result.returncode == 0, result.stderr
        self.second = ""
        self.runs: list[dict[str, Any]] = []
        """The flow runs on the server after the two that the fixture makes: tests, in whatever order, make more."""
        self.first = commit(self.project, "the project")
        subprocess.run(["git", "clone", "--quiet", "--bare", str(self.project), str(self.origin)], check=True)
        git(self.project, "remote", "add", "origin", str(self.origin))

    def scheduled(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the flow in a process of its own as a worker starts it."""
        parameters = {"pipeline": "small", "repository": str(self.origin), "workspaces": str(self.workspaces), "remote_timeout": 60}
        parameters |= json.loads(environment.pop("parameters", "{}"))
        return run(self.top, "python", "-c", SCHEDULED, json.dumps(parameters), **{"PYTHONPATH": str(self.project), **environment})

    def state(self) -> str:
        """Gives the state of the newest run, with its message."""
        scheduled_runs = [item for item in ask(self.api, "flow_runs") if item["name"].startswith("small at ")]
        newest = max(scheduled_runs, key=lambda item: item["created"])
        return f"{newest['state']['name']}: {newest['state']['message']}"

    def reproduce(self, revision: str) -> str:
        """Gives what `dvc repro` prints in a new clone of that revision, with nothing but the remote."""
        folder = self.top / f"again-{revision.replace('/', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", str(self.origin), str(folder)], check=True)
        git(folder, "checkout", "--quiet", revision)
        pulled = run(folder, "dvc", "pull")
        assert pulled.returncode == 0, pulled.stderr
        return run(folder, "dvc", "repro").stdout

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a worker of the pool, which may run the code of the team's repository."""
        variables = {"PREFECT_API_URL": self.api, "CHANGEPAIR_REPOSITORIES": str(self.origin)}
        return started(self.project, "prefect", "worker", "start", "--pool", "machines", **variables)

    def run_by_a_worker(self) -> None:
        """Runs the deployment by a worker of its pool that is started for it."""
        with self.worker() as worker:
            asked = run(self.project, "prefect", "deployment", "run", "scheduled/small", "--watch", PREFECT_API_URL=self.api)
            assert asked.returncode == 0, asked.stdout + asked.stderr + (self.project / "output.log").read_text(errors="replace")
            assert worker.poll() is None

    def change(self, old: str = "evaluation:\n      resolution: 64", new: str = "evaluation:\n      resolution: 48") -> str:
        """Makes a new revision in which pipelines.yaml says something else, the evaluation if nothing is said; gives its commit."""
        file = self.project / "pipelines.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        revision = commit(self.project, "changed")
        git(self.project, "push", "--quiet", "origin", "main")
        return revision


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
