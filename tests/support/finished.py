"""Small finished pairs of real photographs, as `changepair pairs build` makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import skimage.data
from PIL import Image

from changepair.tasks.common.files import sha256
from changepair.tasks.pairs.build import Built, build
from changepair.tasks.synthesis.settings import SynthesisSettings

SETTINGS: dict[str, Any] = {
    "pairs": 22,
    "pairs_per_shard": 8,
    "resolution": 64,
    "seed": 3,
    "held_out": 0.2,
    "kinds": {"local-region": 0.6, "distractor": 0.2, "none": 0.2},
}
"""The last 5 pairs are held out. So the first two shards have pairs to train on, and the third has pairs of both splits."""


def photographs_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("astronaut", "coffee", "cat", "rocket", "brick", "grass"):
        Image.fromarray(getattr(skimage.data, name)()[:256, :256]).save(folder / f"{name}.png")
    return folder


def build_small(photographs: Path, out: Path, *, workers: int = 1, **settings: Any) -> Built:
    made = replace(SynthesisSettings(**SETTINGS, pasted=1.0, regenerated=0.0), **settings)
    return build(photographs, out, made, licence="CC0 1.0", workers=workers)


def files_of(folder: Path) -> dict[str, str]:
    """Gives the hash of each file below a folder."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in folder.rglob("*") if file.is_file()}
