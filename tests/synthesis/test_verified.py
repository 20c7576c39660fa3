"""Verified masks: only what an encoder sees counts as changed."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.inpainting.settings import RepaintingSettings
from changepair.tasks.synthesis.changes import Change, Repaint, painted
from changepair.tasks.synthesis.objects import Dropped
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.verified import NOISE, STAGE, feature_distance, verified

SIDE = 128
PHOTO = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((SIDE, SIDE)))
REGION = np.zeros((SIDE, SIDE), dtype=bool)
REGION[40:88, 40:88] = True


def noisy(picture: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def settings(*, on: bool) -> SynthesisSettings:
    return SynthesisSettings(resolution=SIDE, inpainting=RepaintingSettings(verified=on, least_difference=0.0, least_changed=0.1))


def test_the_distance_is_that_of_the_packaged_encoder() -> None:
    other = noisy(PHOTO, 20)
    encoder = build_encoder(EncoderSettings(), SIDE)
    one, two = (encoder(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255)[STAGE] for picture in (PHOTO, other))
    expected = F.interpolate(1 - F.cosine_similarity(one, two)[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    assert np.abs(feature_distance(PHOTO, other) - expected.numpy()).max() < 1e-5
    assert np.abs(feature_distance(PHOTO, PHOTO)).max() < 1e-12


def test_another_object_is_kept_and_other_grain_is_not() -> None:
    replaced, grain = PHOTO.copy(), PHOTO.copy()
    replaced[REGION] = np.rot90(skimage.data.coffee()[100:148, 100:148], 1).reshape(-1, 3)
    grain[REGION] = noisy(PHOTO, 1)[REGION]
    kept = verified(PHOTO, replaced, REGION, REGION)
    assert kept.sum() > 0.8 * REGION.sum() and not (kept & ~REGION).any()
    with pytest.raises(Dropped, match="features unchanged"):
        verified(PHOTO, grain, REGION, REGION)


def test_the_limit_rises_with_the_noise_of_unchanged_regions() -> None:
    """A model that makes the whole picture noisy gets a higher limit than one that returns it unchanged."""
    half = noisy(PHOTO, 6)
    inside = np.where(REGION[..., None], half, PHOTO)
    kept = verified(PHOTO, inside, REGION, REGION)
    distance = feature_distance(PHOTO, inside)
    assert (kept == (REGION & (distance > NOISE))).all() and kept.any()
    try:
        less = verified(PHOTO, half, REGION, REGION).sum()
    except Dropped:
        less = 0
    assert less < 0.5 * kept.sum()


def test_a_pair_is_unchanged_outside_of_its_verified_mask() -> None:
    answer = noisy(PHOTO, 1)
    answer[48:80, 48:80] = 255 - PHOTO[48:80, 48:80]
    repaint = Repaint(0, PHOTO, REGION, "", painted_is_query=True)
    changes = [painted(repaint, answer, settings(on=on)) for on in (False, True)]
    for change in changes:
        assert isinstance(change, Change) and (change.query[~change.mask] == PHOTO[~change.mask]).all()
    assert changes[1].mask[56:72, 56:72].all() and not (changes[1].mask & ~changes[0].mask).any()
