"""Stage inpainter: the sources in, the model that repaints their regions out; trained here, or named where it is another's."""

from __future__ import annotations

from prefect import flow, get_run_logger

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CHECKPOINTS, EPISODES, INPAINTERS
from changepair.flows.running.steps import progress, step
from changepair.flows.settings.pipelines import pipeline_named
from changepair.tasks.inpainting.inpainter import write_choice
from changepair.tasks.inpainting.settings import OWN, PACKAGED, InpainterSettings
from changepair.tasks.packaged.inpainting import write_packaged
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.training import inpainting as training
from changepair.tasks.training.loop import Places, Trained


@step(name="train inpainter", retry_delay_seconds=30)
def train_inpainter(pipeline: str, settings: InpainterSettings) -> Trained:
    """Trains the inpainting model; a retry goes on from the last checkpoint."""
    return training.train_inpainter(
        settings,
        EpisodeFiles.of(EPISODES, pipeline).sources,
        places=Places(INPAINTERS / pipeline, CHECKPOINTS / pipeline / "inpainter"),
        report=progress("Inpainter: share of the training steps done"),
    )


@flow(name="inpainter", flow_run_name="inpainter {pipeline}")
@stoppable
def inpainter(pipeline: str) -> None:
    settings = pipeline_named(pipeline).inpainter
    if settings.model == OWN:
        trained: Trained = train_inpainter(pipeline, settings)
        get_run_logger().info(f"{pipeline}: inpainter, {trained.steps} steps, loss {trained.loss:.4f}")
    elif settings.model == PACKAGED:
        write_packaged(INPAINTERS / pipeline)
    write_choice(INPAINTERS / pipeline, settings)


if __name__ == "__main__":
    start_stage(inpainter, on_gpu=True)
