"""Synthesis as Prefect tasks: one a shard, then the index and the contact sheet."""

from __future__ import annotations

from prefect import task

from tasks.retries import worth_retrying
from tasks.synthesis import contact_sheet, synthesize

make_shard = task(
    name="make shard",
    task_run_name="make shard {number}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_retrying,
    timeout_seconds=3600,
    persist_result=False,
)(synthesize.make_shard)
write_index = task(name="write index", retries=2, retry_delay_seconds=5, timeout_seconds=3600, persist_result=False)(synthesize.write_index)
write_contact_sheet = task(
    name="write contact sheet",
    retries=2,
    retry_delay_seconds=5,
    timeout_seconds=600,
    persist_result=False,
)(contact_sheet.write_contact_sheet)
