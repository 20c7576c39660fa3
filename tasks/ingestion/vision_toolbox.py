"""Photographs of the Machine Vision Toolbox for Python: buildings, flowers, towns from the air, stone and tile; to make pairs from.

Corke, "Robotics, Vision and Control", Springer 2023. From the package mvtb-data, an extra because of its size (130 MB); MIT, by the
package's classifier, which says nothing of single pictures. Left out: drawings, paintings, portraits and test pictures that others hold
rights in, boards of markers, and the second picture of a pair that differs in light or by a step aside. Those from the air overlap.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import read_picture

LICENCE = "MIT (classifier of the package mvtb-data)"
SINGLE = (
    "butterfly.jpg",
    "building2-3.png",
    "castle.png",
    "church.png",
    "eiffel-1.png",
    "eiffel-2.png",
    "greenscreen.png",
    "lab-scene.png",
    "parks.png",
    "road.png",
    "rocks2-l.png",
    "roof.png",
    "street.png",
    "tomato_124.png",
    "tomato_14.png",
    "tomato_35.png",
    "tomato_54.png",
    "walls-l.png",
    "yellowtargets.png",
    *(f"flowers{number}.png" for number in range(1, 10)),
)
WHOLE = ("campus", "campus/holdout", "mosaic")
TURNS = ("001", "005", "009")  # of seq: a model house on a turntable
LONGEST_SIDE = 1024  # pixels


def write(folder: Path) -> None:
    """Write the photographs, as PNG without transparency, to folder/train/good. Raises BadInput if mvtb-data is not installed."""
    try:
        package = resources.files("mvtbdata")
    except ModuleNotFoundError as error:
        raise BadInput("vision-toolbox: the package mvtb-data is not installed; pip install 'changepair[samples]'") from error
    pictures = folder / "train" / "good"
    pictures.mkdir(parents=True)
    with resources.as_file(package / "images") as images:
        for name, file in sorted(_files(images).items()):
            photo = Image.fromarray(read_picture(file))
            photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
            photo.save(pictures / f"{name}.png")


def _files(images: Path) -> dict[str, Path]:
    """Finds the photographs, by what each is to be called."""
    files = {Path(name).stem: images / name for name in SINGLE}
    files |= {file.stem: file for part in WHOLE for file in (images / part).glob("*.png")}
    return files | {f"house-{name}": images / "seq" / f"im.{name}.png" for name in TURNS}
