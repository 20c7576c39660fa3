"""Define the settings of scheduled runs: when a pipeline is retrained, and how."""

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
    match = re.fullmatch(r"([1-9][0-9]*) (minute|hour|day|week)s?", str(setting))
    if match is None:
        raise ValueError(f'a duration such as "6 hours" ({", ".join(UNITS)}), not {setting!r}')
    if len(match[1]) > 6 or timedelta(**{f"{match[2]}s": int(match[1])}) > LONGEST:
        raise ValueError(f"a duration of at most {LONGEST.days:,} days, not {setting!r}")
    return timedelta(**{f"{match[2]}s": int(match[1])})


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"a time zone such as 'Europe/Berlin', not {name!r}{nearest(name, sorted(available_timezones()))[:60]}") from error
    return name


class Schedule(Strict):
    """Schedule of retraining. Set exactly one of `cron` and `interval`."""

    cron: Annotated[str, AfterValidator(_cron)] | None = None
    """Cron line, such as "0 3 * * 1" for Mondays at 03:00."""
    interval: Annotated[timedelta, BeforeValidator(_interval)] | None = None
    """Time between two runs, such as "6 hours"; at most 3,650 days."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """Time zone of the cron line, such as Europe/Berlin."""

    @model_validator(mode="after")
    def _one(self) -> Schedule:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("exactly one of cron and interval")
        return self

    def __str__(self) -> str:
        return f"every {self.interval}" if self.cron is None else f"{self.cron} ({self.timezone})"


def of_cron_line(setting: Any) -> Any:
    """Return the section of a cron line that stands alone. Anything else is returned as it is."""
    return {"cron": setting} if isinstance(setting, str) else setting


ScheduleSettings = Annotated[Schedule, BeforeValidator(of_cron_line)]
"""A schedule, or only its cron line."""


@dataclass(frozen=True)
class Watch(WatchSettings):
    """Watching of a folder: the pipeline's current model scores each new picture once."""

    __pydantic_config__ = STRICT

    schedule: ScheduleSettings | None = None
    """Schedule of looking for new pictures: a cron line, or {cron or interval, timezone}. Null looks only on `changepair watch`. With a
    schedule, `changepair deploy` creates a deployment, and drift or enough new labels start a retraining."""


Overlap = Literal["wait", "skip"]
Results = Literal["branch", "tag", "none"]
Tag = Annotated[str, Field(pattern=r"^[^\s,]+$")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]*$")]  # Git must not read it as an option
Remote = Annotated[str, Field(pattern=r"^[^-\s]\S*$")]


def branch_of(pipeline: str) -> str:
    """Return the name of a pipeline's result branch, which is also the prefix of its result tags."""
    return f"changepair/{pipeline}"


class Runs(Strict):
    """Settings of deployed runs. Each run works in a clean clone and commits its results."""

    workspaces: Remote = "~/.changepair"
    """Folder on the worker for the clones, one per pipeline, and for the DVC cache that they share."""
    repository: Remote | None = None
    """Git repository to clone. Null uses the remote `origin` of this checkout, or this checkout without such a remote."""
    revision: Revision = "main"
    """Branch, tag or commit to check out. A pipeline can override it in its own `runs`."""
    results: Results = "branch"
    """Destination of the commit with dvc.lock, the metrics and the current model. `branch` commits to the branch `changepair/<pipeline>`,
    `tag` creates a tag `changepair/<pipeline>/<number>`, and `none` commits nothing."""
    remote: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of the DVC remote to pull artifacts from and push them to. Null uses DVC's default remote, if the project has one."""
    remote_timeout: Annotated[int, Field(ge=1, le=7 * 86400)] = 3600
    """Time limit of one pull or push, in seconds; at most 7 days."""
    overlap: Overlap = "wait"
    """Reaction to a run that is due while another run of the same pipeline is running: `wait` for its end, or `skip` the new run."""
    tags: tuple[Tag, ...] = ()
    """Tags of all runs in the Prefect UI."""
    pool: Remote | None = None
    """Prefect work pool whose workers execute the runs. Null leaves them to `changepair serve`."""
    gpus: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of stages that may use a GPU at the same time, over all runs on one Prefect server; at most 1,024."""
