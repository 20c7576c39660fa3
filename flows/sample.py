"""Run the stage `sample`: read manifests; write episodes, and the lists of training and test pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import EPISODES, MANIFESTS
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.stage import Input, OfPipeline, Output, Setting, Stage, stage_flow
from changepair.tasks.ingestion.settings import ObjectsSettings
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.sampling.settings import SamplingSettings, Use


@dataclass(frozen=True)
class Sample(Stage):
    """Draw episodes of training, prompt and query pictures, and refuse an overlap."""

    pipeline: str
    manifests: Input[Sequence[Path]]
    prompts: Input[str | None]
    datasets: Annotated[Mapping[str, Sequence[str]], Setting("pipelines.{pipeline}.*")]
    """Names of datasets by use."""
    sampling: OfPipeline[SamplingSettings]
    objects: Annotated[Mapping[str, ObjectsSettings], Setting("datasets.objects.*")]
    files: Output[EpisodeFiles]


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Sample]:
    objects = {dataset: of for dataset, of in datasets.objects.items() if dataset in pipeline.names}
    manifests = [MANIFESTS / f"{dataset}.{ending}" for dataset in pipeline.names for ending in ("parquet", "rejected.csv")]
    manifests += [MANIFESTS / f"{dataset}.objects.parquet" for dataset in objects]
    files = EpisodeFiles.of(EPISODES, name)
    yield Sample(name, manifests, pipeline.sampling.prompts, pipeline.datasets, pipeline.sampling, objects, files)


@stage_flow()
def sample(stage: Sample, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import HOUR, step
    from changepair.tasks.sampling.sample import Sampled
    from changepair.tasks.sampling.sample import sample as draw

    use = Use(**{key: tuple(names) for key, names in stage.datasets.items()})
    draw_episodes = step(name="draw episodes", timeout_seconds=HOUR)(draw)
    sampled: Sampled = draw_episodes(stage.sampling, use, manifests=MANIFESTS, files=stage.files)
    logger, pipeline, near = get_run_logger(), stage.pipeline, stage.files.near_duplicates
    logger.info(f"{pipeline}: {sampled.episodes} episodes; sources {', '.join(use.sources) or 'none'}; targets {', '.join(use.targets)}")
    if sampled.near_duplicates:
        logger.warning(f"{pipeline}: near-duplicates of training pictures among the targets: {sampled.near_duplicates}; see {near}")
    if sampled.repeated:
        logger.warning(f"{pipeline}: near-duplicates of prompt candidates among the targets: {sampled.repeated}; see {near}")
    for sentence in sampled.unmeasured:
        logger.warning(f"{pipeline}: {sentence}")


if __name__ == "__main__":
    start_stage("sample")
