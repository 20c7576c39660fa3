"""Datasets of the user's own and the masks of their objects, as pipelines.yaml declares them under datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.settings import STRICT


@dataclass(frozen=True)
class FolderSettings:
    __pydantic_config__ = STRICT

    path: str
    """The dataset's folder, absolute or from the project's root."""
    licence: str = "not stated"
    """Under what terms its pictures may be used; copied into every row of the manifest."""


@dataclass(frozen=True)
class ObjectsSettings:
    """Where the masks of a dataset's objects are."""

    __pydantic_config__ = STRICT

    format: Literal["coco", "open-images", "masks"]
    """COCO's instances (a JSON), Open Images' masks (a CSV with its PNGs beside), or a folder of mask PNGs."""
    path: str
    """The file, or for `masks` the folder; absolute or from the project's root."""
