"""Stage sample: manifests in, episodes out, and with them the pictures that may be trained on and those that are tested on."""

from __future__ import annotations

from prefect import flow, get_run_logger

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import EPISODES, MANIFESTS
from changepair.flows.running.steps import HOUR, step
from changepair.flows.settings.pipelines import pipeline_named
from changepair.tasks.sampling import sample as sampling
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.sampling.sample import Sampled
from changepair.tasks.sampling.settings import Use

draw_episodes = step(name="draw episodes", timeout_seconds=HOUR)(sampling.sample)


@flow(name="sample", flow_run_name="sample {pipeline}")
@stoppable
def sample(pipeline: str) -> None:
    settings = pipeline_named(pipeline)
    use = Use(**{key: tuple(names) for key, names in settings.datasets.items()})
    files = EpisodeFiles.of(EPISODES, pipeline)
    sampled: Sampled = draw_episodes(settings.sampling, use, manifests=MANIFESTS, files=files)
    logger = get_run_logger()
    logger.info(f"{pipeline}: {sampled.episodes} episodes; sources {', '.join(use.sources) or 'none'}; targets {', '.join(use.targets)}")
    if sampled.near_duplicates:
        logger.warning(f"{pipeline}: {sampled.near_duplicates} targets look like pictures trained on: see {files.near_duplicates}")
    if sampled.repeated:
        logger.warning(
            f"{pipeline}: {sampled.repeated} targets look the same as pictures that may prompt them: see {files.near_duplicates}"
        )
    for sentence in sampled.unmeasured:
        logger.warning(f"{pipeline}: {sentence}")


if __name__ == "__main__":
    start_stage(sample)
