"""A line of parts for tests: pictures of a texture, some with a hole, and what scores them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import skimage.data
from processes import started, within
from servers import free_port

from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor

TEXTURE = skimage.data.brick()


def predictor() -> Predictor:
    """A detector that needs no training, with a prompt and a threshold."""
    own = PatchResidualSettings(resolution=64, top_share=0.01)
    one = Predictor(Named("patch-residual", {"patch-residual": own}, create_detector(own, build_encoder(own.encoder, 64))))
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


@contextmanager
def review_page(project: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`changepair review` of the pipeline `small`: its address and process."""
    port = free_port()
    log = project.parent / "review.log"
    log.unlink(missing_ok=True)
    with started(project, "changepair", "review", "small", "--port", str(port), log="../review.log", TMPDIR=str(project.parent)) as process:
        within(90, lambda: b"serving the page at" in log.read_bytes() or process.poll() is not None, "the page")
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}", process
