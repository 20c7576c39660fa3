"""Sampling as a Prefect task."""

from __future__ import annotations

from prefect import task

from tasks.retries import worth_retrying
from tasks.sampling.sample import sample

draw_episodes = task(
    name="draw episodes",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=3600,
    persist_result=False,
)(sample)
