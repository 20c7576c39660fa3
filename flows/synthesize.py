"""Run the stage `synthesize`: read normal pictures; write change pairs as shards, with an index and an overview."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import EPISODES, INPAINTERS, PAIRS
from changepair.flows.running.workers import for_gpu, task_runner, wait_for
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.stage import Input, OfPipeline, Output, Stage, stage_flow
from changepair.tasks.sampling.episodes import EpisodeFiles, SourceFiles
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.shards import OVERVIEW_NAME

if TYPE_CHECKING:
    from changepair.tasks.synthesis.synthesize import Inputs, ShardsFolder


@dataclass(frozen=True)
class Synthesize(Stage):
    """Generate change pairs from normal pictures of the sources."""

    pipeline: str
    files: Input[SourceFiles]
    inpainter: Input[Path]
    segmenter: Input[str | None]
    """Local model folder of SAM, which segments objects; None for a model from the hub."""
    synthesis: OfPipeline[SynthesisSettings]
    pairs: Output[Path]

    @property
    def plots(self) -> list[Mapping[str, Any] | str]:
        folder, bars = (self.pairs / OVERVIEW_NAME).as_posix(), {"template": "bar_horizontal"}
        if not self.synthesis.pairs:
            return []
        return [
            {f"{folder}/kinds.csv": {**bars, "x": "pairs", "y": "kind", "title": "pairs by kind"}},
            {f"{folder}/changed_area.csv": {"x": "changed_area", "y": "pairs", "title": "changed area, share of the query"}},
            {f"{folder}/drops.csv": {**bars, "x": "draws", "y": "reason", "title": "dropped draws by reason"}},
            *(f"{folder}/{kind}.png" for kind in self.synthesis.kind_shares),
        ]


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Synthesize]:
    sam = pipeline.synthesis.objects.sam
    files = EpisodeFiles.of(EPISODES, name).made_of
    yield Synthesize(name, files, INPAINTERS / name, sam if Path(sam).is_dir() else None, pipeline.synthesis, PAIRS / name)


@stage_flow(on_gpu=True, runner=task_runner)
def synthesize(stage: Synthesize, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import HOUR, show_picture, show_table, step
    from changepair.tasks.synthesis.synthesize import Inputs, Synthesized, finish, shard_count, start

    pipeline, settings = stage.pipeline, stage.synthesis
    inputs = Inputs(stage.files, stage.inpainter)
    work, missing = start(settings, inputs, stage.checkpoints / "pairs")
    kept = shard_count(settings) - len(missing)
    if kept:
        get_run_logger().info(f"{pipeline}: resuming with {kept} of {shard_count(settings)} shards from an interrupted run")
    _make(settings, inputs, missing, work, execution)
    synthesized: Synthesized = step(name="write index and overview", timeout_seconds=HOUR)(finish)(settings, work, stage.pairs)

    overview = stage.pairs / OVERVIEW_NAME
    for sheet in sorted(overview.glob("*.png")):
        show_picture(pipeline, f"pairs-{sheet.stem}", sheet, f"Pairs of {pipeline}: {sheet.stem}")
    for table in sorted(overview.glob("*.csv")):
        name = table.stem.replace("_", "-")
        show_table(pipeline, f"pairs-{name}", table, f"Pairs of {pipeline}: {name}")
    get_run_logger().info(f"{pipeline}: {synthesized.pairs} pairs, {synthesized.dropped} dropped draws; overview: {overview}")


def _make(settings: SynthesisSettings, inputs: Inputs, missing: list[int], work: ShardsFolder, execution: Execution) -> None:
    """Generate every missing shard."""
    from changepair.flows.running.steps import HOUR, step
    from changepair.tasks.synthesis.synthesize import make_shard, shard_count

    def where() -> str:
        whole = shard_count(settings) - sum(not work.record(number).is_file() for number in missing)
        return f"synthesize, {whole} of {shard_count(settings)} shards done"

    task = step(name="generate shard", task_run_name="generate shard {number}", timeout_seconds=HOUR)(make_shard)
    with for_gpu(execution):
        shards = [task.submit(settings, inputs, number, work) for number in missing]
    wait_for(shards, where)


if __name__ == "__main__":
    start_stage("synthesize")
