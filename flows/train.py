"""Stage train: change pairs in, the trained detectors of the pipeline out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.runner import workers
from flows.settings import read_setting
from flows.stage import CANDIDATE, CHECKPOINTS, EPISODES, MODELS, PAIRS, run_stage
from tasks.detector_settings import TRAINED, DetectorSettings, TrainedSettings
from tasks.sampling.episodes import EpisodeFiles
from tasks.stopping import stoppable
from tasks.training.loop import Places
from tasks.training.settings import InCTRLTrainingSettings, Trainings, TrainingSettings
from tasks.training.task import train_inctrl, train_metauas, use_given_model


@flow(name="train", flow_run_name="train {pipeline}")
@stoppable
def train(pipeline: str) -> None:
    detectors = read_setting(("pipelines", pipeline, "detectors"), DetectorSettings)
    settings = read_setting(("pipelines", pipeline, "training"), Trainings)
    candidate = MODELS / pipeline / CANDIDATE
    candidate.mkdir(parents=True, exist_ok=True)  # stays empty where no detector needs training
    for name in TRAINED:
        if name not in detectors:
            continue
        chosen: TrainedSettings = detectors[name]
        places = Places(candidate / name, CHECKPOINTS / pipeline / name)
        if chosen.model is not None:
            use_given_model(name, chosen, places.model_folder)
            get_run_logger().info(f"{pipeline}: {name} as {chosen.model} has it")
            continue
        if name == "metauas":
            came = train_metauas(
                detectors["metauas"], settings.get("metauas", TrainingSettings()), pairs=PAIRS / pipeline, places=places, workers=workers()
            )
        else:
            came = train_inctrl(
                detectors["inctrl"],
                settings.get("inctrl", InCTRLTrainingSettings()),
                pairs=PAIRS / pipeline,
                auxiliary=EpisodeFiles.of(EPISODES, pipeline).auxiliary,
                places=places,
                workers=workers(),
            )
        measured = "" if came.held_out_loss is None else f", on held-out examples {came.held_out_loss:.4f}"
        get_run_logger().info(f"{pipeline}: {name}, {came.steps} steps, loss {came.loss:.4f}{measured}")


if __name__ == "__main__":
    run_stage(train, on_gpu=True)
