"""Stage synthesize: normal pictures in, change pairs out, as shards with an index and an overview."""

from __future__ import annotations

from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.artifacts import data_uri, key, rows_of
from flows.runner import task_runner
from flows.settings import read_setting
from flows.stage import CHECKPOINTS, EPISODES, INPAINTERS, PAIRS, run_stage
from tasks.sampling.episodes import EpisodeFiles
from tasks.stopping import check, stoppable
from tasks.synthesis.settings import SynthesisSettings
from tasks.synthesis.shards import OVERVIEW_NAME
from tasks.synthesis.synthesize import Inputs, Work, shard_count, start
from tasks.synthesis.task import finish, make_shard

ASKED_EVERY = 0.5  # seconds


@flow(name="synthesize", flow_run_name="synthesize {pipeline}")
@stoppable
def synthesize(pipeline: str) -> None:
    settings = read_setting(("pipelines", pipeline, "synthesis"), SynthesisSettings)
    inputs = Inputs(EpisodeFiles.of(EPISODES, pipeline), INPAINTERS / pipeline)
    work, missing = start(settings, inputs, CHECKPOINTS / pipeline / "pairs")
    kept = shard_count(settings) - len(missing)
    if kept:
        get_run_logger().info(f"{pipeline}: {kept} of {shard_count(settings)} shards are there from a run that was stopped")
    _make(settings, inputs, missing, work)
    made = finish(settings, work, PAIRS / pipeline)

    overview = PAIRS / pipeline / OVERVIEW_NAME
    for sheet in sorted(overview.glob("*.png")):
        create_image_artifact(data_uri(sheet), key=key(pipeline, f"pairs-{sheet.stem}"), description=f"Pairs of {pipeline}: {sheet.stem}")
    for table in sorted(overview.glob("*.csv")):
        name = table.stem.replace("_", "-")
        create_table_artifact(rows_of(table), key=key(pipeline, f"pairs-{name}"), description=f"Pairs of {pipeline}: {name}")
    get_run_logger().info(f"{pipeline}: {made.pairs} pairs, {made.dropped} draws dropped; to see in {overview}")


def _make(settings: SynthesisSettings, inputs: Inputs, missing: list[int], work: Work) -> None:
    """Every missing shard. Asked to stop, it begins no other (Prefect's runner finishes those that it has begun) and raises Stopped."""
    shards: list[Any] = [make_shard.submit(settings, inputs, number, work) for number in missing]
    for shard in shards:
        while not shard.wrapped_future.done():
            shard.wait(timeout=ASKED_EVERY)
            there = shard_count(settings) - sum(not work.record(number).is_file() for number in missing)
            check(f"synthesize, {there} of {shard_count(settings)} shards made")
        shard.result()


if __name__ == "__main__":
    run_stage(synthesize.with_options(task_runner=cast(Any, task_runner())), on_gpu=True)
