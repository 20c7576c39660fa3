"""Server, worker and service as deploy/ starts them: its commands, environments, health checks and rights, on a read-only root.

SQLite stands for PostgreSQL, and a folder for the S3 store. Docker is not needed; network and mount namespaces are, and so root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, commit, make_project, run, write_pipelines
from containers import HOME, USER, container
from machines import machines
from processes import wait_until
from test_deploy_files import SERVICES, VARIABLE

pytestmark = pytest.mark.slow

LOGIN, TOKEN = "ci:of-the-containers", "of-the-api"  # pragma: allowlist secret
ASK = """
import httpx, sys
with open(sys.argv[2], "rb") as picture:
    sent = {"files": {"pictures": picture}, "data": {"kit": "line"}, "headers": {"Authorization": sys.argv[1]}}
    print(httpx.post("http://127.0.0.1:8000/v1/predict", **sent).text)
"""


def environment_of(name: str, settings: dict[str, str]) -> dict[str, str]:
    """The environment of a service, with the values of deploy/.env in `settings`; the database is SQLite."""
    given = {key: value for key, value in SERVICES[name]["environment"].items() if "DATABASE" not in key}
    filled = {key: VARIABLE.sub(lambda match: settings.get(match[1], ""), value).replace("$$", "$") for key, value in given.items()}
    return {key: value.replace("http://server:", "http://127.0.0.1:") for key, value in filled.items() if not key.startswith("AWS_")}


def test_server_worker_and_service_do_their_work_as_in_their_containers(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    project = make_project(shared / "project", TINY)
    write_pipelines(project, {**TINY, "runs": {"pool": "machines", "repository": str(shared / "origin.git")}})
    prompt, picture = "parts/bricks/train/good/0.png", project / "parts/bricks/test/good/0.png"
    written = run(project, "changepair", "predict", "--prompt", prompt, "--write-kit", str(shared / "kits/line"))
    assert written.returncode == 0, written.stderr
    scored = run(project, "changepair", "predict", "--kit", str(shared / "kits/line"), str(picture), "--format", "json")
    assert run(project, "dvc", "remote", "add", "--default", "store", str(shared / "remote")).returncode == 0
    commit(project, "the project")
    subprocess.run(["git", "clone", "--quiet", "--bare", str(project), str(shared / "origin.git")], check=True)
    for name in ("work", "remote"):
        (shared / name).mkdir(exist_ok=True)
    for place in (shared, *shared.rglob("*")):
        os.chown(place, USER, USER, follow_symlinks=False)
    settings = {"SERVER_AUTH": LOGIN, "API_TOKEN": TOKEN, "REPOSITORIES": str(shared / "origin.git")}

    def volumes(name: str) -> dict[Path, str]:
        own = {"worker": {shared / "work": f"{HOME}/.changepair"}, "api": {shared / "kits": "/home/kits"}}
        return {shared: str(shared), **own.get(name, {})}

    with machines(1) as [machine], ExitStack() as stack:

        def start(name: str, *command: str, log: str, cwd: str = "/") -> subprocess.Popen[bytes]:
            variables = environment_of(name, settings)
            place = tmp_path / log
            tmpfs = SERVICES[name]["tmpfs"]
            started = container(machine, command, place, environment=variables, volumes=volumes(name), tmpfs=tmpfs, cwd=cwd)
            return stack.enter_context(started)

        def service(name: str) -> None:
            command = [part.replace("/kits", "/home/kits").replace("${POOL:-machines}", "machines") for part in SERVICES[name]["command"]]
            process = start(name, *command, log=f"{name}.log")
            check = SERVICES[name]["healthcheck"]["test"][2:]
            healthy = lambda: not subprocess.run(machine.command(sys.executable, *check), capture_output=True).returncode  # noqa: E731
            wait_until(healthy, process=process, what=f"the health of {name}")

        service("server")
        deployed = start("worker", "changepair", "deploy", log="deploy.log", cwd=str(project))
        assert deployed.wait(timeout=90) == 0, (tmp_path / "deploy.log").read_text()
        service("worker")
        service("api")
        asked = start("worker", "prefect", "deployment", "run", "scheduled/small", log="asked.log")
        assert asked.wait(timeout=90) == 0, (tmp_path / "asked.log").read_text()
        answered = subprocess.run(
            machine.command(sys.executable, "-c", ASK, f"Bearer {TOKEN}", str(picture)), capture_output=True, text=True
        )
        [answer] = json.loads(answered.stdout)["predictions"]
        assert answer["score"] == json.loads(scored.stdout)["score"]
        results = ["git", "-c", "safe.directory=*", "-C", str(shared / "origin.git"), "rev-parse", "changepair/small"]
        done: Any = lambda: not subprocess.run(results, capture_output=True).returncode  # noqa: E731
        wait_until(done, seconds=300, what="the results of the run")
    assert {place.stat().st_uid for place in shared.rglob("*")} == {USER}
