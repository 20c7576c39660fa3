"""A semantic domain: handwritten digits (8x8, grey) from scikit-learn, where one class is normal and the others are not.

The UCI Optical Recognition of Handwritten Digits test set (Alpaydin and Kaynak, 1998). Zeros are normal, every second one for
training; of each other digit the first `OTHERS` are anomalous, so that a third of the test pictures are anomalous.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LICENCE = "CC BY 4.0"
NORMAL_DIGIT = 0
OTHERS = 5
LARGEST_GREY = 16  # the set counts ink in 4x4 blocks of a 32x32 bitmap


def write(folder: Path) -> None:
    """Writes the digits as PNG to folder/train/good, test/good and test/<digit>."""
    from sklearn.datasets import load_digits  # costs a second, which reading other datasets need not spend

    digits = load_digits()
    pictures = np.rint(digits.images * (255.0 / LARGEST_GREY)).astype(np.uint8)
    normal = np.flatnonzero(digits.target == NORMAL_DIGIT)
    _save(pictures, normal[::2], folder / "train" / "good")
    _save(pictures, normal[1::2], folder / "test" / "good")
    for digit in range(10):
        if digit != NORMAL_DIGIT:
            _save(pictures, np.flatnonzero(digits.target == digit)[:OTHERS], folder / "test" / f"digit-{digit}")


def _save(pictures: np.ndarray, indices: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for index in indices:
        Image.fromarray(pictures[index]).save(folder / f"{index:04d}.png")
