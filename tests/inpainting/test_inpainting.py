"""Inpainting: one interface, our own small model and any diffusers pipeline behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_inpainter, make_inputs, make_stable_diffusion
from inpaintings import asked

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.randomness import generator
from changepair.tasks.inpainting.crop_pipeline import Crop, CropInpaintPipeline, Times
from changepair.tasks.inpainting.inpainter import AnyDiffusion, Inpainter, Own, load_inpainter, one_thread, write_choice
from changepair.tasks.inpainting.residual import Hole, biharmonic_fill, hole, pack, pyramid_fill, unpack
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.training.inpainting import train_inpainter
from changepair.tasks.training.loop import TrainingFolders

SMALL = InpainterSettings(steps=8, batch_size=4, resolution=32, channels=(8, 32), learning_rate=3e-3)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return load_inpainter(make_inpainter(tmp_path_factory.mktemp("own")), RepaintingSettings(steps=3))


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stable_diffusion(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="module")
def any_diffusion(stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    folder = tmp_path_factory.mktemp("named")
    write_choice(folder, InpainterSettings(model=str(stable_diffusion)))
    return load_inpainter(folder, RepaintingSettings(steps=2, guidance=2.0))


@pytest.mark.parametrize("name", ["own", "any_diffusion"])
def test_every_model_paints_behind_the_same_interface(name: str, request: pytest.FixtureRequest) -> None:
    inpainter = request.getfixturevalue(name)
    images, masks, texts, seeds = asked()
    painted = inpainter(images, masks, texts, seeds)
    assert painted.shape == images.shape and painted.dtype == torch.float32 and painted.device.type == "cpu"
    assert painted.min() >= 0 and painted.max() <= 1
    inside = masks.expand_as(images) > 0
    assert (painted[inside] != images[inside]).float().mean() > 0.9
    assert torch.equal(painted, inpainter(images, masks, texts, seeds))
    other = inpainter(images, masks, texts, [seed + 100 for seed in seeds])
    assert not torch.equal(painted[inside], other[inside])


@pytest.mark.parametrize("name", ["own", "any_diffusion"])
def test_what_is_painted_does_not_depend_on_the_others_of_its_batch(name: str, request: pytest.FixtureRequest) -> None:
    inpainter = request.getfixturevalue(name)
    images, masks, texts, seeds = asked()
    together = inpainter(images, masks, texts, seeds)
    alone = torch.cat([inpainter(images[n : n + 1], masks[n : n + 1], texts[:1], seeds[n : n + 1]) for n in range(3)])
    assert (together - alone).abs().max() < 1e-3


def test_a_users_stable_diffusion_is_loaded_from_its_folder_and_reads_texts(any_diffusion: Inpainter) -> None:
    assert isinstance(any_diffusion, AnyDiffusion)
    assert type(any_diffusion.pipeline).__name__ == "StableDiffusionInpaintPipeline"
    images, masks, _texts, seeds = asked(1)
    cat, dog = any_diffusion(images, masks, ["cat"], seeds), any_diffusion(images, masks, ["dog"], seeds)
    assert not torch.equal(cat, dog)


def test_a_pipelines_own_resolution_or_the_one_asked_for(stable_diffusion: Path, tmp_path: Path) -> None:
    write_choice(tmp_path, InpainterSettings(model=str(stable_diffusion)))
    default = load_inpainter(tmp_path, RepaintingSettings(steps=1))
    larger = load_inpainter(tmp_path, RepaintingSettings(steps=1, resolution=96, dtype="bfloat16"))
    assert isinstance(default, AnyDiffusion) and isinstance(larger, AnyDiffusion)
    assert default._own_resolution() == 64 and larger.pipeline.unet.dtype == torch.bfloat16
    images, masks, texts, seeds = asked(1)
    assert larger(images, masks, texts, seeds).shape == images.shape


def test_a_picture_that_a_safety_checker_blackened_counts_as_unchanged(any_diffusion: Inpainter) -> None:
    assert isinstance(any_diffusion, AnyDiffusion)

    class Refusing:
        """The pipeline, refusing the second picture as diffusers' safety checker does: black, and flagged."""

        vae_scale_factor, unet = any_diffusion.pipeline.vae_scale_factor, any_diffusion.pipeline.unet

        def set_progress_bar_config(self, **_settings: object) -> None: ...

        def __call__(self, **arguments: object) -> object:
            painted = any_diffusion.pipeline(**arguments)
            painted.images[1] = 0
            painted.nsfw_content_detected = [False, True, False]
            return painted

    images, masks, texts, seeds = asked()
    painted = AnyDiffusion(Refusing(), any_diffusion.settings)(images, masks, texts, seeds)
    assert torch.equal(painted[1], images[1]) and not torch.equal(painted[0], images[0])


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"inpainter\.json: no such file; the inpainter stage writes it"):
        load_inpainter(tmp_path / "none", RepaintingSettings())
    write_choice(tmp_path / "wrong", InpainterSettings(model=str(tmp_path / "no-such-folder")))
    with pytest.raises(BadInput, match="no-such-folder' cannot be loaded as an inpainting pipeline of diffusers"):
        load_inpainter(tmp_path / "wrong", RepaintingSettings())
    write_choice(tmp_path / "nothing", InpainterSettings(model="none"))
    with pytest.raises(BadInput, match=r"names no inpainting model, but synthesis\.kinds needs one"):
        load_inpainter(tmp_path / "nothing", RepaintingSettings())


def test_our_own_leaves_everything_outside_the_hole_alone_and_never_reads_what_is_in_it(own: Inpainter) -> None:
    images, masks, texts, seeds = asked()
    painted = own(images, masks, texts, seeds)
    outside = (masks == 0).expand_as(images)
    assert torch.equal(painted[outside], images[outside])
    defaced = torch.where(masks > 0, torch.rand_like(images), images)
    assert torch.equal(painted, own(defaced, masks, texts, seeds))


def test_the_same_bits_with_one_thread_and_with_two(own: Inpainter) -> None:
    painted = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        painted[threads] = own(*asked())
        assert torch.get_num_threads() == threads
    assert torch.equal(painted[1], painted[2])


def test_one_thread_gives_the_others_back_when_the_last_is_out() -> None:
    torch.set_num_threads(2)
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import make_layout

    folder = tmp_path_factory.mktemp("trained")
    inputs = make_inputs(make_layout(folder / "parts"))
    train_inpainter(SMALL, inputs.files.sources, places=TrainingFolders(folder / "model", folder / "checkpoints"))
    write_choice(folder / "model", SMALL)
    return folder


def test_training_leaves_a_pipeline_that_diffusers_loads(trained: Path) -> None:
    pipeline = CropInpaintPipeline.from_pretrained(trained / "model" / "pipeline")
    assert (pipeline.unet.config.in_channels, pipeline.unet.config.out_channels) == (32, 12)
    assert not list(trained.rglob("*.bin")) and not list(trained.rglob("*.pt")) and not list(trained.rglob("*.partial"))
    index = json.loads((trained / "model" / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "CropInpaintPipeline" and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    loaded = load_inpainter(trained / "model", RepaintingSettings())
    assert isinstance(loaded, Own) and loaded(*asked()).shape == (3, 3, 64, 64)


def test_the_sines_of_time_are_those_of_diffusers_in_double_precision(trained: Path) -> None:
    theirs = CropInpaintPipeline.from_pretrained(trained / "model" / "pipeline").unet.time_proj
    moments = torch.arange(0, 1000, 37)
    ours = Times(theirs)(moments)
    assert ours.dtype == torch.float64 and ours.shape == theirs(moments).shape
    assert torch.allclose(ours, theirs(moments).double(), atol=1e-4)  # theirs is off by that much where an angle is large


def test_training_is_the_same_twice_and_killed_it_goes_on(trained: Path) -> None:
    """Stopped after a checkpoint, as SIGKILL stops it: nothing of the run but the checkpoint is left."""
    inputs = trained / "episodes" / "small.sources.parquet"
    before = sha256(trained / "model" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")

    class Killed(BaseException):
        pass

    def kill(share: float) -> None:
        raise Killed

    import changepair.tasks.training.inpainting as module

    schedule = module.SCHEDULE
    module.SCHEDULE = replace(schedule, checkpoint_every=2, log_every=3)
    try:
        with pytest.raises(Killed):
            train_inpainter(SMALL, inputs, places=TrainingFolders(trained / "again", trained / "again.checkpoints"), report=kill)
        assert (trained / "again.checkpoints" / "checkpoint.pt").is_file() and not (trained / "again").exists()
        steps = []
        train_inpainter(SMALL, inputs, places=TrainingFolders(trained / "again", trained / "again.checkpoints"), report=steps.append)
    finally:
        module.SCHEDULE = schedule
    assert sha256(trained / "again" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors") == before
    assert steps == [3 / 8, 6 / 8, 1.0] and not (trained / "again.checkpoints").exists()


def test_training_learns() -> None:
    """The residual of one picture, held again and again, is said better and better."""
    from changepair.tasks.inpainting.crop_pipeline import new_pipeline

    torch.manual_seed(0)
    pipeline = new_pipeline(32, (8, 32))
    images, masks, _texts, _seeds = asked(2, 32)
    masks = torch.zeros_like(masks)
    masks[:, :, 10:20, 10:20] = 1
    hole_ = Hole.of(images * 2 - 1, masks)
    wanted, losses = hole_.residual(), []
    optimizer = torch.optim.AdamW(pipeline.unet.parameters(), lr=3e-3)
    for _step in range(60):
        predicted = unpack(pipeline.unet(hole_.seen(torch.zeros_like(wanted)), torch.tensor([999, 999])).sample)
        loss = ((predicted - wanted) ** 2 * masks).sum() / (3 * masks.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_the_fills_keep_what_is_seen_and_carry_it_inwards() -> None:
    images, masks, _texts, _seeds = asked()
    pictures = images * 2 - 1
    for fill in (biharmonic_fill, pyramid_fill):
        painted = fill(pictures, masks)
        outside = (masks == 0).expand_as(images)
        assert torch.equal(painted[outside], pictures[outside])
        assert (painted - fill(torch.where(masks > 0, torch.rand_like(pictures), pictures), masks)).abs().max() < 1e-6
        even = fill(torch.full_like(pictures, 0.25), masks)
        assert (even - 0.25).abs().max() < 1e-4
    slope = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    assert (biharmonic_fill(slope.contiguous(), masks[:1]) - slope).abs().max() < 1e-4  # a slope goes on; an average would not


def test_a_residual_says_what_was_in_the_hole() -> None:
    images, masks, _texts, _seeds = asked()
    hole_ = Hole.of(images * 2 - 1, masks)
    departs = (hole_.picture - hole_.fill).abs() / hole_.unit
    exact = (masks > 0) & (departs < 2.7)
    assert exact.float().sum() > 0.5 * 3 * masks.sum()
    assert (hole_.filled(hole_.residual()) - hole_.picture)[exact].abs().max() < 1e-5
    assert torch.equal(unpack(pack(images)), images)


def test_a_crop_holds_its_region_and_goes_back_where_it_came_from() -> None:
    image = torch.rand(3, 80, 60)
    for number in range(30):
        rng = generator(number, "crop")
        top, left = int(rng.integers(70)), int(rng.integers(50))
        mask = torch.zeros(80, 60, dtype=torch.bool)
        mask[top : top + 1 + int(rng.integers(40)), left : left + 1 + int(rng.integers(30))] = True
        crop = Crop.around(mask, smallest=32)
        cut = crop.cut(image, "replicate")
        assert cut.shape == (3, crop.side, crop.side) and crop.side >= 32
        assert crop.cut(mask[None].float(), "constant").sum() == mask.sum()
        back = image.clone()
        crop.put_back(back, cut)
        assert torch.equal(back, image)


def test_holes_are_of_a_size_to_learn_from() -> None:
    shares = [hole(64, generator(number, "hole")).mean() for number in range(100)]
    assert min(shares) > 0.01 and max(shares) < 0.5 and np.std(shares) > 0.03
