"""A dataset of the user's own, as pipelines.yaml declares it under datasets.folders."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import STRICT


@dataclass(frozen=True)
class FolderSettings:
    __pydantic_config__ = STRICT

    path: str
    """The dataset's folder, absolute or from the project's root."""
    licence: str = "not stated"
    """Under what terms its pictures may be used; copied into every row of the manifest."""
