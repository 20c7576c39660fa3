"""The command `changepair`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from changepair.flows import completion, doctor, init, new, plots
from changepair.flows.arguments import check_options
from changepair.flows.monitoring import review
from changepair.flows.prediction import demo, export, predict
from changepair.flows.prediction import serve as serve_api
from changepair.flows.running.console import Volume, set_volume
from changepair.flows.settings.missing import costs, missing_resources
from changepair.flows.settings.pipelines import enabled_pipeline, read_pipelines
from changepair.flows.settings.reader import FILE
from changepair.tasks.common.bounds import MOST, Between
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.ingestion.settings import LayoutName

EXAMPLES = {
    "pipelines": "changepair pipelines",
    "plan": "changepair plan && dvc repro",
    "retrain": "changepair retrain quickstart --dry-run",
    "set": "changepair set quickstart evaluation.resolution=128 training.metauas.epochs=3",
    "watch": "changepair watch mine",
    "deploy": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair deploy",
    "work": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair work --pool machines --limit 1",
    "serve": "PREFECT_API_URL=http://127.0.0.1:4200/api changepair serve",
    "ui": "changepair ui --port 4300",
    "status": "changepair status quickstart --last 10",
    "verify": "changepair verify",
    "promote": "changepair promote mine",
    "rollback": "changepair rollback mine",
    "history": "changepair history mine",
    "datasets": "changepair datasets",
    "inspect": "changepair inspect mvtec-ad /data/mvtec --out sheet.png",
    "unpack": "changepair unpack mvtec.tar.xz /data/mvtec",
    "import": "changepair import metauas metauas-256.ckpt --out data/imported/metauas-256",
}
"""Of the commands that say none themselves."""


def main() -> None:
    line = parser()
    for word in sys.argv[1:]:
        if word.startswith("--") and word.endswith("=--"):  # which argparse takes for a list
            line.error(f"{word}: no value")
    if sys.argv[1:2] == ["score"]:
        print("changepair: `changepair score` is called `changepair watch` now", file=sys.stderr)
        sys.argv[1] = "watch"
    arguments = line.parse_args()

    from changepair.flows.running.exit_handling import exit_on_bad_input

    exit_on_bad_input(lambda: arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    """Gives the command line."""
    line = argparse.ArgumentParser(
        prog="changepair", description="Make change pairs, train anomaly detectors on them, prove them across domains."
    )
    commands = line.add_subparsers(required=True, metavar="command")
    listing = commands.add_parser("pipelines", help="list the pipelines of pipelines.yaml and check the file")
    listing.set_defaults(run=lambda _arguments: list_pipelines())
    predict.add(commands)
    demo.add(commands)
    export.add(commands)
    serve_api.add(commands)
    planning = commands.add_parser("plan", help="write dvc.yaml from pipelines.yaml, and list its stages")
    planning.set_defaults(run=lambda _arguments: plan())
    running = commands.add_parser("retrain", help="run what is out of date of a pipeline's stages")
    running.add_argument("pipeline", nargs="?", help="default: every enabled one, in order")
    running.add_argument("--dry-run", action="store_true", help="say which stages would run, and why, and run nothing")
    loudness = running.add_mutually_exclusive_group()
    loudness.add_argument(
        "--quiet", action="store_const", dest="volume", const=Volume.QUIET, help="print what goes wrong, and nothing else"
    )
    loudness.add_argument(
        "--verbose", action="store_const", dest="volume", const=Volume.VERBOSE, help="print what Prefect and DVC say, too"
    )
    running.set_defaults(volume=Volume.NORMAL, run=lambda arguments: (dry_run if arguments.dry_run else retrain)(arguments))
    setting = commands.add_parser("set", help="write settings of a pipeline to pipelines.yaml, which keeps its form and its comments")
    setting.add_argument("pipeline")
    setting.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="such as evaluation.resolution=128; the value as in the file")
    setting.set_defaults(run=lambda arguments: set_settings(arguments.pipeline, arguments.settings))
    scoring = commands.add_parser("watch", help="score the new pictures of a pipeline's watched folder with its current model")
    scoring.add_argument("pipeline")
    scoring.set_defaults(run=lambda arguments: score(arguments.pipeline))
    review.add(commands)
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
    telling = commands.add_parser("status", help="print the last runs, their stages and figures, and the model in use; needs no server")
    telling.add_argument("pipeline", nargs="?")
    telling.add_argument("--last", type=int, default=3, metavar="RUNS", help="how many runs of each pipeline (%(default)s)")
    telling.set_defaults(run=status)
    verifying = commands.add_parser("verify", help="read DVC's cache through, and take out what is damaged")
    verifying.set_defaults(run=lambda _arguments: verify())
    for name, what in (
        ("promote", "put the model that was trained last to use, whatever its figures"),
        ("rollback", "put the model to use that was in use before"),
        ("history", "list what was promoted, kept out and rolled back, and what is in use"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("pipeline")
        command.set_defaults(run=lambda arguments, name=name: MODELS[name](arguments.pipeline))
    plots.add(commands)
    completion.add(commands, parser)
    doctor.add(commands)
    new.add(commands)
    init.add(commands)
    datasets = commands.add_parser("datasets", help="list the datasets that can be read as they are distributed, and those that are here")
    datasets.set_defaults(run=lambda _arguments: list_datasets())
    inspecting = commands.add_parser("inspect", help="say what a dataset holds, and draw a contact sheet of it")
    inspecting.add_argument("dataset", help="a layout, as `changepair datasets` calls it; or a dataset of pipelines.yaml")
    inspecting.add_argument("path", nargs="?", help="a folder, a file or a URL; none for a dataset of pipelines.yaml")
    inspecting.add_argument("--out", type=Path, metavar="PICTURE", help="where to write the contact sheet (inspect-<dataset>.png here)")
    inspecting.add_argument(
        "--normal", action="append", default=[], metavar="DIR", help="a folder of normal pictures (layout folder); may be repeated"
    )
    inspecting.add_argument(
        "--abnormal", action="append", default=[], metavar="DIR", help="a folder of pictures with defects; may be repeated"
    )
    inspecting.add_argument("--masks", metavar="DIR", help="a folder of masks for pictures with defects")
    inspecting.set_defaults(run=lambda one: inspect_dataset(one.dataset, one.path, one.out, one.normal, one.abnormal, one.masks))
    unpacking = commands.add_parser("unpack", help="unpack a dataset's tar or zip into a new folder")
    unpacking.add_argument("archive", type=Path)
    unpacking.add_argument("folder", type=Path)
    unpacking.set_defaults(run=lambda arguments: unpack(arguments.archive, arguments.folder))
    importing = commands.add_parser("import", help="turn an authors' checkpoint into a model folder")
    importing.add_argument("detector", choices=[name for name, kind in DETECTORS.items() if kind.published is not None])
    importing.add_argument("checkpoint", type=Path)
    importing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model folder to write")
    importing.set_defaults(run=lambda arguments: import_model(arguments.detector, arguments.checkpoint, arguments.out))
    about = {action.dest: str(action.help) for action in commands._choices_actions}
    for name, command in commands.choices.items():
        if command.description is None:
            command.description = f"{about[name][0].upper()}{about[name][1:]}."
        if name in EXAMPLES:
            command.epilog = f"example: {EXAMPLES[name]}"
    return line


def list_pipelines() -> None:
    read = read_pipelines()
    table = Table(title="pipelines.yaml is valid")
    for title in ("pipeline", "enabled", "schedule", "trained on", "targets", "detectors"):
        table.add_column(title)
    for name, pipeline in read.pipelines.items():
        enabled = "yes" if name in read.enabled else "no"
        lists = (pipeline.sources or pipeline.auxiliary, pipeline.targets, list(pipeline.detectors))
        table.add_row(name, enabled, str(pipeline.schedule or "by hand"), *(", ".join(names) or "nothing" for names in lists))
    console = Console()
    console.print(table)
    for name, pipeline in read.pipelines.items():
        missing = missing_resources(pipeline, read.datasets)
        if missing:
            console.print(f"\n[bold]{name}[/bold] is missing:")
        for line in missing:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        for line in costs(pipeline) if name in read.enabled else ():
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)


def plan() -> None:
    from changepair.flows.plan import DVC_YAML, planned, write_plan

    written = write_plan()
    for stage in planned():
        Console().print(f"{stage.name}: {stage.about}", soft_wrap=True, markup=False, highlight=False)
    Console().print(f"{DVC_YAML} {'is written anew' if written else 'is as pipelines.yaml has it'}", highlight=False)


def set_settings(pipeline: str, settings: Sequence[str]) -> None:
    from changepair.flows.settings.overriding import override, read_settings

    for line in override(pipeline, read_settings(settings)) or ["pipelines.yaml has it so already"]:
        Console().print(line, soft_wrap=True, markup=False, highlight=False)


def retrain(arguments: argparse.Namespace) -> None:
    pipelines = _chosen(arguments.pipeline)  # report mistakes before a server is started

    from changepair.flows.running.exit_handling import end_at_ctrl_c_when_saved
    from changepair.tasks.common.stopping import on_sigterm

    end_at_ctrl_c_when_saved()

    with on_sigterm():
        from changepair.flows.retrain import retrain as flow
        from changepair.flows.running.api import end_with_parent, one_api, run

        set_volume(arguments.volume)
        end_with_parent()
        with one_api():
            for pipeline in pipelines:
                run(flow, pipeline=pipeline)


def _chosen(pipeline: str | None) -> list[str]:
    """Return the pipelines to run. Raise BadInput if one cannot be run, or none is enabled."""
    names = [pipeline] if pipeline is not None else read_pipelines().enabled
    if not names:
        raise BadInput(f"{FILE}: enabled: no pipeline; add one there, or run `changepair init <folder of pictures>`")
    for name in names:
        enabled_pipeline(name)
    return names


def dry_run(arguments: argparse.Namespace) -> None:
    from changepair.flows.dry_run import tell

    for pipeline in _chosen(arguments.pipeline):
        for line in tell(pipeline):
            Console().print(line, soft_wrap=True, markup=False, highlight=False)


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


def promote(pipeline: str) -> None:
    from changepair.flows.promotion.gate import promote as work

    Console().print(work(pipeline), soft_wrap=True)


def rollback(pipeline: str) -> None:
    from changepair.flows.promotion.gate import rollback as work

    Console().print(work(pipeline), soft_wrap=True)


def history(pipeline: str) -> None:
    from changepair.flows.promotion.history import read_current, read_history

    enabled_pipeline(pipeline)
    current = read_current(pipeline)
    table = Table(title=f"{pipeline}: {f'model {current.candidate[:8]} is in use' if current else 'no model is in use'}")
    for title in ("time, UTC", "what", "model", "commit", "why"):
        table.add_column(title, overflow="fold")
    for model in read_history(pipeline):
        table.add_row(model.time[:16].replace("T", " "), model.action, model.candidate[:8], model.commit[:8], model.reason)
    Console().print(table)


MODELS = {"promote": promote, "rollback": rollback, "history": history}


def import_model(detector: str, checkpoint: Path, folder: Path) -> None:
    from changepair.tasks.detectors.pretrained import import_checkpoint

    imported = import_checkpoint(detector, checkpoint, folder)
    text = f"{imported.tensors} tensors of {checkpoint} are now {folder}; say model: {folder} under detectors.{detector}"
    Console().print(text, soft_wrap=True)
    if imported.left_out:
        Console().print(f"left out, as the authors' loader does: {', '.join(imported.left_out)}", soft_wrap=True)


def unpack(archive: Path, folder: Path) -> None:
    from changepair.tasks.ingestion.unpack import unpack as work

    Console().print(f"{folder}: {work(archive, folder)} files", soft_wrap=True, markup=False, highlight=False)


def list_datasets() -> None:
    from changepair.tasks.ingestion.readers.catalogue import LAYOUTS

    table = Table(title="layouts that can be read: datasets.folders.<name>: {path: …, layout: …}")
    for title in ("layout", "dataset", "licence", "home"):
        table.add_column(title, no_wrap=title == "layout", overflow="fold")
    for name, layout in LAYOUTS.items():
        table.add_row(name, layout.title, layout.licence, layout.home)
    console = Console()
    console.print(table)
    here = read_pipelines().datasets
    console.print(f"here, inside packages: {', '.join(here.packaged) or 'none'}")
    for name, folder in here.folders.items():
        console.print(f"here: {name}, {folder.layout}, {folder.path}", soft_wrap=True)


def inspect_dataset(
    dataset: str, named: str | None, sheet: Path | None, normal: Sequence[str], abnormal: Sequence[str], masks: str | None
) -> None:
    from changepair.flows.init import stated_folders, told
    from changepair.flows.settings.reader import nearest
    from changepair.tasks.common.places import place_of
    from changepair.tasks.ingestion.inspect import inspect

    layouts = get_args(LayoutName)
    stated = named is not None or normal or abnormal or masks
    if dataset in layouts and stated:
        settings = replace(stated_folders(named, normal, abnormal, masks), layout=cast(LayoutName, dataset))
        name = place_of(settings.path).name or Path.cwd().name or dataset
    elif not stated:
        folders = read_pipelines().datasets.folders
        if dataset not in folders:
            has = "give the folder too" if dataset in layouts else f"no dataset of pipelines.yaml{nearest(dataset, folders)}"
            raise BadInput(f"inspect {dataset}: {has}; `changepair inspect <layout> <folder>`, or `changepair inspect <dataset>`")
        settings, name = folders[dataset], dataset
    else:
        raise BadInput(f"inspect {dataset}: no layout{nearest(dataset, layouts)}; `changepair datasets` lists them")
    sheet = sheet or Path(f"inspect-{dataset}.png")
    with tempfile.TemporaryDirectory() as work:
        inspection = inspect(name, settings, work=Path(work), sheet=sheet)
    counts = Table(title=f"{settings.path}: {sum(inspection.counts.values())} pictures")
    for title in ("category", "split", "defect", "pictures", "covered by masks, %"):
        counts.add_column(title)
    for (category, split, defect), count in inspection.counts.items():
        covered = inspection.covered.get((category, defect))
        shares = "" if covered is None or split == "train" else " / ".join(f"{100 * share:.2g}" for share in covered)
        counts.add_row(category, split, defect, str(count), shares)
    console = Console()
    console.print(counts)
    for side, (least, median, greatest) in inspection.sizes.items():
        console.print(f"{side}: {least} / {median} / {greatest} pixels (least, median, greatest)", highlight=False)
    console.print(f"grey levels: {inspection.greys} of 256 in normal pictures", highlight=False)
    for line in told(inspection):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"to look at: {sheet}", soft_wrap=True)


if __name__ == "__main__":  # as the scheduled runs start it, by the code of their clone
    main()
