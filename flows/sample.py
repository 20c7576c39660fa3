"""Stage sample: manifests in, episodes out, and with them the pictures that may be trained on and those that are tested on."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.settings import read_setting
from flows.stage import EPISODES, MANIFESTS, run_stage
from tasks.sampling.episodes import EpisodeFiles
from tasks.sampling.settings import SamplingSettings, Use
from tasks.sampling.task import draw_episodes
from tasks.stopping import stoppable


@flow(name="sample", flow_run_name="sample {pipeline}")
@stoppable
def sample(pipeline: str) -> None:
    settings = read_setting(("pipelines", pipeline, "sampling"), SamplingSettings)
    keys = ("sources", "textures", "auxiliary", "targets")
    use = Use(**{key: tuple(read_setting(("pipelines", pipeline, key), list[str])) for key in keys})
    files = EpisodeFiles.of(EPISODES, pipeline)
    came = draw_episodes(settings, use, manifests=MANIFESTS, files=files)
    get_run_logger().info(
        f"{pipeline}: {came.episodes} episodes; sources {', '.join(use.sources) or 'none'}; targets {', '.join(use.targets)}"
    )
    if came.near_duplicates:
        get_run_logger().warning(f"{pipeline}: {came.near_duplicates} targets look like pictures trained on: see {files.near_duplicates}")
    for category in came.without_prompts:
        get_run_logger().warning(f"{pipeline}: the pooled draw gave no prompt to {category}")


if __name__ == "__main__":
    run_stage(sample)
