"""Stage evaluate: detectors and episodes in; figures, scores, curves, galleries and a report out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from prefect import flow
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.table import Table

from flows import provenance
from flows.artifacts import data_uri, key
from flows.settings import read_setting, read_yaml
from flows.stage import CANDIDATE, EPISODES, EVALUATION, INPAINTERS, MODELS, PAIRS, run_stage
from tasks.detector_settings import DetectorSettings
from tasks.evaluation.curves import curves_of
from tasks.evaluation.evaluate import TargetResult, load_contenders
from tasks.evaluation.figures import heading
from tasks.evaluation.report import Inputs, Made, markdown
from tasks.evaluation.results import Results, results_of, table
from tasks.evaluation.settings import EvaluationSettings
from tasks.evaluation.task import evaluate_target, write_curves, write_galleries, write_report, write_results
from tasks.sampling.episodes import EpisodeFiles, read_episodes
from tasks.stopping import stoppable
from tasks.synthesis.shards import OVERVIEW_NAME

KEYS = ("sources", "textures", "auxiliary", "targets")


@flow(name="evaluate", flow_run_name="evaluate {pipeline}")
@stoppable
def evaluate(pipeline: str) -> None:
    detectors = read_setting(("pipelines", pipeline, "detectors"), DetectorSettings)
    settings = read_setting(("pipelines", pipeline, "evaluation"), EvaluationSettings)
    files = EpisodeFiles.of(EPISODES, pipeline)
    models = MODELS / pipeline / CANDIDATE
    measured, results = measure(detectors, settings, files, models)
    folder = EVALUATION / pipeline
    write_results(folder, results)
    galleries = [result.gallery for result in measured]
    curves = curves_of([item for result in measured for item in result.measured], results.scores, results.figures, _protocols(files))
    write_curves(curves, folder / "curves")
    write_galleries(folder / "galleries", galleries)
    inputs = Inputs(
        pairs=PAIRS / pipeline / OVERVIEW_NAME,
        models=models,
        inpainter=INPAINTERS / pipeline,
        rejected=files.rejected,
        near_duplicates=files.near_duplicates,
    )
    report = folder / "report.html"
    write_report(report, made=_made(pipeline), inputs=inputs, results=results, curves=curves, galleries=galleries, evaluation=settings)

    rows = table(results.figures)
    create_table_artifact(rows, key=key(pipeline, "results"), description=f"Figures of {pipeline}: percent, mean ± std over seeds")
    for gallery in galleries:
        name = f"overlays-{gallery.target}"
        picture = folder / "galleries" / f"{name}.png"
        if picture.is_file():
            create_image_artifact(data_uri(picture), key=key(pipeline, name), description=f"Maps of {pipeline} on {gallery.target}")
    create_markdown_artifact(f"# {pipeline}\n\n{markdown(results.figures)}\nWhole report: `{report}`", key=key(pipeline, "report"))
    _print(rows)


def measure(
    detectors: DetectorSettings, settings: EvaluationSettings, files: EpisodeFiles, models: Path
) -> tuple[list[TargetResult], Results]:
    """Every detector on every episode, a task a target."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contenders = load_contenders(detectors, settings, models, device)
    targets = dict.fromkeys(episode.target for episode in read_episodes(files.episodes))
    measured = cast(list[TargetResult], [evaluate_target(target, contenders, files, settings, device) for target in targets])
    everything = [item for result in measured for item in result.measured]
    return measured, results_of(everything, [result.scores for result in measured], _protocols(files))


def _protocols(files: EpisodeFiles) -> list[str]:
    """In the order of sampling's settings, which the episodes are in."""
    return list(dict.fromkeys(episode.protocol for episode in read_episodes(files.episodes)))


def _made(pipeline: str) -> Made:
    content = read_yaml()
    section = {name: value for name, value in content["pipelines"][pipeline].items() if name != "schedule"}
    folders = content["datasets"].get("folders") or {}
    return Made(
        pipeline=pipeline,
        settings=section,
        layouts={target: folders.get(target, {}).get("layout", "") for target in section["targets"]},
        commit=provenance.commit(),
        artifacts=provenance.artifacts(pipeline, list(dict.fromkeys(name for key in KEYS for name in section[key]))),
        versions=provenance.versions(),
    )


def _print(rows: Sequence[dict[str, str]]) -> None:
    printed = Table(title="percent, mean ± std over seeds")
    for name in rows[0]:
        printed.add_column(heading(name), no_wrap=True)
    for row in rows:
        printed.add_row(*row.values())
    Console(width=200).print(printed)


if __name__ == "__main__":
    run_stage(evaluate, on_gpu=True)
