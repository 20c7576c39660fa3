"""Register the datasets inside installed packages. Each is written in the layout `folder`, with the same bytes every time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture, read_picture
from changepair.tasks.ingestion import texture_defects
from changepair.tasks.ingestion.development import cells, labels, letters, parts, sheets, surfaces, textures
from changepair.tasks.ingestion.listing import ListedPicture
from changepair.tasks.ingestion.readers.labelled import elpv_cells

# Left out: motorcycle_right, which shows the same as motorcycle_left; brick and gravel, which texture-defects tests on.
SCIKIT_IMAGE = ("astronaut", "cat", "coffee", "grass", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
# Pictures of mvtb-data. Left out: drawings, paintings, portraits and test pictures whose rights others hold, boards of markers, and the
# second of two pictures that differ in light or by a step aside. The aerial pictures overlap.
SINGLE = (
    *("butterfly.jpg", "building2-3.png", "castle.png", "church.png", "eiffel-1.png", "eiffel-2.png", "greenscreen.png", "lab-scene.png"),
    *("parks.png", "road.png", "rocks2-l.png", "roof.png", "street.png", "tomato_124.png", "tomato_14.png", "tomato_35.png"),
    *("tomato_54.png", "walls-l.png", "yellowtargets.png", *(f"flowers{number}.png" for number in range(1, 10))),
)
WHOLE = ("campus", "campus/holdout", "mosaic")
TURNS = ("001", "005", "009")  # of seq, a model house on a turntable
LONGEST_SIDE = 1024  # pixels
NORMAL_DIGIT, OTHERS = 0, 5  # the normal class of digits, and the number of pictures of each other class
LARGEST_GREY = 16  # the digits count ink in 4x4 blocks of a 32x32 bitmap


@dataclass(frozen=True)
class Packaged:
    write: Callable[[Path], None]
    licence: str


def _sample_photos(folder: Path) -> None:
    """Write the colour photographs inside scikit-image and scikit-learn, and scikit-image's texture `grass`, as sources of pairs."""
    from sklearn.datasets import load_sample_image  # here, because it costs a second that other datasets do not need

    for name in SCIKIT_IMAGE:
        _save(getattr(skimage.data, name)(), folder / "train" / "good" / f"{name}.png")
    left, _right, _disparity = skimage.data.stereo_motorcycle()
    _save(left, folder / "train" / "good" / "motorcycle.png")
    for name in SCIKIT_LEARN:
        _save(load_sample_image(name), folder / "train" / "good" / f"{Path(name).stem}.png")


def _vision_toolbox(folder: Path) -> None:
    """Write photographs of the Machine Vision Toolbox for Python as sources of pairs (Corke, "Robotics, Vision and Control", Springer
    2023).

    They show buildings, flowers, towns from the air, stone and tile. Transparent pixels are composited over white. Raises BadInput if
    mvtb-data is not installed.
    """
    try:
        package = resources.files("mvtbdata")
    except ModuleNotFoundError as error:
        raise BadInput("vision-toolbox: the package mvtb-data is not installed; run pip install 'changepair[samples]'") from error
    with resources.as_file(package / "images") as images:
        files = {Path(name).stem: images / name for name in SINGLE}
        files |= {file.stem: file for part in WHOLE for file in (images / part).glob("*.png")}
        files |= {f"house-{name}": images / "seq" / f"im.{name}.png" for name in TURNS}
        for name, file in sorted(files.items()):
            photo = Image.fromarray(read_picture(file))
            photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
            _save(np.asarray(photo), folder / "train" / "good" / f"{name}.png")


def _digits(folder: Path) -> None:
    """Write scikit-learn's handwritten digits, 8x8 grey, the UCI test set (Alpaydin and Kaynak, 1998).

    Zeros are normal, and every second one is for training. The first OTHERS of each other digit are anomalous, a third of the test
    pictures.
    """
    from sklearn.datasets import load_digits  # here, because it costs a second that other datasets do not need

    digits = load_digits()
    pictures = np.rint(digits.images * (255.0 / LARGEST_GREY)).astype(np.uint8)
    classes = [np.flatnonzero(digits.target == digit) for digit in range(10)]
    chosen = {"train/good": classes[NORMAL_DIGIT][::2], "test/good": classes[NORMAL_DIGIT][1::2]}
    chosen |= {f"test/digit-{digit}": indices[:OTHERS] for digit, indices in enumerate(classes) if digit != NORMAL_DIGIT}
    for place, indices in chosen.items():
        for index in indices:
            _save(pictures[index], folder / place / f"{index:04d}.png")


def _elpv(folder: Path) -> None:
    """Copy 2,624 electroluminescence pictures of solar cells, 300x300 grey, split as by the layout `elpv`.

    See Buerhop-Lux et al., "A Benchmark for Visual Identification of Defective Solar Cells", EU PVSEC 2018. Raises BadInput if elpv-dataset
    is not installed.
    """
    try:
        package = resources.files("elpv_dataset")
    except ModuleNotFoundError as error:
        raise BadInput("elpv: the package elpv-dataset is not installed; run pip install 'changepair[samples]'") from error
    with resources.as_file(package / "data") as data:
        for item in elpv_cells(data / "labels.csv", "elpv"):
            if isinstance(item, ListedPicture):
                copy = folder / item.split / item.defect / item.image.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.image, copy)


def _save(picture: Picture, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


PACKAGED: dict[str, Packaged] = {
    "sample-photos": Packaged(
        _sample_photos, "CC0, public domain or CC BY 2.0 (china, flower); see the data pages of scikit-image and scikit-learn"
    ),
    # In an extra because of its size, 130 MB. The classifier states no licence of single pictures.
    "vision-toolbox": Packaged(_vision_toolbox, "MIT (classifier of the package mvtb-data)"),
    "texture-defects": Packaged(texture_defects.write, texture_defects.LICENCE),
    "development-textures": Packaged(textures.write, "CC0 (made here)"),
    "development-letters": Packaged(letters.write, "CC0 (made here, with Pillow's own font)"),
    "development-surfaces": Packaged(surfaces.write, "CC0 (made here)"),
    "development-parts": Packaged(parts.write, "CC0 (made here)"),
    "development-labels": Packaged(labels.write, "CC0 (made here, with Pillow's own font)"),
    "development-sheets": Packaged(sheets.write, "CC0 (made here)"),
    "development-cells": Packaged(cells.write, "CC0 (made here)"),
    "digits": Packaged(_digits, "CC BY 4.0"),
    "elpv": Packaged(_elpv, "CC BY-NC-SA 4.0"),  # in an extra because of its licence
}
