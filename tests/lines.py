"""A line of parts for tests: pictures of a texture, some with a hole, and what scores them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import skimage.data

from tasks.detectors.encoders import build_encoder
from tasks.detectors.load import build_detector
from tasks.detectors.patch_residual import PatchResidualSettings
from tasks.prediction.models import Named
from tasks.prediction.predictor import Predictor

TEXTURE = skimage.data.brick()


def predictor() -> Predictor:
    """A detector that needs no training, with a prompt and a threshold."""
    own = PatchResidualSettings(resolution=64, top_share=0.01)
    one = Predictor(Named("patch-residual", {"patch-residual": own}, build_detector(own, build_encoder(own.encoder, 64))))
    one.prompt(TEXTURE[:96, :96])
    one.calibrate([TEXTURE[row : row + 96, 200:296] for row in range(0, 400, 20)], false_alarms=0.1)
    return one


def picture(place: int, *, hole: bool = False) -> np.ndarray:
    pixels = TEXTURE[11 * place :][:96, 5 * place :][:, :96].copy()
    if hole:
        pixels[20:70, 20:70] = np.random.default_rng(0).integers(0, 255, (50, 50))
    return pixels


def old(file: Path) -> Path:
    """Makes a file look as if it had been there for a while."""
    os.utime(file, (time.time() - 60, time.time() - 60))
    return file
