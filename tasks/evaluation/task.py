"""Evaluation as Prefect tasks: one a target, then the figures, plots and report."""

from __future__ import annotations

from prefect import task

from tasks.evaluation import evaluate, plots, report
from tasks.retries import worth_retrying

evaluate_target = task(
    evaluate.evaluate_target,
    name="evaluate target",
    task_run_name="evaluate {target}",
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=12 * 3600,
    persist_result=False,
)
write_results = task(
    evaluate.write_results, name="write figures and scores", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False
)
write_plots = task(plots.write_plots, name="write plots", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)
write_report = task(report.write_report, name="write report", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)
