"""The models: a score depends on its query and prompts alone, and the fast forms equal the papers' formulas."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import save
from torch import Tensor

from tasks.detector_settings import MetaUASSettings, PatchResidualSettings
from tasks.detectors import build_detector, build_encoder
from tasks.errors import BadInput
from tasks.evaluation.score import encode
from tasks.models.alignment import FeatureAlignment
from tasks.models.encoder import TimmEncoder, efficientnet_lite0
from tasks.models.metauas import MetaUAS
from tasks.models.patch_residual import PatchResidual
from tasks.models.similarity import most_similar
from tasks.weights import checked_weights, load_model, packaged_lite0, save_model

NARROW = (16, 16, 16, 16, 16)


@pytest.fixture(scope="module")
def encoder() -> TimmEncoder:
    return build_encoder("tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def detectors(encoder: TimmEncoder) -> dict[str, PatchResidual | MetaUAS]:
    torch.manual_seed(0)
    settings = {
        "patch-residual": PatchResidualSettings(resolution=64, top_share=0.01, background=0.5),
        "soft": MetaUASSettings(resolution=64, decoder_channels=NARROW),
        "hard": MetaUASSettings(resolution=64, decoder_channels=NARROW, alignment="hard"),
        "none": MetaUASSettings(resolution=64, decoder_channels=NARROW, alignment="none", aligned_stages=2),
    }
    return {name: build_detector(chosen, encoder).eval() for name, chosen in settings.items()}


def pictures(layout: Path, pattern: str) -> Tensor:
    import numpy as np
    from PIL import Image

    files = sorted(layout.rglob(pattern))
    arrays = [np.asarray(Image.open(file).convert("RGB").resize((64, 64))) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


NAMES = ["patch-residual", "soft", "hard", "none"]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_score_does_not_depend_on_the_batch(detectors: dict, layout: Path, name: str) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    scores, maps = detectors[name].score(queries, prompts)
    assert scores.shape == (8,) and maps.shape == (8, 64, 64)
    for index in range(len(queries)):
        alone = detectors[name].score(queries[index : index + 1], prompts)
        assert torch.allclose(alone[0][0], scores[index], atol=1e-5) and torch.allclose(alone[1][0], maps[index], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_order_of_prompts_changes_nothing(detectors: dict, layout: Path, name: str) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")
    assert torch.allclose(detectors[name].score(queries, prompts)[1], detectors[name].score(queries, prompts.flip(0))[1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_prompts_of_ones_own_equal_shared_ones(detectors: dict, layout: Path, name: str) -> None:
    detector, queries = detectors[name], pictures(layout, "test/*/*.png")
    features, memory = detector.encoder(queries), detector.remember(detector.encoder(pictures(layout, "bricks/train/good/*.png")))
    own = [stage[None].expand(len(queries), *stage.shape) for stage in memory]
    for shared, each in zip(detector.relate(features, memory), detector.relate(features, own), strict=True):
        assert torch.allclose(shared, each, atol=1e-5 * float(shared.abs().max()))


@torch.inference_mode()
def test_a_query_equal_to_its_prompt_has_no_residual(detectors: dict, layout: Path) -> None:
    queries = pictures(layout, "bricks/test/*/*.png")
    scores, maps = detectors["patch-residual"].score(queries, queries[:1])
    assert maps[0].max() < 1e-5 and scores.argmin() == 0


@torch.inference_mode()
def test_patch_residual_is_the_papers_formula(detectors: dict, layout: Path) -> None:
    """½·min(1 − cosine) patch by patch, then the mean over stages of upsampled maps."""
    detector = detectors["patch-residual"]
    query, prompts = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    stages, banks = detector.encoder(query), detector.encoder(prompts)
    total = torch.zeros(1, 1, 8, 8)
    for stage in (2, 3, 4):
        height, width = stages[stage].shape[-2:]
        plain = torch.empty(height, width)
        for y in range(height):
            for x in range(width):
                cosines = [
                    F.cosine_similarity(stages[stage][0, :, y, x], banks[stage][k, :, v, u], dim=0)
                    for k in range(2)
                    for v in range(height)
                    for u in range(width)
                ]
                plain[y, x] = 0.5 * (1 - max(cosines))
        total += F.interpolate(plain[None, None], size=(8, 8), mode="bilinear")
    expected = F.interpolate(total / 3, size=(64, 64), mode="bilinear")[0, 0]
    scores, maps = detector.score(query, prompts)
    assert torch.allclose(maps[0], expected, atol=1e-5)
    patches = (total / 3).flatten()  # a hundredth of 64 patches is none, so the highest one counts
    assert torch.allclose(scores[0], patches.max() - 0.5 * patches.median(), atol=1e-5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_alignment_is_the_papers_formula(mode: str) -> None:
    torch.manual_seed(1)
    module = FeatureAlignment(8, mode)  # type: ignore[arg-type]
    query, prompts = torch.randn(2, 8, 5, 6), torch.randn(3, 8, 4, 7)
    aligned = module(query, prompts)
    assert aligned.shape == (2, 3, 8, 5, 6)
    for b in range(2):
        for k in range(3):
            asked = module.reduction(query[b : b + 1]).reshape(4, 30)
            offered = module.reduction(prompts[k : k + 1]).reshape(4, 28)
            weights = (asked.T @ offered).softmax(dim=1) if mode == "soft" else F.one_hot((asked.T @ offered).argmax(dim=1), 28).float()
            expected = (weights @ prompts[k].reshape(8, 28).T).T.reshape(8, 5, 6)
            assert torch.allclose(aligned[b, k], expected, atol=1e-5)


def test_gradients_reach_alignment_and_decoder_and_never_the_encoder(detectors: dict, layout: Path) -> None:
    model = detectors["soft"]
    queries = pictures(layout, "bricks/test/*/*.png")
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    model.train()
    model(queries, queries.flip(0)).sum().backward()
    model.eval()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (not weight.requires_grad), name
        assert weight.requires_grad or name.startswith(("encoder.", "decoder.blocks.4.attention1.")), name
    assert all(torch.equal(before[name], tensor) for name, tensor in model.encoder.state_dict().items())
    model.zero_grad(set_to_none=True)


def test_the_decoder_is_of_the_published_size(encoder: TimmEncoder) -> None:
    """The authors' U-Net for EfficientNet-B4 reads 2·448 + 2·160 channels first; ours, for lite0, 2·320 + 2·112."""
    model = build_detector(MetaUASSettings(), encoder)
    state = model.state_dict()
    assert state["decoder.blocks.0.conv1.0.weight"].shape == (256, 2 * 320 + 2 * 112, 3, 3)
    assert state["decoder.blocks.4.conv2.0.weight"].shape == (48, 48, 3, 3)
    assert state["head.weight"].shape == (1, 48, 1, 1)
    assert [module.reduction.weight.shape[:2] for module in model.alignments] == [(20, 40), (56, 112), (160, 320)]


@torch.inference_mode()
def test_the_most_similar_prompt_of_a_pool_is_found(encoder: TimmEncoder, layout: Path) -> None:
    pool = torch.cat([pictures(layout, "bricks/train/good/*.png"), pictures(layout, "stones/train/good/*.png")])
    queries = torch.cat([pictures(layout, "bricks/test/good/*.png"), pictures(layout, "stones/test/good/*.png")])
    chosen = most_similar(encoder(queries), encoder(pool))
    assert [index < 4 for index in chosen.tolist()] == [True, True, False, False]


@torch.inference_mode()
def test_the_encoder_computes_what_its_package_was_trained_for(encoder: TimmEncoder, layout: Path) -> None:
    """Five stages at strides 2 to 32, and not those of random weights: textures are told apart."""
    bricks, stones = encoder(pictures(layout, "bricks/train/good/*.png")), encoder(pictures(layout, "stones/train/good/*.png"))
    assert encoder.strides == (2, 4, 8, 16, 32) and encoder.channels == (16, 24, 40, 112, 320)
    assert [tuple(stage.shape[1:]) for stage in bricks] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    a, b = (F.normalize(stage[-1].mean(dim=(2, 3)), dim=1) for stage in (bricks, stones))
    assert (a @ a.T).mean() > (a @ b.T).mean() + 0.1


def test_encoder_weights_of_another_shape_or_number_are_refused() -> None:
    weights = dict(packaged_lite0())
    with pytest.raises(ValueError, match=r"_conv_stem\.weight has shape"):
        efficientnet_lite0({**weights, "_conv_stem.weight": torch.zeros(32, 1, 3, 3)})
    with pytest.raises(ValueError, match="100 tensors, but the encoder has 240"):
        efficientnet_lite0(dict([item for item in weights.items() if not item[0].endswith("tracked")][:100]))


def test_weights_of_another_hash_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"not what was expected")
    found = hashlib.sha256(b"not what was expected").hexdigest()[:12]
    with pytest.raises(BadInput, match=f"weights.pth: its sha256 is {found}…, not 0000"):
        checked_weights(tmp_path / "weights.pth", "0" * 64)


def test_a_saved_model_comes_back_the_same(detectors: dict, encoder: TimmEncoder, tmp_path: Path) -> None:
    save_model(tmp_path, detectors["soft"], {"detector": "metauas"})
    other = build_detector(MetaUASSettings(resolution=64, decoder_channels=NARROW), encoder)
    load_model(tmp_path, other)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in detectors["soft"].state_dict().items())


def test_a_model_of_other_settings_is_refused(detectors: dict, encoder: TimmEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.safetensors: not there; the train stage writes it"):
        load_model(tmp_path, detectors["soft"])
    save_model(tmp_path, detectors["soft"], {})
    with pytest.raises(BadInput, match="does not fit the detector's settings"):
        load_model(tmp_path, build_detector(MetaUASSettings(decoder_channels=(32, 16, 16, 16, 16)), encoder))


@torch.inference_mode()
def test_pictures_on_disk_are_encoded_as_given(encoder: TimmEncoder, layout: Path, tmp_path: Path) -> None:
    import numpy as np

    grey = np.full((64, 64), 128, dtype=np.uint8)
    features = encode(encoder, [str(save(grey, tmp_path / "grey.png"))], 64, "cpu")
    expected = encoder(torch.full((1, 3, 64, 64), 128 / 255))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(features, expected, strict=True))
