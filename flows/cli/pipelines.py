"""Add the commands that create projects and run pipelines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from changepair.flows import explain, init, new, plots, sweep
from changepair.flows.cli.command import PIPELINE, Commands
from changepair.flows.running.console import Volume, hide_bars, set_volume
from changepair.flows.settings.missing import costs, missing_resources
from changepair.flows.settings.pipelines import enabled_pipeline, read_pipelines
from changepair.flows.settings.reader import FILE
from changepair.tasks.common.errors import BadInput

TITLE = "create and run pipelines"
RETRAIN = """\
Run the out-of-date stages of a pipeline. Then the promotion gate decides whether the new model becomes
the current model."""
SET = "Change settings of a pipeline in pipelines.yaml. Comments and formatting stay."
EXAMPLES = {
    "pipelines": "changepair pipelines",
    "plan": "changepair plan && dvc repro",
    "retrain": "changepair retrain line-3 --dry-run",
    "set": "changepair set line-3 evaluation.resolution=128 training.metauas.epochs=3",
}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    new.add(commands)
    init.add(commands)
    listing = commands.add_parser("pipelines", help="Validate pipelines.yaml and list its pipelines")
    listing.set_defaults(run=lambda _arguments: list_pipelines())
    planning = commands.add_parser("plan", help="Generate dvc.yaml from pipelines.yaml and list its stages")
    planning.set_defaults(run=lambda _arguments: plan())
    running = commands.add_parser("retrain", help="Run the out-of-date stages of a pipeline", description=RETRAIN)
    running.add_argument("pipeline", nargs="?", help=f"{PIPELINE} (default: every enabled pipeline, in order)")
    running.add_argument("--dry-run", action="store_true", help="list the stages that would run, with reasons, and run nothing")
    loudness = running.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_const", dest="volume", const=Volume.QUIET, help="print errors only")
    loudness.add_argument(
        "--verbose", action="store_const", dest="volume", const=Volume.VERBOSE, help="also print the logs of Prefect and DVC"
    )
    running.set_defaults(volume=Volume.NORMAL, run=lambda arguments: (dry_run if arguments.dry_run else retrain)(arguments))
    setting = commands.add_parser("set", help="Change settings of a pipeline in pipelines.yaml", description=SET)
    setting.add_argument("pipeline", help=PIPELINE)
    setting.add_argument(
        "settings",
        nargs="+",
        metavar="KEY=VALUE",
        help="a setting below pipelines.<pipeline> and its value in YAML, for example evaluation.resolution=128",
    )
    setting.set_defaults(run=lambda arguments: set_settings(arguments.pipeline, arguments.settings))
    explain.add(commands)
    sweep.add(commands)
    plots.add(commands)


def list_pipelines() -> None:
    read = read_pipelines()
    table = Table(title="pipelines.yaml is valid", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("pipeline", "enabled", "schedule", "trained on", "evaluated on", "detectors"):
        table.add_column(title, overflow="fold")
    for name, pipeline in read.pipelines.items():
        enabled = "yes" if name in read.enabled else "no"
        lists = (pipeline.sources or pipeline.auxiliary, pipeline.targets, list(pipeline.detectors))
        table.add_row(name, enabled, str(pipeline.schedule or "manual"), *("\n".join(names) or "-" for names in lists))
    console = Console()
    console.print(table)
    for name, pipeline in read.pipelines.items():
        missing = missing_resources(pipeline, read.datasets)
        if missing:
            console.print(f"\nmissing for [bold]{name}[/bold]:")
        for line in missing:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        for line in costs(pipeline) if name in read.enabled else ():
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)


def plan() -> None:
    from changepair.flows.plan import planned, write_plan
    from changepair.flows.stage import DVC_YAML

    written = write_plan()
    for stage in planned():
        Console().print(f"{stage.name}: {stage.about}", soft_wrap=True, markup=False, highlight=False)
    Console().print(f"{DVC_YAML} is {'updated' if written else 'up to date'}", highlight=False)


def set_settings(pipeline: str, settings: Sequence[str]) -> None:
    from changepair.flows.settings.overriding import override, read_settings

    for line in override(pipeline, read_settings(settings)) or ["pipelines.yaml already has these values"]:
        Console().print(line, soft_wrap=True, markup=False, highlight=False)


def retrain(arguments: argparse.Namespace) -> None:
    pipelines = _chosen(arguments.pipeline)  # report mistakes before a server starts

    from changepair.flows.running.exit_handling import end_at_ctrl_c_when_saved
    from changepair.tasks.common.stopping import on_sigterm

    end_at_ctrl_c_when_saved()

    with on_sigterm():
        from changepair.flows.retrain import retrain as flow
        from changepair.flows.running.api import end_with_parent, one_api, run
        from changepair.flows.running.fork_client import fork_server

        set_volume(arguments.volume)
        hide_bars()
        end_with_parent()
        with one_api(), fork_server():
            for pipeline in pipelines:
                run(flow, pipeline=pipeline)


def _chosen(pipeline: str | None) -> list[str]:
    """Return the pipelines to run. Raises BadInput if one cannot be run, or if none is enabled."""
    names = [pipeline] if pipeline is not None else read_pipelines().enabled
    if not names:
        raise BadInput(f"{FILE}: enabled: the list is empty; add a pipeline to it, or run `changepair init <folder of pictures>`")
    for name in names:
        enabled_pipeline(name)
    return names


def dry_run(arguments: argparse.Namespace) -> None:
    from changepair.flows.dry_run import tell

    for pipeline in _chosen(arguments.pipeline):
        for line in tell(pipeline):
            Console().print(line, soft_wrap=True, markup=False, highlight=False)
