"""Stage synthesize: normal pictures in, change pairs out, as shards with an index and an overview."""

from __future__ import annotations

from prefect import flow, get_run_logger

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CHECKPOINTS, EPISODES, INPAINTERS, PAIRS
from changepair.flows.running.steps import HOUR, show_picture, show_table, step
from changepair.flows.running.workers import for_gpu, task_runner, wait_for
from changepair.flows.settings.pipelines import pipeline_named, read_pipelines
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.synthesis import synthesize as synthesis
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.shards import OVERVIEW_NAME
from changepair.tasks.synthesis.synthesize import Inputs, Synthesized, Work, shard_count, start

make_shard = step(name="make shard", task_run_name="make shard {number}", timeout_seconds=HOUR)(synthesis.make_shard)
finish = step(name="write index and overview", timeout_seconds=HOUR)(synthesis.finish)


@flow(name="synthesize", flow_run_name="synthesize {pipeline}")
@stoppable
def synthesize(pipeline: str) -> None:
    settings = pipeline_named(pipeline).synthesis
    inputs = Inputs(EpisodeFiles.of(EPISODES, pipeline), INPAINTERS / pipeline)
    work, missing = start(settings, inputs, CHECKPOINTS / pipeline / "pairs")
    kept = shard_count(settings) - len(missing)
    if kept:
        get_run_logger().info(f"{pipeline}: {kept} of {shard_count(settings)} shards are there from a run that was stopped")
    _make(settings, inputs, missing, work)
    synthesized: Synthesized = finish(settings, work, PAIRS / pipeline)

    overview = PAIRS / pipeline / OVERVIEW_NAME
    for sheet in sorted(overview.glob("*.png")):
        show_picture(pipeline, f"pairs-{sheet.stem}", sheet, f"Pairs of {pipeline}: {sheet.stem}")
    for table in sorted(overview.glob("*.csv")):
        name = table.stem.replace("_", "-")
        show_table(pipeline, f"pairs-{name}", table, f"Pairs of {pipeline}: {name}")
    get_run_logger().info(f"{pipeline}: {synthesized.pairs} pairs, {synthesized.dropped} draws dropped; to see in {overview}")


def _make(settings: SynthesisSettings, inputs: Inputs, missing: list[int], work: Work) -> None:
    """Makes every missing shard."""

    def where() -> str:
        whole = shard_count(settings) - sum(not work.record(number).is_file() for number in missing)
        return f"synthesize, {whole} of {shard_count(settings)} shards made"

    with for_gpu(read_pipelines().execution):
        shards = [make_shard.submit(settings, inputs, number, work) for number in missing]
    wait_for(shards, where)


if __name__ == "__main__":
    start_stage(synthesize, on_gpu=True, runner=task_runner)
