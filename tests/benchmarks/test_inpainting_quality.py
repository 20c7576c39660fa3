"""Our own inpainting model on photographs it has not seen, the exemplar fill, OpenCV's Telea and a fill with the mean colour.

And the seams of pasted objects."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_places
from PIL import Image
from torch import Tensor

from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.rows import write_rows
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.ingestion.ingest import ingest_packaged
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.table import ObjectRow
from changepair.tasks.inpainting.exemplar import Exemplar
from changepair.tasks.inpainting.inpainter import load_inpainter, write_choice
from changepair.tasks.inpainting.residual import hole
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.sampling.episodes import read_pictures
from changepair.tasks.synthesis.changes import pasted
from changepair.tasks.synthesis.objects import Dropped, ObjectCutout, Objects
from changepair.tasks.synthesis.settings import Blend, ObjectSettings
from changepair.tasks.training.inpainting import train_inpainter
from changepair.tasks.training.loop import TrainingFolders

pytestmark = pytest.mark.bench
HELD_OUT = ("astronaut", "coffee", "china")
PICTURES = 192
SIZE = 128
RADIUS = 3  # pixels, of Telea's method
STEPS = 300  # of our own model's training


def test_our_own_model_and_the_exemplar_fill_beside_telea_and_a_mean_fill(tmp_path: Path) -> None:
    ingest_packaged("sample-photos", places=make_places(tmp_path / "manifests"))
    rows = read_pictures(tmp_path / "manifests" / "sample-photos.parquet")
    learnt = [row for row in rows if Path(row.image).stem not in HELD_OUT]
    unseen = [row.image for row in rows if Path(row.image).stem in HELD_OUT]
    assert len(unseen) == len(HELD_OUT)
    write_rows(tmp_path / "learnt.parquet", PictureRow, learnt)
    settings = InpainterSettings(model="own", steps=STEPS)
    train_inpainter(settings, tmp_path / "learnt.parquet", places=TrainingFolders(tmp_path / "model", tmp_path / "checkpoints"))
    write_choice(tmp_path / "model", settings)

    sources, rng = Photographs(unseen, (0.3, 1.0), SIZE), generator(0, "held out")
    images = torch.stack([torch.from_numpy(np.array(sources.draw(rng)[1])) for _ in range(PICTURES)]).permute(0, 3, 1, 2).float() / 255
    masks = torch.stack([torch.from_numpy(hole(SIZE, rng)) for _ in range(PICTURES)])[:, None].float()
    own = load_inpainter(tmp_path / "model", RepaintingSettings())
    start = time.perf_counter()
    exemplar = Exemplar()(images, masks, [""] * PICTURES, list(range(PICTURES)))
    milliseconds = 1e3 * (time.perf_counter() - start) / PICTURES
    fills = {
        "exemplar": exemplar,
        "own": own(images, masks, [""] * PICTURES, list(range(PICTURES))),
        "Telea": telea(images, masks),
        "mean colour": torch.where(masks > 0, mean_outside(images, masks), images),
    }
    metrics = {name: measured(images, masks, fill) for name, fill in fills.items()}
    print(f"\n{PICTURES} squares of photographs not trained on ({', '.join(HELD_OUT)}), at {SIZE}x{SIZE}:")
    for name, (error, distance, seam) in metrics.items():
        print(f"{name:12} error inside the mask {error:.4f}   distance in features {distance:.4f}   visibility of the seam {seam:.3f}")
    print(f"the exemplar fill takes {milliseconds:.0f} ms a picture")
    for better, worse in (("exemplar", "own"), ("own", "Telea"), ("own", "mean colour")):
        assert metrics[better][1] < metrics[worse][1] and metrics[better][2] < metrics[worse][2]


def test_the_seam_of_a_pasted_object(tmp_path: Path) -> None:
    """The steps across the rim of an object of another photograph, compared with those that the picture has there."""
    ingest_packaged("sample-photos", places=make_places(tmp_path / "manifests"))
    images = [row.image for row in read_pictures(tmp_path / "manifests" / "sample-photos.parquet")]
    sources, settings = Photographs(images, (0.3, 1.0), SIZE), ObjectSettings(area=(0.02, 0.3))
    objects = Objects(settings, sources, empty_objects(tmp_path / "objects.parquet"))
    seams: dict[Blend, list[float]] = {"soft": [], "poisson": [], "mixed": []}
    seconds = dict.fromkeys(seams, 0.0)
    for number in range(PICTURES):
        rng = generator(number, "pasted")
        photo, picture = sources.draw(rng)
        other = drawn(objects, photo, rng)
        left, top, right, bottom = Image.fromarray(other.mask).getbbox() or (0, 0, 0, 0)
        corner = int(rng.integers(SIZE - (right - left) + 1)), int(rng.integers(SIZE - (bottom - top) + 1))
        _poisson, outline = pasted(picture, other, *corner, right - left, bottom - top, "poisson")
        if not outline.any():
            continue
        for blend in seams:
            start = time.perf_counter()
            after, _touched = pasted(picture, other, *corner, right - left, bottom - top, blend)
            seconds[blend] += time.perf_counter() - start
            before_, after_ = (torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255 for one in (picture, after))
            seams[blend].append(float(seam(before_, torch.from_numpy(outline)[None, None].float(), after_)))
    for blend, found in seams.items():
        print(f"{blend:8} visibility of the seam {np.mean(found):.3f}   {1e3 * seconds[blend] / PICTURES:.1f} ms")
    assert np.mean(seams["poisson"]) < np.mean(seams["soft"])


def drawn(objects: Objects, photo: int, rng: np.random.Generator) -> ObjectCutout:
    while True:
        with suppress(Dropped):
            return objects.draw(rng, but=photo)


def empty_objects(table: Path) -> Path:
    write_rows(table, ObjectRow, [])
    return table


def measured(images: Tensor, masks: Tensor, fill: Tensor) -> tuple[float, float, float]:
    """Mean absolute error inside the mask, 0..1; distance in features; visibility of the seam. Means over the pictures."""
    error = ((fill - images).abs() * masks).sum((1, 2, 3)) / (3 * masks.sum((1, 2, 3)))
    return float(error.mean()), feature_distance(images, masks, fill), float(seam(images, masks, fill).mean())


@torch.no_grad()
def feature_distance(images: Tensor, masks: Tensor, fill: Tensor) -> float:
    """1 - cosine between the packaged encoder's features of the picture and of the filled one, where the hole is; mean over its stages."""
    encoder = build_encoder(MetaUASSettings().encoder, images.shape[-1]).eval()
    distances = []
    for before, after in zip(encoder(images), encoder(fill), strict=True):
        weights = F.adaptive_avg_pool2d(masks, before.shape[-2:])[:, 0]
        apart = 1 - F.cosine_similarity(before, after, dim=1)
        distances.append(((apart * weights).sum((1, 2)) / weights.sum((1, 2))).mean())
    return float(torch.stack(distances).mean())


def seam(images: Tensor, masks: Tensor, fill: Tensor) -> Tensor:
    """Measures how far the steps across the mask's rim are from the photograph's own there: |log of their ratio|, one a picture."""
    return (steps_across(fill, masks) / steps_across(images, masks)).clamp(min=1e-3).log().abs()


def steps_across(images: Tensor, masks: Tensor) -> Tensor:
    """Mean absolute difference of neighbours of which one is in the mask, and the other is not."""
    total, count = torch.zeros(len(images)), torch.zeros(len(images))
    for axis in (2, 3):
        rim = masks.diff(dim=axis).abs()
        total += (images.diff(dim=axis).abs().mean(1, keepdim=True) * rim).sum((1, 2, 3))
        count += rim.sum((1, 2, 3))
    return total / count + 1e-4


def telea(images: Tensor, masks: Tensor) -> Tensor:
    filled = []
    for image, mask in zip(images, masks, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        filled.append(cv2.inpaint(pixels, (mask[0] * 255).byte().numpy(), RADIUS, cv2.INPAINT_TELEA))
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float() / 255


def mean_outside(images: Tensor, masks: Tensor) -> Tensor:
    return (images * (1 - masks)).sum((2, 3), keepdim=True) / (1 - masks).sum((2, 3), keepdim=True)
