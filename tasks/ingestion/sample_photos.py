"""The colour photographs inside scikit-image and scikit-learn, and scikit-image's texture `grass`: pictures to make pairs from.

The textures `brick` and `gravel` are not among them: texture-defects tests on those.
"""

from __future__ import annotations

from pathlib import Path

import skimage.data
from PIL import Image

LICENCE = "CC0, public domain or CC BY 2.0 (china, flower); see the data pages of scikit-image and scikit-learn"

# motorcycle_right is left out: it shows what motorcycle_left shows.
SCIKIT_IMAGE = ("astronaut", "cat", "coffee", "grass", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
SCIKIT_LEARN = ("china.jpg", "flower.jpg")


def write(folder: Path) -> None:
    """Writes the photographs, as PNG, to folder/train/good."""
    from sklearn.datasets import load_sample_image  # costs a second, which reading other datasets need not spend

    pictures = folder / "train" / "good"
    pictures.mkdir(parents=True)
    for name in SCIKIT_IMAGE:
        Image.fromarray(getattr(skimage.data, name)()).save(pictures / f"{name}.png")
    left, _right, _disparity = skimage.data.stereo_motorcycle()
    Image.fromarray(left).save(pictures / "motorcycle.png")
    for name in SCIKIT_LEARN:
        Image.fromarray(load_sample_image(name)).save(pictures / f"{Path(name).stem}.png")
