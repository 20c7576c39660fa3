"""Stage inpainter: the sources in, the model that repaints their regions out; trained here, or named where it is another's."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.settings import read_setting
from flows.stage import CHECKPOINTS, EPISODES, INPAINTERS, run_stage
from tasks.inpainting.inpainter import write_choice
from tasks.inpainting.settings import OWN, InpainterSettings
from tasks.inpainting.task import train_inpainter
from tasks.sampling.episodes import EpisodeFiles
from tasks.stopping import stoppable


@flow(name="inpainter", flow_run_name="inpainter {pipeline}")
@stoppable
def inpainter(pipeline: str) -> None:
    settings = read_setting(("pipelines", pipeline, "inpainter"), InpainterSettings)
    folder = INPAINTERS / pipeline
    if settings.model == OWN:
        sources = EpisodeFiles.of(EPISODES, pipeline).sources
        came = train_inpainter(settings, sources, folder=folder, checkpoints=CHECKPOINTS / pipeline / "inpainter")
        get_run_logger().info(f"{pipeline}: inpainter, {came.steps} steps, loss {came.loss:.4f}")
    write_choice(folder, settings)


if __name__ == "__main__":
    run_stage(inpainter, on_gpu=True)
