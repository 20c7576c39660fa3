"""Stage evaluate: detectors and episodes in; figures, scores, plots and a report out."""

from __future__ import annotations

import torch
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.table import Table

from flows.artifacts import key
from flows.settings import read_setting, read_yaml
from flows.stage import EPISODES, EVALUATION, MODELS, PAIRS, run_stage
from tasks.detector_settings import DetectorSettings
from tasks.evaluation.evaluate import load_contenders, table
from tasks.evaluation.report import heading, markdown
from tasks.evaluation.settings import EvaluationSettings
from tasks.evaluation.task import evaluate_target, write_plots, write_report, write_results
from tasks.sampling.episodes import EpisodeFiles, read_episodes
from tasks.synthesis.shards import OVERVIEW_NAME


@flow(name="evaluate", flow_run_name="evaluate {pipeline}")
def evaluate(pipeline: str) -> None:
    detectors = read_setting(("pipelines", pipeline, "detectors"), DetectorSettings)
    settings = read_setting(("pipelines", pipeline, "evaluation"), EvaluationSettings)
    files = EpisodeFiles.of(EPISODES, pipeline)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contenders = load_contenders(detectors, settings, MODELS / pipeline, device)
    targets = dict.fromkeys(episode.target for episode in read_episodes(files.episodes))
    results = [evaluate_target(target, contenders, files, settings, device) for target in targets]
    folder = EVALUATION / pipeline
    tree = write_results(folder, results)
    plots = write_plots(folder / "plots", results)
    made = {name: section for name, section in read_yaml()["pipelines"][pipeline].items() if name != "schedule"}
    write_report(
        folder / "report.html",
        pipeline=pipeline,
        settings=made,
        tree=tree,
        plots=plots,
        pairs=PAIRS / pipeline / OVERVIEW_NAME,
    )

    rows = table(tree)
    create_table_artifact(rows, key=key(pipeline, "results"), description=f"Figures of {pipeline}: percent, mean ± std over seeds")
    create_markdown_artifact(f"# {pipeline}\n\n{markdown(tree)}\nWhole report: `{folder / 'report.html'}`", key=key(pipeline, "report"))
    _print(rows)


def _print(rows: list[dict[str, str]]) -> None:
    printed = Table(title="percent, mean ± std over seeds")
    for name in rows[0]:
        printed.add_column(heading(name), no_wrap=True)
    for row in rows:
        printed.add_row(*row.values())
    Console(width=200).print(printed)


if __name__ == "__main__":
    run_stage(evaluate)
