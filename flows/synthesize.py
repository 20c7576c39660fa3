"""Stage synthesize: normal pictures in, change pairs out, as shards with an index and a contact sheet."""

from __future__ import annotations

from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_image_artifact
from prefect.task_runners import ProcessPoolTaskRunner

from flows.artifacts import data_uri, key
from flows.settings import read_setting
from flows.stage import EPISODES, PAIRS, run_stage, workers
from tasks.files import written_beside
from tasks.sampling.episodes import EpisodeFiles
from tasks.synthesis.settings import SynthesisSettings
from tasks.synthesis.synthesize import shard_count, source_images
from tasks.synthesis.task import make_shard, write_contact_sheet, write_index


@flow(name="synthesize", flow_run_name="synthesize {pipeline}")
def synthesize(pipeline: str) -> None:
    settings = read_setting(("pipelines", pipeline, "synthesis"), SynthesisSettings)
    images = source_images(EpisodeFiles.of(EPISODES, pipeline).sources)
    with written_beside(PAIRS / pipeline) as folder:
        shards = [make_shard.submit(settings, images, number, folder) for number in range(shard_count(settings))]
        rows = [row for shard in shards for row in shard.result()]
        write_index(folder, rows)
        sheet = write_contact_sheet(folder)
        create_image_artifact(data_uri(sheet), key=key(pipeline, "contact-sheet"), description=f"Change pairs of {pipeline}, by kind")
    get_run_logger().info(f"{pipeline}: {len(rows)} pairs in {len(shards)} shards, to see in {PAIRS / pipeline / sheet.name}")


if __name__ == "__main__":
    run_stage(synthesize.with_options(task_runner=cast(Any, ProcessPoolTaskRunner(max_workers=workers()))))
