"""The server on PostgreSQL, installed from Debian's packages and started by the test itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, make_project, run
from servers import ask, free_port, prefect_server

pytestmark = pytest.mark.slow
PASSWORD = "correct-horse-battery"  # pragma: allowlist secret


def binary(name: str) -> Path | None:
    binaries = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return binaries[-1] if binaries else None


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server of the test's own, on loopback; gives its port."""
    if os.environ.get("CI"):
        pytest.skip("never in CI")
    if binary("initdb") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("no PostgreSQL here: apt-get install postgresql")
        result = subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", "postgresql"], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"PostgreSQL could not be installed: {result.stderr.strip().splitlines()[-1]}")
    home, port = Path("/tmp") / f"changepair-postgresql-{os.getpid()}", free_port()
    home.mkdir(mode=0o755)
    as_its_user = []
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(home, "postgres", "postgres")
        as_its_user = ["runuser", "-u", "postgres", "--"]
    (home / "password").write_text(PASSWORD)
    (home / "password").chmod(0o644)
    data = home / "data"
    command = [
        str(binary("initdb")),
        "-D",
        str(data),
        "-U",
        "prefect",
        "--auth=scram-sha-256",
        f"--pwfile={home / 'password'}",
        "-E",
        "UTF8",
    ]
    control = [str(binary("pg_ctl")), "-D", str(data), "-w"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
    try:
        subprocess.run([*as_its_user, *command], check=True, capture_output=True, cwd="/")
        subprocess.run([*as_its_user, *control, "-l", str(home / "log"), "-o", options, "start"], check=True, capture_output=True, cwd="/")
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        create = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "-d", "postgres", "-c", "CREATE DATABASE prefect"]
        subprocess.run(create, check=True, capture_output=True, env=environment, cwd="/")
        yield port
    finally:
        subprocess.run([*as_its_user, *control, "-m", "fast", "stop"], capture_output=True, cwd="/")
        shutil.rmtree(home, ignore_errors=True)


def test_a_retrain_is_kept_in_postgresql(postgresql: int, tmp_path: Path) -> None:
    """The settings are those of deploy/compose.yaml; and the password is in no file of the server's or the project's."""
    settings = {
        "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
        "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
        "PREFECT_SERVER_DATABASE_PORT": str(postgresql),
        "PREFECT_SERVER_DATABASE_USER": "prefect",
        "PREFECT_SERVER_DATABASE_NAME": "prefect",
        "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD,
    }
    folder = make_project(tmp_path / "project", TINY)
    with prefect_server(tmp_path / "prefect", **settings) as api:
        result = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api)
        assert result.returncode == 0, result.stderr
        runs = {item["name"]: item for item in ask(api, "flow_runs")}
    assert not (tmp_path / "prefect" / "prefect.db").exists()
    parents = {runs[name]["parent_task_run_id"] for name in ("sample small", "metrics small")}
    asked = "select count(*) from flow_run where state_type = 'COMPLETED'"
    query = ["psql", "-h", "127.0.0.1", "-p", str(postgresql), "-U", "prefect", "-d", "prefect", "-tAc", asked]
    answer = subprocess.run(query, check=True, capture_output=True, text=True, env={**os.environ, "PGPASSWORD": PASSWORD})
    # The run itself and a run each of ingest, sample, inpainter, synthesize, score, metrics and report.
    assert int(answer.stdout) == len(runs) == 8 and None not in parents
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
