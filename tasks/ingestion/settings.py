"""Defines datasets of the user's own and the masks of their objects, as pipelines.yaml declares them under datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tasks.common.bounds import STRICT, Some

LayoutName = Literal[
    "folder",
    "table",
    "mvtec-ad",
    "mvtec-loco",
    "visa",
    "btad",
    "mpdd",
    "kolektor-sdd",
    "kolektor-sdd2",
    "aitex",
    "elpv",
    "goods-ad",
    "real-iad",
    "dtd-synthetic",
    "brain-mri",
    "head-ct",
    "mnist",
    "cifar10",
    "coco",
    "open-images",
    "dtd",
]


@dataclass(frozen=True)
class FolderSettings:
    __pydantic_config__ = STRICT

    path: Annotated[str, Some()]
    """The dataset's folder (for the layout table, its file), absolute or from the project's root; or its URL, such as s3://bucket/parts."""
    layout: LayoutName = "folder"
    """How it lies there: MVTec AD's way or as photographs (folder), as listed in a table, or as a dataset is distributed;
    `changepair datasets` lists them."""
    snapshot: bool = False
    """Whether its pictures are copied into data/pictures, which DVC keeps, so that results can be made again when they are gone; else they
    are read where they lie, and have to stay there."""
    licence: str | None = None
    """Under what terms its pictures may be used, copied into every row of the manifest; null for what the dataset's home states."""


@dataclass(frozen=True)
class ObjectsSettings:
    """The masks of a dataset's objects."""

    __pydantic_config__ = STRICT

    format: Literal["coco", "open-images", "masks"]
    """COCO's instances (a JSON), Open Images' masks (a CSV with its PNGs beside), or a folder of mask PNGs."""
    path: Annotated[str, Some()]
    """The file, or for `masks` the folder; absolute, from the project's root, or a URL."""
