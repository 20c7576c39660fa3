"""Registers the datasets that come inside installed packages. Each is written out in the folder layout and then read like any folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from changepair.tasks.ingestion import (
    development_letters,
    development_textures,
    digits,
    elpv,
    sample_photos,
    texture_defects,
    vision_toolbox,
)


@dataclass(frozen=True)
class Packaged:
    """`write(folder)` lays the dataset out as the layout `folder` has it; the same bytes every time."""

    write: Callable[[Path], None]
    licence: str


PACKAGED: dict[str, Packaged] = {
    "sample-photos": Packaged(sample_photos.write, sample_photos.LICENCE),
    "vision-toolbox": Packaged(vision_toolbox.write, vision_toolbox.LICENCE),
    "texture-defects": Packaged(texture_defects.write, texture_defects.LICENCE),
    "development-textures": Packaged(development_textures.write, development_textures.LICENCE),
    "development-letters": Packaged(development_letters.write, development_letters.LICENCE),
    "digits": Packaged(digits.write, digits.LICENCE),
    "elpv": Packaged(elpv.write, elpv.LICENCE),
}
