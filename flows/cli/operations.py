"""Add the commands that schedule runs, show them, and check the machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from changepair.flows import doctor
from changepair.flows.arguments import check_options
from changepair.flows.cli.command import PIPELINE, Commands
from changepair.tasks.common.bounds import MOST, Between

TITLE = "schedule and operate"
WORK = "Run a worker of a Prefect work pool. When you stop it, its runs save their progress before they end."
STATUS = "Show the last runs, their stages and metrics, and the current model. This needs no Prefect server."
EXAMPLES = {
    "deploy": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair deploy",
    "serve": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair serve",
    "work": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair work --pool machines --limit 1",
    "ui": "changepair ui --port 4300",
    "status": "changepair status quickstart --last 10",
    "verify": "changepair verify",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    for name, what, work in (
        ("deploy", "Sync deployments with pipelines.yaml", deploy),
        ("serve", "Sync deployments and run due pipelines on this machine", serve),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=lambda _arguments, work=work: work())
    working = commands.add_parser("work", help="Run a worker of a Prefect work pool", description=WORK)
    working.add_argument("--pool", required=True, help="name of the work pool, as in runs.pool of pipelines.yaml")
    working.add_argument("--limit", type=int, metavar="RUNS", help="maximum number of concurrent runs (default: unlimited)")
    working.add_argument(
        "--with-healthcheck", action="store_true", help="serve /health at PREFECT_WORKER_WEBSERVER_HOST and PREFECT_WORKER_WEBSERVER_PORT"
    )
    working.set_defaults(run=run_worker)
    watching = commands.add_parser("ui", help="Start a Prefect server and print its address and login")
    watching.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    watching.add_argument("--port", type=int, default=4200, help="port to listen on (default: %(default)s)")
    watching.set_defaults(run=ui)
    telling = commands.add_parser("status", help="Show the last runs, their metrics and the current model", description=STATUS)
    telling.add_argument("pipeline", nargs="?", help=f"{PIPELINE} (default: every pipeline)")
    telling.add_argument(
        "--last", type=int, default=3, metavar="RUNS", help="number of runs to show for each pipeline (default: %(default)s)"
    )
    telling.set_defaults(run=status)
    verifying = commands.add_parser("verify", help="Verify the hashes of DVC's cache and remove damaged files")
    verifying.set_defaults(run=lambda _arguments: verify())
    doctor.add(commands)


def deploy() -> None:
    from changepair.flows.schedule.deployments import deploy as work

    for line in work():
        Console().print(line, soft_wrap=True, markup=False, highlight=False)


def serve() -> None:
    from changepair.flows.schedule.deployments import serve as work

    work(lambda line: Console().print(line, soft_wrap=True, markup=False, highlight=False))


def run_worker(arguments: argparse.Namespace) -> None:
    if arguments.limit is not None:
        check_options(arguments, {"limit": Between(1, MOST)})

    from changepair.flows.schedule.work import work

    sys.exit(work(arguments.pool, limit=arguments.limit, healthcheck=arguments.with_healthcheck))


def ui(arguments: argparse.Namespace) -> None:
    from changepair.flows.running.server import start

    start(arguments.host, arguments.port)


def status(arguments: argparse.Namespace) -> None:
    from changepair.flows.runs.status import print_status

    check_options(arguments, {"last": Between(0, MOST)})
    print_status(arguments.pipeline, arguments.last)


def verify() -> None:
    from changepair.flows.running.cache import verify as work

    spoilt = work(Path())
    for path in spoilt:
        Console().print(f"{path}: was damaged in DVC's cache and is removed; restore it with `dvc pull` or `dvc repro`", soft_wrap=True)
    if not spoilt:
        Console().print("DVC's cache is intact")
