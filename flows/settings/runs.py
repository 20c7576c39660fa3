"""Defines the settings of scheduled runs: when a pipeline is retrained, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from changepair.flows.settings.reader import nearest
from changepair.tasks.common.bounds import STRICT
from changepair.tasks.monitoring.settings import WatchSettings

UNITS = ("minutes", "hours", "days", "weeks")
LONGEST = timedelta(days=3650)  # between two runs


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _cron(line: str) -> str:
    try:
        CronSim(line, datetime(2000, 1, 1))
    except CronSimError as error:
        raise ValueError(f'a cron line such as "0 3 * * 1", not {line!r}') from error
    return line


def _interval(setting: Any) -> timedelta:
    match = re.fullmatch(r"([1-9]\d*) (minute|hour|day|week)s?", str(setting))
    if match is None:
        raise ValueError(f'a time such as "6 hours" ({", ".join(UNITS)}), not {setting!r}')
    if len(match[1]) > 6 or timedelta(**{f"{match[2]}s": int(match[1])}) > LONGEST:
        raise ValueError(f"a time of {LONGEST.days:,} days at most, not {setting!r}")
    return timedelta(**{f"{match[2]}s": int(match[1])})


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"a time zone such as 'Europe/Berlin', not {name!r}{nearest(name, sorted(available_timezones()))[:60]}") from error
    return name


class Schedule(Strict):
    """When a pipeline is retrained by itself: `cron` or `interval`."""

    cron: Annotated[str, AfterValidator(_cron)] | None = None
    """A cron line, such as "0 3 * * 1": Mondays at three."""
    interval: Annotated[timedelta, BeforeValidator(_interval)] | None = None
    """A time between two runs, such as "6 hours"."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """In which the cron line is meant."""

    @model_validator(mode="after")
    def _one(self) -> Schedule:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("either cron or interval")
        return self

    def __str__(self) -> str:
        return f"every {self.interval}" if self.cron is None else f"{self.cron} ({self.timezone})"


ScheduleSettings = Annotated[Schedule, BeforeValidator(lambda setting: {"cron": setting} if isinstance(setting, str) else setting)]
"""A schedule, or a cron line alone."""


@dataclass(frozen=True)
class Watch(WatchSettings):
    """Pictures that appear in a folder are scored, each once, by the pipeline's model in use."""

    __pydantic_config__ = STRICT

    schedule: ScheduleSettings | None = None
    """When to look: a cron line, or {cron or interval, timezone}; null for by hand. `changepair deploy` makes a deployment of it, and has
    the pipeline retrained when the line has drifted, or people have said enough."""


Overlap = Literal["wait", "skip"]
Results = Literal["branch", "tag", "none"]
Tag = Annotated[str, Field(pattern=r"^[^\s,]+$")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]*$")]  # of Git, and no option of its commands
Remote = Annotated[str, Field(pattern=r"^[^-\s]\S*$")]


def branch_of(pipeline: str) -> str:
    """Names the branch of a pipeline's results, or the start of their tags' names."""
    return f"changepair/{pipeline}"


class Runs(Strict):
    """The way the runs of deployments work: each in a clean clone, whose results are committed."""

    workspaces: Remote = "~/.changepair"
    """The folder of the clones, one a pipeline, and of the cache that they share."""
    repository: Remote | None = None
    """What is cloned; null for the checkout's remote `origin`, or the checkout itself if it has none."""
    revision: Revision = "main"
    """The branch, tag or commit that a run works at. A pipeline's own `runs` may name another."""
    results: Results = "branch"
    """Where a run commits dvc.lock, its metrics and which model is in use: on the branch `changepair/<pipeline>`, under a new tag
    `changepair/<pipeline>/<number>`, or nowhere."""
    remote: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """DVC's remote that artifacts are pulled from and pushed to; null for its default one, if there is one."""
    remote_timeout: Annotated[int, Field(ge=1, le=7 * 86400)] = 3600
    """Seconds that one pull or push may take."""
    overlap: Overlap = "wait"
    """What a second run of the same pipeline does while one is at work."""
    tags: tuple[Tag, ...] = ()
    """In the Prefect UI."""
    pool: Remote | None = None
    """The work pool whose workers run them; null for `changepair serve`."""
    gpus: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many stages may compute on GPUs at the same time, over all runs that share a server."""
