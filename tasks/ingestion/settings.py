"""Define the settings of the user's datasets and of their object masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, NonEmpty, Rising

LayoutName = Literal[
    "folder",
    "photographs",
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
OF_A_FILE: LayoutName = "table"  # the layout whose path is a file
AUTO: Literal["auto"] = "auto"
IntensitySetting = Literal["auto", "full"] | Annotated[tuple[float, float], Rising()]


@dataclass(frozen=True)
class FolderSettings:
    """Settings of one of the user's datasets."""

    __pydantic_config__ = STRICT

    path: Annotated[str, NonEmpty()]
    """Folder of the dataset, absolute or relative to the project's root, or a URL such as s3://bucket/parts. The layout `table` takes a
    file instead."""
    layout: LayoutName = "folder"
    """Layout of the files. `folder` reads MVTec AD's layout, or folders of normal and of abnormal pictures. `photographs` reads pictures to
    make pairs from. `table` reads a list. The others read public datasets as distributed. `changepair datasets` describes each."""
    snapshot: bool = False
    """Whether ingestion copies the pictures into data/pictures, which DVC tracks. Results can then be reproduced without the originals.
    Otherwise pictures are read in place and must stay there."""
    intensity: IntensitySetting = AUTO
    """Samples that are shown black and white in pictures of more than 8 bits. `auto` chooses them once from the normal training pictures
    and records them in the manifest. `full` uses the range of the sample type. `[low, high]` sets them. Pictures of 8 bits are read
    unchanged."""
    normal: tuple[Annotated[str, NonEmpty()], ...] = ()
    """Folders within `path` that hold normal pictures, for the layout `folder`. A quarter of the pictures is set aside for testing. Without
    `normal` and `abnormal`, folders are recognised by usual names, such as good, ok, normal; defect, nok, bad."""
    abnormal: tuple[Annotated[str, NonEmpty()], ...] = ()
    """Folders within `path` that hold pictures with defects. Their subfolders name the kinds of defect."""
    masks: Annotated[str, NonEmpty()] | None = None
    """Folder within `path` that holds the masks of the abnormal pictures, in the same subfolders. A mask is named `<name>_mask` or
    `<name>`, in any supported picture format."""
    licence: str | None = None
    """Licence of the pictures. It is copied into every row of the manifest. `null` records the licence of the layout. A column `licence` of
    a table sets the licence of single pictures."""


@dataclass(frozen=True)
class ObjectsSettings:
    """Settings of the object masks of a dataset. Objects that they outline can appear, disappear or be exchanged in change pairs."""

    __pydantic_config__ = STRICT

    format: Literal["coco", "open-images", "masks"]
    """Format of the masks. `coco` reads COCO's instances (a JSON file). `open-images` reads Open Images' masks (a CSV file and its PNGs).
    `masks` reads a folder of mask PNGs."""
    path: Annotated[str, NonEmpty()]
    """File, or for `masks` the folder, of the annotations: absolute, relative to the project's root, or a URL."""
