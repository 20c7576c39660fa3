"""Define the settings of the user's datasets and of the masks of their objects."""

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
    __pydantic_config__ = STRICT

    path: Annotated[str, NonEmpty()]
    """The dataset's folder (for the layout table, the file), absolute or relative to the project's root; or a URL such as
    s3://bucket/parts."""
    layout: LayoutName = "folder"
    """Layout of the files: MVTec AD's, or folders of normal and of abnormal pictures (folder); pictures to make pairs from (photographs); a
    table; or that of a public dataset. `changepair datasets` lists them."""
    snapshot: bool = False
    """Whether the pictures are copied into data/pictures, which DVC tracks. Then results can be reproduced when the originals are gone.
    Otherwise pictures are read in place, and have to stay there."""
    intensity: IntensitySetting = AUTO
    """The samples that are black and white in pictures of more than 8 bits. `auto`: chosen once from the normal training pictures, and
    written to the manifest. `full`: the range of the sample type. Or [low, high]. Pictures of 8 bits are read unchanged."""
    normal: tuple[Annotated[str, NonEmpty()], ...] = ()
    """Folders within `path` that hold normal pictures, for the layout folder. A quarter of the pictures is set aside for testing. Without
    `normal` and `abnormal` the usual names are recognised (good, ok, normal; defect, nok, bad)."""
    abnormal: tuple[Annotated[str, NonEmpty()], ...] = ()
    """Folders within `path` that hold pictures with defects. Their subfolders name the kinds of defects."""
    masks: Annotated[str, NonEmpty()] | None = None
    """Folder within `path` that holds the masks of the abnormal pictures, in the same subfolders: `<name>_mask` or `<name>`, in any
    supported picture format."""
    licence: str | None = None
    """Under what terms its pictures may be used, copied into every row of the manifest; null for what the dataset's home states."""


@dataclass(frozen=True)
class ObjectsSettings:
    """The masks of a dataset's objects."""

    __pydantic_config__ = STRICT

    format: Literal["coco", "open-images", "masks"]
    """COCO's instances (a JSON), Open Images' masks (a CSV with its PNGs beside), or a folder of mask PNGs."""
    path: Annotated[str, NonEmpty()]
    """The file, or for `masks` the folder; absolute, from the project's root, or a URL."""
