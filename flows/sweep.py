"""Evaluate a detector of a pipeline with combinations of settings: the command `changepair sweep`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.flows.cli.command import PIPELINE, Commands
from changepair.flows.running.places import CANDIDATE, CHECKPOINTS, DATA, EPISODES, MODELS
from changepair.flows.settings.overriding import checked, flow, with_values
from changepair.flows.settings.pipelines import READY, Pipeline, detector_of, enabled_pipeline
from changepair.flows.settings.reader import FILE, parse_yaml, read_yaml
from changepair.flows.stage import stage_name
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.stopping import EXIT_CODE
from changepair.tasks.detectors.registry import DETECTORS, base_of, kind_of

if TYPE_CHECKING:
    from changepair.tasks.scoring.sweep import Sweep, Swept

SWEEPS = DATA / "sweeps"
MOST = 256  # combinations; scores and maps of all are on disk until they are measured
LEAK = """\
The metrics were measured on the targets of the pipeline. If you choose a setting by this table, do not report its metrics on these targets,
because they are too high. Choose on other data, such as the development datasets."""
ABOUT = """\
Evaluate a detector with every combination of settings, on the sampled episodes of a pipeline. The encoder encodes each picture once at each
scale, for all combinations. pipelines.yaml does not change."""
EXAMPLES = """examples:
  changepair sweep quickstart patch-residual self_residual=0,0.6 top_share=0,0.01,0.05
  changepair sweep quickstart patch-residual 'encoder.scales=[1],[1, 0.5]' --target digits
"""


def add(commands: Commands) -> None:
    """Add the command `sweep`."""
    parser = commands.add_parser(
        "sweep",
        help="Evaluate a detector with combinations of settings",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", help=PIPELINE)
    parser.add_argument("detector", help="name of a detector in the pipeline")
    parser.add_argument(
        "settings",
        nargs="+",
        metavar="KEY=VALUES",
        help="a setting below detectors.<detector> and its values in YAML, separated by commas, for example top_share=0,0.01",
    )
    parser.add_argument("--target", action="append", metavar="NAME", help="target to evaluate on; repeatable (default: every target)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"CSV file for the metrics (default: {SWEEPS}/<pipeline>-<detector>.csv)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run `changepair sweep`: print the combinations, the best first, and write their metrics to a CSV file."""
    name, detector = arguments.pipeline, arguments.detector
    pipeline, settings = enabled_pipeline(name), read_values(arguments.settings)
    detectors = combinations(name, detector, detector_of(pipeline, name, detector), settings)
    if arguments.out is not None and arguments.out.is_dir():
        raise BadInput(f"--out {arguments.out}: is a folder; name a file")
    refuse_outdated(name, base_of(detector, pipeline.detectors), pipeline)

    from changepair.tasks.common.devices import best_device
    from changepair.tasks.sampling.episodes import EpisodeFiles
    from changepair.tasks.scoring.sweep import Sweep, on_targets, sweep, write_sweep

    with scratch(name) as work:
        files = EpisodeFiles.of(EPISODES, name).tested
        if arguments.target:
            files = on_targets(files, arguments.target, work)
        asked = Sweep(detector, detectors, pipeline.evaluation, pipeline.promotion, files, MODELS / name / CANDIDATE)
        swept = sweep(asked, work, best_device())
    file = arguments.out or SWEEPS / f"{name}-{detector}.csv"
    values = [[flow(value) for value in combination] for combination in product(*settings.values())]
    write_sweep(file, list(settings), values, swept)
    show(asked, list(settings), values, swept)
    print(f"\nMetrics by target, protocol and shots: {file}\n\n{LEAK}")


def read_values(lines: Sequence[str]) -> dict[str, list[Any]]:
    """Parse lines such as KEY=V1,V2 into lists of values by key. Values are in YAML. Raises BadInput if a line is invalid."""
    settings: dict[str, list[Any]] = {}
    for line in lines:
        key, _equals, text = line.partition("=")
        shown = in_short(repr(line))
        if not key or not text.strip():
            raise BadInput(f"{shown}: expected KEY=VALUES, such as top_share=0,0.01")
        values = parse_yaml(f"[{text}]", shown)
        if key in settings or any(value in values[:place] for place, value in enumerate(values)):
            raise BadInput(f"{shown}: {key} or one of its values is given twice; give each once")
        settings[key] = values
    return settings


def combinations(pipeline: str, detector: str, held: Any, settings: Mapping[str, Sequence[Any]], file: Path = FILE) -> list[dict[str, Any]]:
    """Return the settings of all detectors of a pipeline, by name, for each combination of values of one detector.

    `held` are the detector's settings in the file. Each combination is checked as if it were in the file. Raises BadInput if a combination
    is invalid or needs another training, or if there are more than MOST.
    """
    found: list[dict[str, Any]] = []
    defaults = {} if read_yaml(file)["pipelines"][pipeline].get("detectors") else READY
    for values in product(*settings.values()):
        if len(found) == MOST:
            raise BadInput(f"sweep: more than {MOST} combinations; give fewer values")
        wanted = {f"detectors.{name}": one for name, one in defaults.items()}
        wanted |= {f"detectors.{detector}.{key}": value for key, value in zip(settings, values, strict=True)}
        read = checked(with_values(pipeline, wanted, file)[0], file).pipelines[pipeline]
        refuse_training(detector, held, read.detectors[detector])
        found.append(read.detectors)
    return found


def refuse_training(detector: str, held: Any, wanted: Any) -> None:
    """Raise BadInput if a trained detector needs another training or model for the settings `wanted` than for `held`."""
    from changepair.tasks.detectors.store import settings_as_json, trained_otherwise

    kind = kind_of(held)
    if DETECTORS[kind].training is None:
        return
    other = trained_otherwise(kind, wanted, settings_as_json(held)) or ("model" if wanted.model != held.model else "")
    if other:
        free = ", ".join(DETECTORS[kind].scoring)
        raise BadInput(
            f"sweep: {detector} with another {other.partition(':')[0]} needs another training; sweep only {free} or tiles, or give each "
            f"value a detector of its own in {FILE}"
        )


def refuse_outdated(name: str, base: str, pipeline: Pipeline) -> None:
    """Raise BadInput if the episodes of a pipeline or the model of `base`, the detector with the weights, are out of date."""
    from changepair.flows.dry_run import ALWAYS, forecast

    def outdated(stage: str) -> bool:
        one = found[stage]
        return any(reason != ALWAYS for reason in one.reasons) or any(map(outdated, one.after))

    needed = [stage_name("sample", (name,)), *([stage_name("train", (name, base))] if base in pipeline.trained else [])]
    found = forecast(name)
    for stage in needed:
        if outdated(stage):
            raise BadInput(f"sweep: the stage {stage} has to run first ({found[stage]}); run `dvc repro {stage}`")


@contextmanager
def scratch(pipeline: str) -> Iterator[Path]:
    """Yield an empty folder for scores, and delete it at the end. Raises BadInput if another sweep of the pipeline is running."""
    from changepair.flows.running.exit_handling import tell
    from changepair.flows.running.locks import Held, one_at_a_time

    folder = CHECKPOINTS / pipeline / "sweep"
    try:
        with one_at_a_time(f"sweep-{pipeline}", f"sweep {pipeline}", wait=False, tell=tell):
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed sweep
            folder.mkdir(parents=True)
            before = signal.signal(signal.SIGTERM, lambda *_given: sys.exit(EXIT_CODE))  # so that the folder is deleted
            try:
                yield folder
            finally:
                signal.signal(signal.SIGTERM, before)
                shutil.rmtree(folder, ignore_errors=True)
    except Held as held:
        raise BadInput(str(held)) from held


def show(asked: Sweep, keys: Sequence[str], values: Sequence[Sequence[str]], swept: Sequence[Swept]) -> None:
    """Print a row for each combination, the best first."""
    from rich.console import Console
    from rich.table import Table

    from changepair.tasks.scoring.metrics import heading

    metric, targets = heading(asked.metric.metric), list(swept[0].targets) if len(swept[0].targets) > 1 else []
    table = Table(title=f"{asked.detector}: {metric} in percent, mean ± standard deviation over seeds")
    for title in (*keys, metric, *targets, "compared with the best"):
        table.add_column(title, overflow="fold")
    for place, one in enumerate(swept):
        compared = "best" if place == 0 else "not significantly worse" if one.close else "worse"
        table.add_row(*values[one.number], str(one.overall), *(str(one.targets.get(target, "")) for target in targets), compared)
    Console().print(table)
