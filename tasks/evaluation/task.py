"""Evaluation as Prefect tasks: one a target, then the figures, plots and report."""

from __future__ import annotations

from prefect import task

from tasks.evaluation import evaluate, plots, report
from tasks.retries import worth_retrying

evaluate_target = task(
    name="evaluate target",
    task_run_name="evaluate {target}",
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=12 * 3600,
    persist_result=False,
)(evaluate.evaluate_target)
write_results = task(name="write figures and scores", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(
    evaluate.write_results
)
write_plots = task(name="write plots", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(plots.write_plots)
write_report = task(name="write report", retries=2, retry_delay_seconds=5, timeout_seconds=600, persist_result=False)(report.write_report)
