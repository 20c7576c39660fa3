"""Pictures: how they become the squares that networks take, held against the libraries whose ways those are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage.data
import torch
from conftest import make_places, save, scored
from PIL import Image
from scipy.ndimage import map_coordinates

from changepair.tasks.common.pictures import picture_size
from changepair.tasks.common.tensors import read_mask_as_published, read_tensors, uncropped
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.sampling.episodes import EpisodeFiles, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.score import Contender
from changepair.tasks.scoring.scores import ScoresFolder, read_scored

CPU = torch.device("cpu")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    return save(skimage.data.astronaut()[100:196, 50:211], tmp_path / "wide.png")


def between_corners(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bilinear between the pixels, the first and the last of each side where they were."""
    places = np.meshgrid(*(np.linspace(0, edge - 1, side) for edge in pixels.shape), indexing="ij")
    return map_coordinates(pixels.astype(np.float64), places, order=1)


def test_aligned_is_bilinear_between_the_corners(wide: Path) -> None:
    [found] = read_tensors([str(wide)], 64, CPU, "aligned")
    pixels = np.asarray(Image.open(wide)) / 255
    assert np.allclose(found.numpy(), [between_corners(channel, 64) for channel in pixels.transpose(2, 0, 1)], atol=1e-5)
    assert np.allclose(found[:, [0, 0, -1, -1], [0, -1, 0, -1]].numpy().T, pixels[[0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-6)


@pytest.mark.parametrize("tall", [False, True])
def test_crop_is_the_transform_of_open_clip(wide: Path, tmp_path: Path, tall: bool) -> None:
    picture = np.asarray(Image.open(wide))
    file = save(picture.transpose(1, 0, 2) if tall else picture, tmp_path / "picture.png")
    theirs = open_clip.image_transform(64, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    [found] = read_tensors([str(file)], 64, CPU, "crop")
    assert torch.allclose(found, theirs(Image.open(file)), atol=1e-6)


def test_a_published_mask_is_resized_as_the_picture_and_true_where_anything_is_left(tmp_path: Path) -> None:
    mask = np.zeros((40, 70), np.uint8)
    mask[11:14, 20:23] = 255
    found = read_mask_as_published(save(mask, tmp_path / "mask.png"), 64)
    assert np.array_equal(found, between_corners(mask, 64) > 1e-3) and found.sum() > 9


def test_the_size_of_a_picture_is_that_which_a_viewer_shows(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (50, 30)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (50, 30)).save(tmp_path / "plain.jpg")
    assert picture_size(tmp_path / "turned.jpg") == (50, 30) and picture_size(tmp_path / "plain.jpg") == (30, 50)


def test_a_map_of_what_was_cropped_lies_in_the_whole_picture(wide: Path) -> None:
    """Of a picture 161 pixels wide and 96 high the middle 96 were seen: their share of the width."""
    ramp = torch.linspace(0.5, 1, 32).expand(1, 32, 32)
    whole = uncropped(ramp, [picture_size(wide)])[0]
    seen = (whole > 0).float().mean()
    assert whole.shape == (32, 32) and abs(seen - 96 / 161) < 1 / 32
    assert torch.equal(whole > 0, (whole > 0).flip(1)) and (whole[:, 6:-6].diff() > 0)[:, 1:-1].all()
    assert torch.allclose(whole[0, 16], torch.lerp(ramp[0, 0, 15], ramp[0, 0, 16], 0.5 + 0.5 * 161 / 96), atol=1e-4)


def test_a_detector_that_crops_scores_the_middle_and_its_map_is_0_beside_it(wide: Path, tmp_path: Path) -> None:
    settings = PatchResidualSettings(resolution=64)
    settings = replace(settings, encoder=replace(settings.encoder, resize="crop"))
    detector = create_detector(settings, build_encoder(settings.encoder, 64)).eval()
    files, parts = EpisodeFiles.of(tmp_path / "episodes", "small"), tmp_path / "parts"
    prompt = save(skimage.data.brick()[:96, :161], parts / "train" / "good" / "0.png")
    save(skimage.data.brick()[96:192, :161], parts / "test" / "good" / "0.png")
    query = save(np.asarray(Image.open(wide)), parts / "test" / "other" / "0.png")
    photo = save(skimage.data.gravel()[:96, :96], tmp_path / "photos" / "train" / "good" / "0.png")
    for name, folder in (("parts", parts), ("photos", photo.parents[2])):
        ingest_folder(name, folder, licence="own", places=make_places(tmp_path / "manifests"))
    asked = SamplingSettings(shots=(1,), seeds=(0,), protocols=("class-specific",))
    sample(asked, Use(("photos",), ("parts",)), manifests=tmp_path / "manifests", files=files)
    contender = Contender("patch-residual", detector, 64, None, ScoresFolder(tmp_path / "work"), settings.encoder.resize)
    [found] = read_scored(scored([contender], files, tmp_path / "scores")["patch-residual"])
    place = read_episodes(files.episodes)[0].queries.index(str(query))
    score, maps = detector.score(*(read_tensors([str(file)], 64, CPU, "crop") for file in (query, prompt)))
    assert found.scores[place] == pytest.approx(float(score[0]), abs=1e-6) and found.maps is not None
    assert (found.maps[place][:, 0] == 0).all() and found.maps[place].max() > 0 and maps.min() > 0
