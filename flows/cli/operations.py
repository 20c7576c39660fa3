"""Schedule runs, watch them and the production line, and check the machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from changepair.flows import doctor
from changepair.flows.arguments import check_options
from changepair.flows.cli.command import Commands
from changepair.flows.monitoring import review
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.bounds import MOST, Between

TITLE = "operations"
EXAMPLES = {
    "deploy": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair deploy",
    "serve": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair serve",
    "work": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair work --pool machines --limit 1",
    "ui": "changepair ui --port 4300",
    "status": "changepair status quickstart --last 10",
    "watch": "changepair watch mine",
    "verify": "changepair verify",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    for name, what, work in (
        ("deploy", "make the server's deployments those of pipelines.yaml, one for each enabled pipeline", deploy),
        ("serve", "deploy, and run on this machine what is due, until stopped", serve),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=lambda _arguments, work=work: work())
    working = commands.add_parser("work", help="run a worker of a work pool; when it is stopped, its runs save first")
    working.add_argument("--pool", required=True, help="the work pool that runs.pool names")
    working.add_argument("--limit", type=int, metavar="RUNS", help="how many runs at the same time (any number)")
    working.add_argument("--with-healthcheck", action="store_true", help="serve /health, as PREFECT_WORKER_WEBSERVER_HOST and _PORT say")
    working.set_defaults(run=run_worker)
    watching = commands.add_parser("ui", help="start a Prefect server to watch runs in, and print its address")
    watching.add_argument("--host", default="127.0.0.1", help="which address to listen on (%(default)s: this machine alone)")
    watching.add_argument("--port", type=int, default=4200, help="%(default)s")
    watching.set_defaults(run=ui)
    telling = commands.add_parser("status", help="print the last runs, their stages and metrics, and the model in use; needs no server")
    telling.add_argument("pipeline", nargs="?")
    telling.add_argument("--last", type=int, default=3, metavar="RUNS", help="how many runs of each pipeline (%(default)s)")
    telling.set_defaults(run=status)
    verifying = commands.add_parser("verify", help="read DVC's cache through, and take out what is damaged")
    verifying.set_defaults(run=lambda _arguments: verify())
    scoring = commands.add_parser("watch", help="score the new pictures of a pipeline's watched folder with its current model")
    scoring.add_argument("pipeline")
    scoring.set_defaults(run=lambda arguments: score(arguments.pipeline))
    review.add(commands)
    doctor.add(commands)


def score(pipeline: str) -> None:
    from changepair.flows.monitoring.line import line_of

    line_of(pipeline).check_normals()  # report mistakes before a server is started

    from changepair.flows.running.exit_handling import end_at_ctrl_c_when_saved
    from changepair.tasks.common.stopping import on_sigterm

    end_at_ctrl_c_when_saved()

    with on_sigterm():
        from changepair.flows.monitoring.watch import watch as flow
        from changepair.flows.running.api import end_with_parent, one_api, run
        from changepair.flows.running.workers import cluster_or_threads

        end_with_parent()
        with one_api():
            state = run(flow.with_options(task_runner=cluster_or_threads(read_pipelines().execution)), pipeline=pipeline)
            Console().print(f"{pipeline}: {state.name}: {state.message}", soft_wrap=True, markup=False, highlight=False)


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
        Console().print(f"{path}: damaged in DVC's cache, and taken out; `dvc pull` or `dvc repro` brings it back", soft_wrap=True)
    if not spoilt:
        Console().print("everything in DVC's cache is as it was made")
