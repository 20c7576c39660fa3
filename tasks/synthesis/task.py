"""Synthesis as Prefect tasks: one a shard, then the index and the overview."""

from __future__ import annotations

from prefect import task

from tasks.retries import worth_retrying
from tasks.synthesis import synthesize

make_shard = task(
    name="make shard",
    task_run_name="make shard {number}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=3600,
    persist_result=False,
)(synthesize.make_shard)
finish = task(
    name="write index and overview",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=3600,
    persist_result=False,
)(synthesize.finish)
