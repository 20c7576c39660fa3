"""Stage train: change pairs in, the trained detectors of the pipeline out."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.runner import workers
from flows.settings import read_setting
from flows.stage import CHECKPOINTS, MODELS, PAIRS, run_stage
from tasks.detector_settings import DetectorSettings
from tasks.training.settings import TrainingSettings
from tasks.training.task import train_metauas


@flow(name="train", flow_run_name="train {pipeline}")
def train(pipeline: str) -> None:
    detectors = read_setting(("pipelines", pipeline, "detectors"), DetectorSettings)
    settings = read_setting(("pipelines", pipeline, "training"), TrainingSettings)
    (MODELS / pipeline).mkdir(parents=True, exist_ok=True)  # stays empty where no detector needs training
    if "metauas" in detectors:
        came = train_metauas(
            detectors["metauas"],
            settings,
            pairs=PAIRS / pipeline,
            model_folder=MODELS / pipeline / "metauas",
            checkpoints=CHECKPOINTS / pipeline / "metauas",
            workers=workers(),
        )
        get_run_logger().info(f"{pipeline}: metauas, {came.steps} steps, loss {came.loss:.4f}, on held-out pairs {came.held_out_loss:.4f}")


if __name__ == "__main__":
    run_stage(train)
