"""Add the commands that monitor a production line."""

from __future__ import annotations

from rich.console import Console

from changepair.flows.cli.command import PIPELINE, Commands
from changepair.flows.monitoring import review
from changepair.flows.settings.pipelines import read_pipelines

TITLE = "monitor a production line"
DESCRIPTION = """\
Score new pictures in a watched folder with the current model. The section `watch` of the pipeline names the
folder, the prompts and the normal pictures."""
EXAMPLES = {"watch": "changepair watch mine"}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    watching = commands.add_parser("watch", help="Score new pictures in a watched folder with the current model", description=DESCRIPTION)
    watching.add_argument("pipeline", help=PIPELINE)
    watching.set_defaults(run=lambda arguments: watch(arguments.pipeline))
    review.add(commands)


def watch(pipeline: str) -> None:
    from changepair.flows.monitoring.line import line_of

    line_of(pipeline).check_normals()  # report mistakes before a server starts

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
