"""The models: a score depends on its query and prompts alone, and the fast forms equal the papers' formulas."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_clip, save
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.onednn import ROWS, VARIABLE, _works
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.detectors import patches as patches_module
from changepair.tasks.detectors.detector import Detector, turned, upsample
from changepair.tasks.detectors.inctrl.model import QUANTILES, InCTRL, binary_focal_loss, quantiles
from changepair.tasks.detectors.inctrl.settings import InCTRLSettings
from changepair.tasks.detectors.metauas.model import FeatureAlignment, MetaUAS, hard
from changepair.tasks.detectors.metauas.prior import MetaUASPlus
from changepair.tasks.detectors.metauas.prior import build as build_plus
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.patches import most_alike, nearest_cosine, nearest_of_rest
from changepair.tasks.detectors.prompt_query.model import PromptQuery
from changepair.tasks.detectors.prompt_query.settings import PromptQuerySettings
from changepair.tasks.detectors.residual.patch import PatchResidual, contrasted, foreground_of, smoothed
from changepair.tasks.detectors.residual.settings import MetricResidualSettings, PatchResidualSettings, RobustResidualSettings
from changepair.tasks.detectors.store import create_detector, load_model, save_model
from changepair.tasks.detectors.subspace.settings import SubspaceSettings
from changepair.tasks.detectors.uniadet.settings import UniADetSettings
from changepair.tasks.detectors.winclip.model import WinCLIP, harmonic
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.clip import ClipEncoder
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.encoders.lite import efficientnet_lite
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.encoders.texts import TEMPLATES, TextPrior, sentences
from changepair.tasks.encoders.weights import checked_weights, packaged_weights
from changepair.tasks.packaged.detectors import fill, packaged_settings
from changepair.tasks.scoring.compare import most_similar

NARROW = (16, 16, 16, 16, 16)


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return build_encoder(EncoderSettings(), 64)


@pytest.fixture(scope="module")
def detectors(encoder: FrozenEncoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Detector]:
    """Every detector and every variant of it; what is trained is as it starts, but that its heads tell pictures apart."""
    clip = EncoderSettings("open_clip", make_clip(tmp_path_factory.mktemp("clip") / "clip"), "hub")
    clip_encoder = build_encoder(clip, 64)
    torch.manual_seed(0)
    metauas = MetaUASSettings(resolution=64, decoder_channels=NARROW)
    settings = {
        "patch-residual": PatchResidualSettings(resolution=64, top_share=0.01, background=0.5),
        "patch-residual, rotated": PatchResidualSettings(resolution=64, rotations=8),
        "patch-residual, complete": PatchResidualSettings(resolution=64, top_share=0.05, self_residual=0.6, foreground=0.5, smoothing=4.0),
        "patch-residual, mirrored": PatchResidualSettings(resolution=64, rotations=2, mirrored=True, contrast=0.02),
        "patch-residual, bounded": PatchResidualSettings(resolution=64, self_residual=0.6, memory=20),
        "robust-residual": RobustResidualSettings(resolution=64),
        "robust-residual, rotated": RobustResidualSettings(resolution=64, patch=16, rotations=4, versions=False, top_share=0.0),
        "robust-residual, cosine": RobustResidualSettings(resolution=64, mirrored=True, magnitude=False, whole=0.0),
        "robust-residual, positions": RobustResidualSettings(resolution=64, positions="auto", radius=0.2),
        "metric-residual": MetricResidualSettings(resolution=64, self_residual=0.6),
        "metric-residual, scales": MetricResidualSettings(
            encoder=EncoderSettings(scales=(1.0, 0.5)), resolution=64, mirrored=True, self_residual=0.6, contrast=0.02
        ),
        "subspace": SubspaceSettings(resolution=64, variance=0.9),
        "subspace, rotated": SubspaceSettings(resolution=64, variance=0.9, rotations=8, stages=(4,), background=0.5),
        "soft": metauas,
        "hard": replace(metauas, alignment="hard"),
        "none": replace(metauas, alignment="none", aligned_stages=2),
        "add": replace(metauas, fusion="add", aligned_stages=1),
        "difference": replace(metauas, fusion="difference"),
        "residual": replace(metauas, fusion="difference", aligned_stages=2, residual=20.0, top_share=0.01),
        "scales": replace(
            metauas, encoder=EncoderSettings(scales=(1.0, 0.5)), fusion="difference", aligned_stages=2, residual=20.0, top_share=0.01
        ),
        "fpn": replace(metauas, decoder="fpn"),
        "prompt-query": PromptQuerySettings(resolution=64, width=8, head_width=8),
        "prompt-query, no context": PromptQuerySettings(
            resolution=64, width=8, head_width=8, context=False, stages=(2, 4), background=0.5, mirrored=True
        ),
        "uniadet": UniADetSettings(resolution=64),
        "uniadet, options": UniADetSettings(resolution=64, stages=(2, 4), background=0.5, learned=2.0, rotations=2, mirrored=True),
        "inctrl": InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False),
        "inctrl, quantiles": InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False, holistic="quantiles"),
        "inctrl, with texts": InCTRLSettings(encoder=clip, resolution=64),
        "winclip": WinCLIPSettings(encoder=clip, resolution=64),
    }
    at = dict.fromkeys(("metric-residual, scales", "scales"), build_encoder(settings["scales"].encoder, 64))
    at |= {name: clip_encoder for name, chosen in settings.items() if "clip" in chosen.encoder.library}
    built = {name: create_detector(chosen, at.get(name, encoder)) for name, chosen in settings.items()}
    assert isinstance(built["soft"], MetaUAS)
    built["metauas+"] = MetaUASPlus(built["soft"], PatchResidual(encoder))
    built["metauas+, residual"] = MetaUASPlus(cast(MetaUAS, built["residual"]), PatchResidual(encoder))
    built["metauas+, scales"] = build_plus(cast(MetaUAS, built["scales"]), prior=None, prior_resolution=64, stages=())
    clip_prior = cast(ClipEncoder, build_encoder(clip, 64))
    built["metauas+, with CLIP"] = build_plus(built["soft"], prior=clip_prior, prior_resolution=64, stages=())
    return {name: detector.eval() for name, detector in built.items()}


def pictures(layout: Path, pattern: str) -> Tensor:
    import numpy as np
    from PIL import Image

    files = sorted(layout.rglob(pattern))
    arrays = [np.asarray(Image.open(file).convert("RGB").resize((64, 64))) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


NAMES = [
    "patch-residual",
    "patch-residual, rotated",
    "patch-residual, complete",
    "patch-residual, mirrored",
    "patch-residual, bounded",
    "robust-residual",
    "robust-residual, rotated",
    "robust-residual, cosine",
    "robust-residual, positions",
    "metric-residual",
    "metric-residual, scales",
    "subspace",
    "subspace, rotated",
    "soft",
    "hard",
    "none",
    "add",
    "difference",
    "residual",
    "scales",
    "fpn",
    "metauas+",
    "metauas+, residual",
    "metauas+, scales",
    "metauas+, with CLIP",
    "prompt-query",
    "prompt-query, no context",
    "uniadet",
    "uniadet, options",
    "inctrl",
    "inctrl, quantiles",
    "inctrl, with texts",
    "winclip",
]


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
    features, memory = detector.encoder(queries), detector.memorise(pictures(layout, "bricks/train/good/*.png"))
    own = [stage[None].expand(len(queries), *stage.shape) for stage in memory]
    shared, each = (detector.conclude(features, detector.relate(features, prompts)) for prompts in (memory, own))
    assert torch.allclose(shared[0], each[0], atol=1e-5) and torch.allclose(shared[1], each[1], atol=1e-5)


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


@torch.inference_mode()
def test_a_patchs_own_residual_is_to_the_rest_of_its_picture(encoder: FrozenEncoder, layout: Path) -> None:
    """Patch by patch: half of 1 less the highest cosine with a patch that is not among the nine around it; and it counts as `own` says."""
    query, prompt = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/0.png")
    stage = F.normalize(encoder(query)[2][0], dim=0)
    plain = torch.empty(8, 8)
    for y in range(8):
        for x in range(8):
            rest = [stage[:, y, x] @ stage[:, v, u] for v in range(8) for u in range(8) if max(abs(v - y), abs(u - x)) > 1]
            plain[y, x] = 0.5 * (1 - max(rest))
    without, both = (
        detector.conclude(encoder(query), detector.relate(encoder(query), [F.normalize(encoder(prompt)[2], dim=1)]))[1][0]
        for detector in (PatchResidual(encoder, stages=(3,), self_residual=own) for own in (0.0, 0.6))
    )
    assert torch.allclose(both, (without + 0.6 * plain) / 1.6, atol=1e-5)


def test_the_foreground_is_that_of_scikit_learn_and_opencv_whichever_way_the_component_points() -> None:
    """The first component of scikit-learn's PCA, thresholded on the side that holds the middle, then OpenCV's dilation and closing."""
    import cv2
    from sklearn.decomposition import PCA

    torch.manual_seed(0)
    features = torch.randn(2, 6, 12, 10)
    features[0, :, 3:9, 2:8] += 4.0 * torch.randn(6, 1, 1)
    features[1, :, 5:8, 3:9] += 4.0 * torch.randn(6, 1, 1)
    found = foreground_of(features, 1.5)
    for mask, picture in zip(found, features, strict=True):
        component = PCA(1).fit_transform(picture.flatten(1).mT.numpy()).reshape(12, 10)
        sides = [component > 1.5, component < -1.5]
        around = np.ones((3, 3), np.uint8)
        dilated = cv2.dilate(max(sides, key=lambda side: side[2:9, 2:8].sum()).astype(np.uint8), around)
        closed = cv2.morphologyEx(dilated, cv2.MORPH_CLOSE, around) > 0
        assert np.array_equal(mask[0].numpy(), closed)
    assert torch.equal(foreground_of(-features, 1.5), found) and 0 < found.float().mean() < 0.7


def test_maps_are_smoothed_as_by_scipy(encoder: FrozenEncoder, layout: Path) -> None:
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(2, 9, 40)  # narrower than the Gaussian reaches
    for one, smooth in zip(maps.numpy(), smoothed(maps, 4.0).numpy(), strict=True):
        assert np.allclose(smooth, gaussian_filter(one, 4.0), atol=1e-6)
    query, prompt = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/0.png")
    plain, smooth = (PatchResidual(encoder, smoothing=sigma).score(query, prompt) for sigma in (0.0, 4.0))
    assert torch.equal(plain[0], smooth[0])  # the score is read off before
    assert np.allclose(smooth[1][0].numpy(), gaussian_filter(plain[1][0].numpy(), 4.0), atol=1e-6)


@torch.inference_mode()
def test_the_subspace_is_scikit_learns(detectors: dict, layout: Path) -> None:
    """Held against its PCA of all patches of two prompts, fitted to a share of the variance."""
    detector = detectors["subspace"]
    query, prompts = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/*.png")[:2]

    def patches(images: Tensor) -> Tensor:
        units = [F.normalize(stage, dim=1) for stage in detector.encoder(images)[2:]]
        return torch.cat([F.interpolate(unit, size=(8, 8), mode="bilinear") for unit in units], dim=1).permute(0, 2, 3, 1).flatten(0, 2)

    pca = PCA(n_components=0.9, svd_solver="full").fit(patches(prompts).double().numpy())
    own = patches(query).double().numpy()
    left = ((own - pca.inverse_transform(pca.transform(own))) ** 2).sum(axis=1) / 12
    scores, maps = detector.score(query, prompts)
    expected = F.interpolate(torch.from_numpy(left).float().view(1, 1, 8, 8), size=(64, 64), mode="bilinear")[0, 0]
    assert 1 < pca.n_components_ < 100 and torch.allclose(maps[0], expected, atol=1e-5)
    assert scores[0] == pytest.approx(float(left.max()), abs=1e-5)  # a hundredth of 64 patches is none, so the highest one counts


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_prompts_may_be_encoded_once(detectors: dict, layout: Path, name: str) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")
    memory = detectors[name].bounded(detectors[name].memorise(prompts))
    assert torch.equal(detectors[name].score(queries, memory)[0], detectors[name].score(queries, prompts)[0])


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_bfloat16_stays_near(detectors: dict, layout: Path, name: str) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    scores, maps = detectors[name].score(queries, prompts)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, rounded_maps = detectors[name].score(queries, prompts)
    assert (rounded - scores).abs().max() < 1e-2 and (rounded_maps - maps).abs().mean() < 1e-2


@pytest.mark.parametrize("size", [((5, 6), (4, 7)), ((20, 20), (18, 21))])  # a matrix that is held, and one that is not
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_alignment_is_the_papers_formula(mode: str, similarity: str, size: tuple[tuple[int, int], tuple[int, int]]) -> None:
    torch.manual_seed(1)
    module = FeatureAlignment(8, mode, similarity)  # type: ignore[arg-type]
    query, prompts = torch.randn(2, 8, *size[0]), torch.randn(3, 8, *size[1])
    (asked_positions, offered_positions) = (height * width for height, width in size)
    aligned = module(query, prompts)
    assert aligned.shape == (2, 3, 8, *size[0])
    for b in range(2):
        for k in range(3):
            asked = module.reduction(query[b : b + 1]).reshape(4, asked_positions)
            offered = module.reduction(prompts[k : k + 1]).reshape(4, offered_positions)
            products = asked.T @ offered
            if similarity == "cosine":
                products = 20 * products / asked.norm(dim=0)[:, None] / offered.norm(dim=0)
            weights = products.softmax(dim=1) if mode == "soft" else F.one_hot(products.argmax(dim=1), offered_positions).float()
            expected = (weights @ prompts[k].reshape(8, offered_positions).T).T.reshape(8, *size[0])
            assert torch.allclose(aligned[b, k], expected, atol=1e-5)


@torch.inference_mode()
def _one_prompt_each(own: MetaUAS, queries: Tensor, prompts: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    features = own.encoder(queries)
    return features, own.relate(features, [stage[:, None] for stage in own.remember(own.encoder(prompts))])


@torch.inference_mode()
def test_metauas_adds_the_patch_residual_to_its_logits_and_scores_the_highest_pixels(
    detectors: dict, encoder: FrozenEncoder, layout: Path
) -> None:
    """The residual is that of the detector patch-residual; the score is by numpy."""
    own = detectors["residual"]
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "train/good/*.png")[:3]
    features, memory = encoder(queries), own.memorise(prompts)
    relation = own.relate(features, memory)
    assert len(relation) == own.related == 4
    without = own.segment(features, relation[:2])
    torch.testing.assert_close(own(queries[:3], prompts), own.segment(*_one_prompt_each(own, queries[:3], prompts)))
    prior = PatchResidual(encoder, stages=(4, 5)).score(queries, prompts)[1]
    scores, maps = own.conclude(features, relation)
    torch.testing.assert_close(maps, (without + 20.0 * prior).sigmoid(), rtol=1e-4, atol=1e-5)
    highest = np.sort(maps.flatten(1).numpy(), axis=1)[:, -40:]  # 1 % of 64 x 64
    np.testing.assert_allclose(scores.numpy(), highest.mean(axis=1), rtol=1e-5)
    assert (prior > 0.01).any()


@pytest.mark.parametrize("scales", [(1.0, 1.0, 0.5), (0.5, 1.0), (1.0, 0.5)])
@torch.inference_mode()
def test_metauas_segments_the_first_scale_and_compares_the_others(scales: tuple[float, ...], encoder: FrozenEncoder, layout: Path) -> None:
    """Held against the same weights at one scale, and cosines of every two patches, on pictures that Pillow resized."""
    settings = replace(packaged_settings("metauas"), resolution=64)

    def built(residual: float, *scales: float) -> Detector:
        chosen = replace(settings, residual=residual, encoder=EncoderSettings(scales=scales))
        model = create_detector(chosen, build_encoder(chosen.encoder, 64)).eval()
        fill(chosen, model)
        return model

    pair = pictures(layout, "test/*/*.png")[:4], pictures(layout, "bricks/train/good/*.png")[:2]
    sized = {scale: [_resized(images, round(64 * scale)) for images in pair] for scale in scales}
    residuals = []
    for images in (sized[scale] for scale in scales[1:]):
        for query, prompt in list(zip(*map(encoder, images), strict=True))[2:]:
            cosines = F.cosine_similarity(query.flatten(2)[:, None, :, :, None], prompt.flatten(2)[None, :, :, None], dim=2)  # (B, K, N, M)
            residuals.append(0.5 * (1 - cosines.amax(dim=(1, 3))).view(-1, *query.shape[-2:]))
    first_queries, first_prompts = sized[scales[0]]
    logits = built(0.0, 1.0).score(first_queries, first_prompts)[1].logit()
    residual = torch.stack([upsample(one, residuals[0].shape[-2:]) for one in residuals]).mean(dim=0)
    expected = (logits + settings.residual * upsample(residual, logits.shape[-2:])).sigmoid()
    scores, maps = built(settings.residual, *scales).score(*pair)
    torch.testing.assert_close(maps, upsample(expected, (64, 64)), rtol=1e-3, atol=1e-3)
    highest = np.sort(expected.flatten(1).numpy(), axis=1)[:, -(expected[0].numel() // 100) :]
    np.testing.assert_allclose(scores.numpy(), highest.mean(axis=1), rtol=1e-3)
    others = built(settings.residual, scales[0]).score(*pair)
    assert (others[0] - scores).abs().max() > 0.02
    segmented = built(0.0, 1.0)(*(images[:2] for images in sized[scales[0]]))  # training sees the first scale
    torch.testing.assert_close(built(settings.residual, *scales)(*(images[:2] for images in pair)), segmented, rtol=1e-3, atol=1e-2)


@torch.inference_mode()
def test_large_pictures_are_decoded_one_by_one_with_the_same_result(detectors: dict, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, queries, prompts = detectors["scales"], pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    together, decoded = own.score(queries, prompts), []
    hook = own.decoder.register_forward_pre_hook(lambda _decoder, stages: decoded.append(len(stages[0][-1])))
    monkeypatch.setattr("changepair.tasks.detectors.metauas.model.LARGE", 64 * 64 - 1)
    for found, expected in zip(own.score(queries, prompts), together, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    hook.remove()
    assert decoded == [1] * len(queries)


def _resized(images: Tensor, side: int) -> Tensor:
    """Resize by Pillow, each channel in float32."""
    channels = [Image.fromarray(channel).resize((side, side), Image.Resampling.BILINEAR) for channel in images.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).view(len(images), 3, side, side)


@torch.inference_mode()
def test_metauas_plus_averages_the_maps_at_several_scales(detectors: dict, layout: Path) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    own = detectors["scales"]
    expected = (own.score(queries, prompts)[1] + PatchResidual(own.encoder).score(queries, prompts)[1]) / 2
    scores, maps = detectors["metauas+, scales"].score(queries, prompts)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(scores, expected.flatten(1).amax(dim=1))


def test_by_cosine_a_picture_finds_its_own_positions_again_in_other_light(encoder: FrozenEncoder, layout: Path) -> None:
    """Products find the position of the largest features instead, which is why the authors' formula learns nothing from ours."""
    query = pictures(layout, "bricks/train/good/0.png")
    features, relit = encoder(query)[2:5], encoder((0.9 * query + 0.06).clamp(0, 1))[2:5]
    shares_of: dict[str, list[float]] = {"cosine": [], "dot": []}
    for similarity, shares in shares_of.items():
        for stage, other in zip(features, relit, strict=True):
            torch.manual_seed(0)
            module = FeatureAlignment(stage.shape[1], "hard", similarity)  # type: ignore[arg-type]
            places = torch.arange(stage[0, 0].numel()).view(1, 1, *stage.shape[-2:]).float().expand_as(other)
            asked, offered = (module.reduction(part).flatten(2).mT[:, None] for part in (stage, other))
            if similarity == "cosine":
                asked, offered = F.normalize(asked, dim=-1), F.normalize(offered, dim=-1)
            own = hard(asked, offered, places.flatten(2).mT[:, None])[0, 0, :, 0]
            shares.append(float((own == places[0, 0].flatten()).float().mean()))
    assert min(shares_of["cosine"]) > 0.9 and shares_of["dot"][0] < 0.5


def test_gradients_reach_alignment_and_decoder_and_never_the_encoder(detectors: dict, layout: Path) -> None:
    model = detectors["soft"]
    queries = pictures(layout, "bricks/test/*/*.png")
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    model.train()
    model(queries, queries.flip(0)).sum().backward()
    model.eval()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (not weight.requires_grad), name
        assert weight.requires_grad or name.startswith("encoder."), name
    assert all(torch.equal(before[name], tensor) for name, tensor in model.encoder.state_dict().items())
    model.zero_grad(set_to_none=True)


def test_the_decoder_is_of_the_published_size(encoder: FrozenEncoder) -> None:
    """The authors' U-Net for EfficientNet-B4 reads 2·448 + 2·160 channels first; ours, for lite0, 2·320 + 2·112."""
    model = create_detector(MetaUASSettings(), encoder)
    state = model.state_dict()
    assert state["decoder.blocks.0.conv1.0.weight"].shape == (256, 2 * 320 + 2 * 112, 3, 3)
    assert state["decoder.blocks.4.conv2.0.weight"].shape == (48, 48, 3, 3)
    assert state["head.weight"].shape == (1, 48, 1, 1)
    assert [module.reduction.weight.shape[:2] for module in model.alignments] == [(20, 40), (56, 112), (160, 320)]


@torch.inference_mode()
def test_the_most_similar_prompt_of_a_pool_is_found(encoder: FrozenEncoder, layout: Path) -> None:
    pool = torch.cat([pictures(layout, "bricks/train/good/*.png"), pictures(layout, "stones/train/good/*.png")])
    queries = torch.cat([pictures(layout, "bricks/test/good/*.png"), pictures(layout, "stones/test/good/*.png")])
    chosen = most_similar(encoder(queries), encoder(pool))
    assert [index < 4 for index in chosen.flatten().tolist()] == [True, True, False, False]
    several = most_similar(encoder(queries), encoder(pool), 3)
    assert torch.equal(several[:, :1], chosen) and (several < 4).tolist() == [[True] * 3] * 2 + [[False] * 3] * 2


@torch.inference_mode()
def test_the_encoder_computes_what_its_package_was_trained_for(encoder: FrozenEncoder, layout: Path) -> None:
    """Five stages at strides 2 to 32, and not those of random weights: textures are told apart."""
    bricks, stones = encoder(pictures(layout, "bricks/train/good/*.png")), encoder(pictures(layout, "stones/train/good/*.png"))
    assert encoder.strides == (2, 4, 8, 16, 32) and encoder.channels == (16, 24, 40, 112, 320)
    assert [tuple(stage.shape[1:]) for stage in bricks] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    a, b = (F.normalize(stage[-1].mean(dim=(2, 3)), dim=1) for stage in (bricks, stones))
    assert (a @ a.T).mean() > (a @ b.T).mean() + 0.1


def test_encoder_weights_of_another_shape_or_number_are_refused() -> None:
    weights = dict(packaged_weights("tf_efficientnet_lite0"))
    with pytest.raises(ValueError, match=r"_conv_stem\.weight has shape"):
        efficientnet_lite("tf_efficientnet_lite0", {**weights, "_conv_stem.weight": torch.zeros(32, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"_blocks\.3\._depthwise_conv\.weight has shape \(144, 1, 5, 5\)"):
        efficientnet_lite("tf_efficientnet_lite2", weights)
    with pytest.raises(ValueError, match="100 tensors, but the encoder has 240"):
        efficientnet_lite("tf_efficientnet_lite0", dict([item for item in weights.items() if not item[0].endswith("tracked")][:100]))


def test_weights_of_another_hash_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"not what was expected")
    digest = hashlib.sha256(b"not what was expected").hexdigest()[:12]
    with pytest.raises(BadInput, match=f"weights.pth: its sha256 is {digest}…, not 0000"):
        checked_weights(tmp_path / "weights.pth", "0" * 64)


def test_a_saved_model_comes_back_the_same(detectors: dict, encoder: FrozenEncoder, tmp_path: Path) -> None:
    save_model(tmp_path, detectors["soft"], {"detector": "metauas"})
    other = create_detector(MetaUASSettings(resolution=64, decoder_channels=NARROW), encoder)
    load_model(tmp_path, other)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in detectors["soft"].state_dict().items())


def test_a_model_of_other_settings_is_refused(detectors: dict, encoder: FrozenEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.safetensors: no such file; the train stage or `changepair import` writes it"):
        load_model(tmp_path, detectors["soft"])
    save_model(tmp_path, detectors["soft"], {})
    with pytest.raises(BadInput, match="does not fit the detector's settings"):
        load_model(tmp_path, create_detector(MetaUASSettings(decoder_channels=(32, 16, 16, 16, 16)), encoder))


@torch.inference_mode()
def test_pictures_on_disk_are_encoded_as_given(encoder: FrozenEncoder, layout: Path, tmp_path: Path) -> None:
    import numpy as np

    grey = np.full((64, 64), 128, dtype=np.uint8)
    features = encoder(read_tensors([str(save(grey, tmp_path / "grey.png"))], 64, torch.device("cpu")))
    expected = encoder(torch.full((1, 3, 64, 64), 128 / 255))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(features, expected, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("onednn", ["0", "1"])
def test_soft_alignment_never_holds_the_matrix(monkeypatch: pytest.MonkeyPatch, onednn: str, layout: torch.memory_format) -> None:
    """In training, and without oneDNN, the kernel does not write the matrix out. Otherwise, at most ROWS rows are held at once."""
    monkeypatch.setenv(VARIABLE, onednn)
    _works.cache_clear()
    module = FeatureAlignment(8)
    query = torch.randn(2, 8, 30, 30).contiguous(memory_format=layout)
    for prompts in (torch.randn(2, 1, 8, 30, 30), torch.randn(3, 8, 30, 30)):
        for inference in (False, True):
            with torch.profiler.profile(record_shapes=True) as profile, torch.inference_mode(inference):
                module(query, prompts)
            shapes = [event.input_shapes[0] for event in profile.events() if "_softmax" in event.name]
            if inference and onednn == "1":
                assert shapes and all(rows <= ROWS and columns == 900 for rows, columns in shapes)
            else:
                assert not shapes and any("flash_attention" in event.name for event in profile.events())
    _works.cache_clear()


def test_hard_alignment_takes_the_most_similar_position() -> None:
    asked, offered, values = torch.randn(1, 1, 400, 4), torch.randn(1, 1, 400, 4), torch.randn(1, 1, 400, 8)
    assert torch.equal(hard(asked, offered, values), values[0, 0][(asked @ offered.mT)[0, 0].argmax(dim=1)][None, None])


@pytest.mark.parametrize("name", ["soft", "fpn", "difference"])
def test_gradients_reach_what_is_trained(detectors: dict, layout: Path, name: str) -> None:
    model, queries = detectors[name], pictures(layout, "bricks/test/*/*.png")
    model.train()
    model(queries, queries.flip(0)).sum().backward()
    model.eval()
    trained = {part for part, weight in model.named_parameters() if weight.grad is not None and bool(weight.grad.abs().sum() > 0)}
    assert {part.split(".")[0] for part in trained} == {"alignments", "decoder", "head"}
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["prompt-query", "prompt-query, no context"])
def test_gradients_reach_reductions_and_head_and_never_the_encoder(detectors: dict, layout: Path, name: str) -> None:
    model, queries = detectors[name], pictures(layout, "bricks/test/*/*.png")
    model.train()
    model(queries, queries.flip(0)).sum().backward()
    model.eval()
    trained = {part for part, weight in model.named_parameters() if weight.grad is not None and bool(weight.grad.abs().sum() > 0)}
    assert {part.split(".")[0] for part in trained} == {"reductions", "head"}
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def test_the_head_of_the_prompt_query_adapter_sees_each_patch_beside_its_nearest(detectors: dict, layout: Path) -> None:
    """Patch by patch: ½(1 − cosine) to the nearest patch of all prompts, of that one and of its own to the rest of their pictures, and the
    difference of the two once both are reduced."""
    model = detectors["prompt-query"]
    assert isinstance(model, PromptQuery)
    query, prompts = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    features, banks = model.encoder(query), model.encoder(prompts)
    seen = []
    for stage, reduction in zip((2, 3, 4), model.reductions, strict=True):
        channels, height, width = features[stage].shape[1:]

        def reduced(patch: Tensor, reduction: torch.nn.Module = reduction, channels: int = channels) -> Tensor:
            return reduction((patch / patch.norm() * channels**0.5)[None, :, None, None])[0, :, 0, 0]

        offered = banks[stage].permute(0, 2, 3, 1).flatten(0, 2)
        plain = torch.empty(5 + 2 * 8, height, width)
        places = [(k, y, x) for k in range(2) for y in range(height) for x in range(width)]
        reach = 1 if height > 3 else 0
        for y in range(height):
            for x in range(width):
                own = features[stage][0, :, y, x]
                cosines = torch.stack([F.cosine_similarity(own, other, dim=0) for other in offered])
                plain[0, y, x] = 10 * 0.5 * (1 - cosines.max())
                best = int(cosines.argmax())
                k, v, u = places[best]
                rest = [at for at, (of, b, a) in enumerate(places) if of == k and max(abs(b - v), abs(a - u)) > reach]
                plain[2, y, x] = 10 * 0.5 * (1 - max(F.cosine_similarity(offered[best], offered[at], dim=0) for at in rest))
                apart = [(b, a) for of, b, a in places if of == 0 and max(abs(b - y), abs(a - x)) > reach]
                plain[3, y, x] = 10 * 0.5 * (1 - max(F.cosine_similarity(own, features[stage][0, :, b, a], dim=0) for b, a in apart))
                plain[5:13, y, x] = (reduced(own) - reduced(offered[best])).abs()
                plain[13:, y, x] = reduced(own)
        plain[1], plain[4] = (plain[of] - plain[of].median() for of in (0, 3))
        seen.append(F.interpolate(plain[None], size=(8, 8), mode="bilinear"))
    expected = model.head(torch.cat(seen, dim=1)).sigmoid()
    scores, maps = model.score(query, prompts)
    assert torch.allclose(maps[0], F.interpolate(expected, size=(64, 64), mode="bilinear")[0, 0], atol=1e-5)
    assert scores[0] == pytest.approx(float(expected.max()), abs=1e-5)  # a hundredth of 64 patches is none, so the highest one counts


def test_gradients_reach_adapter_and_heads_and_never_the_encoder(detectors: dict, layout: Path) -> None:
    for name in ("inctrl", "inctrl, with texts"):
        model = detectors[name]
        assert isinstance(model, InCTRL)
        queries = pictures(layout, "test/*/*.png")
        features, memory = model.encoder(queries), model.memorise(pictures(layout, "bricks/train/good/*.png"))
        model.train()
        final, image = model(*model.evidence(features, model.relate(features, memory), "bricks"))
        binary_focal_loss(final, torch.tensor([0.0, 1.0] * 4)).add(binary_focal_loss(image, torch.tensor([0.0, 1.0] * 4))).backward()
        model.eval()
        for part, weight in model.named_parameters():
            assert (weight.grad is not None) == (not part.startswith("encoder.") and "input_norm" not in part), part
        model.zero_grad(set_to_none=True)


def test_the_focal_loss_is_its_formula() -> None:
    scores, labels = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1.0, 0.0, 0.0])
    right = torch.tensor([0.9, 0.8, 0.4])
    assert torch.allclose(binary_focal_loss(scores, labels), (-((1 - right) ** 2) * right.log()).mean())


@torch.inference_mode()
def test_inctrl_is_the_papers_formula(detectors: dict, layout: Path) -> None:
    """Scores and maps from the published equations, picture by picture; tests/detectors/test_checkpoints.py does the same with CLIP."""
    model = detectors["inctrl"]
    query, prompts = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/*.png")[:3]
    score, map_ = model.score(query, prompts)
    residual = PatchResidual(model.encoder).score(query, prompts)[1]
    assert torch.allclose(map_, residual, atol=1e-6)
    token, tokens = (model.encoder(pictures_)[-1].mean(dim=(2, 3)) for pictures_ in (query, prompts))
    image = model.image_head(model.adapter(tokens).mean(dim=0, keepdim=True) - model.adapter(token))
    patches = PatchResidual(model.encoder).conclude(
        [], PatchResidual(model.encoder).relate(model.encoder(query), model.memorise(prompts)[:-1])
    )[1]
    expected = (model.holistic_head(patches.flatten(1) + image) + patches.max()) / 2
    assert torch.allclose(score, expected, atol=1e-6)


@torch.inference_mode()
def test_by_quantiles_inctrl_scores_at_any_resolution_and_patches_may_change_places(encoder: FrozenEncoder, layout: Path) -> None:
    model = create_detector(InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False, holistic="quantiles"), encoder).eval()
    assert isinstance(model, InCTRL)
    residual = torch.rand(3, 400, generator=torch.Generator().manual_seed(0))
    expected = np.concatenate([np.quantile(residual.numpy(), QUANTILES, axis=1), residual.mean(dim=1).numpy()[None]]).T
    assert np.allclose(quantiles(residual).numpy(), expected, atol=1e-6)
    evidence = torch.rand(3, 320), torch.rand(3, 2, 320), torch.zeros(3)
    shuffled = residual[:, torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(model(residual, *evidence)[0], model(shuffled, *evidence)[0], atol=1e-6)
    queries, prompts = (F.interpolate(pictures(layout, f"bricks/{part}/*.png"), size=96) for part in ("test/*", "train/good"))
    scores, maps = model.score(queries, prompts)
    assert maps.shape == (len(queries), 96, 96) and scores.isfinite().all()


@torch.inference_mode()
def test_winclip_is_the_papers_formula(detectors: dict, layout: Path) -> None:
    """Window by window and patch by patch, as the paper writes it."""
    model = detectors["winclip"]
    assert isinstance(model, WinCLIP)
    query, prompts = pictures(layout, "bricks/test/hole/0.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    patches, small, large, whole = model.encoder(query)
    banks = model.encoder(prompts)
    normal, anomalous = model.prior.embeddings("bricks")

    def texts(embedding: Tensor) -> float:
        unit = F.normalize(embedding, dim=0)
        return float((100 * torch.stack([unit @ normal, unit @ anomalous])).softmax(dim=0)[1])

    def seen(feature: Tensor, bank: Tensor) -> float:
        return 0.5 * (1 - float((F.normalize(feature, dim=0) @ F.normalize(bank.transpose(0, 1).flatten(1), dim=0)).max()))

    zero, few = torch.zeros(4, 4), torch.zeros(4, 4)
    for y in range(4):
        for x in range(4):
            by_words, by_sight = [], [seen(patches[0, :, y, x], banks[0])]
            for size, embeddings, bank in ((2, small, banks[1]), (3, large, banks[2])):
                covering = [(v, u) for v in range(4 - size + 1) for u in range(4 - size + 1) if 0 <= y - v < size and 0 <= x - u < size]
                by_words.append(len(covering) / sum(1 / texts(embeddings[0, :, v, u]) for v, u in covering))
                by_sight.append(len(covering) / sum(1 / seen(embeddings[0, :, v, u], bank) for v, u in covering))
            scales = [*by_words, texts(whole[0, :, 0, 0])]
            zero[y, x] = len(scales) / sum(1 / scale for scale in scales)
            few[y, x] = sum(by_sight) / 3
    scores, maps = model.score(query, prompts, "bricks")
    expected = F.interpolate(0.5 * (zero + few)[None, None], size=(64, 64), mode="bilinear")[0, 0]
    assert torch.allclose(maps[0], expected, atol=1e-5)
    assert float(scores) == pytest.approx(0.5 * (texts(whole[0, :, 0, 0]) + float(few.max())), abs=1e-5)
    scores, maps = model.score(query, [], "bricks")
    assert float(scores) == pytest.approx(texts(whole[0, :, 0, 0]), abs=1e-5)
    assert torch.allclose(maps[0], F.interpolate(zero[None, None], size=(64, 64), mode="bilinear")[0, 0], atol=1e-5)


@torch.inference_mode()
def test_a_query_equal_to_its_prompt_shows_winclip_and_metauas_plus_nothing(detectors: dict, layout: Path) -> None:
    queries = pictures(layout, "bricks/test/*/*.png")
    for name in ("winclip", "metauas+", "metauas+, with CLIP"):
        model = detectors[name]
        relation = model.relate(features := model.encoder(queries), model.memorise(queries[:1]))
        residuals = relation if name == "winclip" else relation[3:]
        cosines = torch.stack([cosine.flatten(1).amin(dim=1) for cosine in residuals]).mean(dim=0)
        assert cosines[0] > 1 - 1e-5 and cosines.argmax() == 0
        assert len(features[0]) == 4


@torch.inference_mode()
def test_the_prior_of_metauas_plus_is_winclips_few_shot_map(detectors: dict, layout: Path) -> None:
    """WinCLIP's map is half words, which it gives alone where there are no prompts, and half residuals."""
    queries, prompts = pictures(layout, "bricks/test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    winclip = detectors["winclip"]
    residuals = 2 * winclip.score(queries, prompts, "bricks")[1] - winclip.score(queries, [], "bricks")[1]
    scores, maps = detectors["metauas+, with CLIP"].score(queries, prompts)
    assert torch.allclose(maps, 0.5 * (detectors["soft"].score(queries, prompts)[1] + residuals), atol=1e-5)
    assert torch.allclose(scores, maps.flatten(1).amax(dim=1))


def test_a_detector_that_needs_a_prompt_says_so(detectors: dict, layout: Path) -> None:
    with pytest.raises(ValueError, match="MetaUAS needs at least one prompt"):
        detectors["soft"].score(pictures(layout, "bricks/test/*/*.png"), torch.zeros(0, 3, 64, 64))


def test_the_sentences_are_winclips() -> None:
    normal, anomalous = sentences("metal_nut", natural=False)
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 22 and len(normal) == 7 * 22 and len(anomalous) == 4 * 22
    assert (
        "a photo of a flawless metal nut for visual inspection." in normal and "a blurry photo of the metal nut with damage." in anomalous
    )
    assert "a cropped photo of the metal nut." in normal and "a photo of the small damaged metal nut." in anomalous
    assert sentences("cat", natural=True) == (["a photo of cat for anomaly detection."], ["a photo without cat for anomaly detection."])


def test_a_categorys_sentences_are_embedded_once() -> None:
    asked: list[int] = []

    def embed(texts: list[str]) -> Tensor:
        asked.append(len(texts))
        return torch.randn(len(texts), 6, generator=torch.Generator().manual_seed(len(texts)))

    prior = TextPrior(embed, natural=["cat"])
    first, second = prior(torch.ones(3, 6), "bolt"), prior(torch.ones(2, 6, 4, 4), "bolt")
    assert asked == [154, 88] and first.shape == (3,) and second.shape == (2, 4, 4) and torch.allclose(second[0, 0, 0], first[0])
    prior(torch.ones(3, 6), "cat")
    assert asked == [154, 88, 1, 1]
    prior.forget()
    prior(torch.ones(3, 6), "bolt")
    assert len(asked) == 6


def test_classes_that_are_one_category_have_their_sentences_one_by_one() -> None:
    directions: dict[str, Tensor] = {}

    def embed(texts: list[str]) -> Tensor:
        return torch.stack([directions.setdefault(text, torch.randn(6)) for text in texts])

    prior = TextPrior(embed, natural=["cat", "dog"])
    cat, dog = (
        torch.stack([F.normalize(embed([text]), dim=1)[0] for text in (f"a photo of {name}", f"a photo without {name}")])
        for name in ("cat for anomaly detection.", "dog for anomaly detection.")
    )
    assert torch.allclose(prior.embeddings("cat+dog"), F.normalize((cat + dog) / 2, dim=1))
    assert not any("+" in text or "cat dog" in text for text in directions)


def test_a_window_counts_for_every_patch_it_holds() -> None:
    windows = torch.tensor([[[0.2, 0.4]]])  # two windows of 2x2 side by side, on a grid of 2x3
    assert torch.allclose(harmonic(windows, 2)[0, 0], torch.tensor([0.2, 2 / (1 / 0.2 + 1 / 0.4), 0.4]))
    assert harmonic(windows, 2).shape == (1, 2, 3)


@torch.inference_mode()
def test_a_turned_part_is_found_where_prompts_are_turned(encoder: FrozenEncoder, layout: Path) -> None:
    prompt = pictures(layout, "bricks/train/good/0.png")
    query = prompt.rot90(1, dims=(-2, -1))
    plain, rotated = (PatchResidual(encoder, rotations=count).score(query, prompt)[0] for count in (1, 4))
    assert rotated < 1e-5 < plain


@torch.inference_mode()
def test_a_mirrored_part_is_found_where_prompts_are_mirrored(encoder: FrozenEncoder, layout: Path) -> None:
    """And the other way round: of a prompt that is remembered in all eight ways no turn or mirror image is anything new."""
    prompt = pictures(layout, "bricks/train/good/*.png")[:1]
    plain, mirrored = (PatchResidual(encoder, mirrored=mirrored).score(prompt.flip(-1), prompt)[0] for mirrored in (False, True))
    assert mirrored < 1e-3 < 0.05 < plain
    eight = PatchResidual(encoder, rotations=4, mirrored=True).memorise(prompt)
    for turns in range(4):
        for view in (prompt.rot90(turns, (-2, -1)), prompt.rot90(turns, (-2, -1)).flip(-2)):
            assert PatchResidual(encoder).score(view, eight)[0] < 1e-3


@torch.inference_mode()
def test_each_scale_has_a_map_and_a_score(encoder: FrozenEncoder, layout: Path) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    half = build_encoder(EncoderSettings(scales=(0.5,)), 64)
    both = PatchResidual(build_encoder(EncoderSettings(scales=(1.0, 0.5)), 64), top_share=0.1, background=0.5, self_residual=0.6)
    alone = [PatchResidual(each, top_share=0.1, background=0.5, self_residual=0.6).score(queries, prompts)[0] for each in (encoder, half)]
    assert torch.allclose(both.score(queries, prompts)[0], (alone[0] + alone[1]) / 2, atol=1e-6)
    assert both.score(queries, prompts)[1].shape == (len(queries), 64, 64)


def test_contrast_is_by_how_many_spreads_a_patch_is_above_its_picture() -> None:
    maps = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    for plain, found in zip(maps.numpy(), contrasted(maps, 0.1).numpy(), strict=True):
        spreads = np.clip(plain - np.median(plain), 0, None) / (plain.std(ddof=1) + 0.1)
        assert np.allclose(found, spreads / (1 + spreads))
    assert torch.allclose(contrasted(maps + 0.3, 0.1), contrasted(maps, 0.1))  # another light
    assert contrasted(torch.full((1, 4, 4), 0.7), 0.1).max() == 0


def test_turning_is_about_the_middle_and_leaves_a_mirrored_rim() -> None:
    picture = torch.rand(2, 3, 16, 16)
    assert torch.equal(turned(picture, 180.0), picture.flip((-2, -1)))
    assert torch.allclose(turned(turned(picture, 90.0), 270.0), picture)
    disc = ((torch.arange(33) - 16.0) ** 2 + (torch.arange(33)[:, None] - 16.0) ** 2 < 100).float().expand(1, 3, -1, -1)
    assert (turned(disc, 45.0) - disc).abs().mean() < 0.02
    assert turned(torch.ones(1, 3, 16, 16), 30.0).min() > 0.999


@torch.inference_mode()
def test_metauas_works_on_a_transformers_five_layers(layout: Path) -> None:
    settings = MetaUASSettings(encoder=EncoderSettings("timm", "vit_tiny_patch16_224", "model", (2, 4, 6, 9, 12)), resolution=64)
    for decoder in ("unet", "fpn"):
        model = create_detector(replace(settings, decoder=decoder, decoder_channels=NARROW), build_encoder(settings.encoder, 64)).eval()  # type: ignore[arg-type]
        scores, maps = model.score(pictures(layout, "bricks/test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2])
        assert scores.shape == (4,) and maps.shape == (4, 64, 64)


@torch.inference_mode()
def test_a_metric_residual_is_the_patch_residual_until_it_has_learnt(detectors: dict, layout: Path) -> None:
    queries, prompts = pictures(layout, "test/*/*.png"), pictures(layout, "bricks/train/good/*.png")[:2]
    chosen = PatchResidualSettings(resolution=64, top_share=0.01, background=0.5, self_residual=0.6)
    plain = create_detector(chosen, detectors["metric-residual"].encoder).eval()
    for ours, theirs in zip(detectors["metric-residual"].score(queries, prompts), plain.score(queries, prompts), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["metric-residual", "metric-residual, scales"])
def test_a_metric_residual_learns_from_its_score_against_the_prompt(detectors: dict, layout: Path, name: str) -> None:
    """What it learns from is its score without the query's own rest, and everything that it compares by learns; at all scales the same."""
    queries, prompts = pictures(layout, "test/*/*.png")[:3], pictures(layout, "bricks/train/good/*.png")[:3]
    model = create_detector(MetricResidualSettings(resolution=64), detectors[name].encoder).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (*model.offsets, *model.log_scales, model.log_weights):  # type: ignore[misc]
            part.copy_(0.3 * torch.randn(part.shape, generator=generator))
    scores = model(queries, prompts)
    with torch.inference_mode():
        alone = [float(model.score(query[None], prompt[None])[0]) for query, prompt in zip(queries, prompts, strict=True)]
    assert (scores / model.log_steepness.exp()).tolist() == pytest.approx(alone, abs=1e-5)  # type: ignore[operator]
    scores.sum().backward()
    learnt = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(learnt) == 2 * 3 + 2 and all(grad is not None and grad.abs().max() > 0 for grad in learnt.values())


@pytest.mark.parametrize("column", [5, 1500])  # in the first block and in the second
def test_a_patch_that_is_not_a_number_is_noticed_in_any_block(column: int) -> None:
    patches, bank = F.normalize(torch.ones(3, 8), dim=1), torch.full((8, 2500), 8**-0.5)
    bank[:, column] = torch.nan
    with torch.no_grad():
        assert most_alike(patches, bank)[0].isnan().all()
        assert nearest_cosine(patches.mT[None, :, :, None], bank[None, :, :, None]).isnan().all()


@pytest.mark.parametrize(("queries", "prompts", "channels"), [(700, 2500, 24), (5, 3, 8), (600, 1056, 16)], ids=str)
def test_the_most_similar_patch_is_found_in_any_number_of_blocks(queries: int, prompts: int, channels: int) -> None:
    """More patches than ROWS and COLUMNS, numbers that GROUP does not divide, and equal patches, of which the lowest index counts."""
    random = torch.Generator().manual_seed(queries)
    patches, bank = (F.normalize(torch.randn(count, channels, generator=random), dim=1) for count in (queries, prompts))
    bank[prompts // 2 :] = bank[: prompts - prompts // 2].clone()
    excluded = torch.rand(queries, prompts, generator=random) < 0.3
    cosines = (patches.double() @ bank.double().mT).numpy()
    with torch.no_grad():
        for pairs in (None, excluded):
            allowed = cosines if pairs is None else np.where(pairs, -2.0, cosines)
            found, place = most_alike(patches, bank.mT.contiguous(), pairs)
            np.testing.assert_allclose(found, allowed.max(axis=1), atol=1e-6)
            np.testing.assert_allclose(np.take_along_axis(allowed, place[:, None].numpy(), 1)[:, 0], allowed.max(axis=1), atol=1e-6)
            if pairs is None:
                assert int(place.max()) < prompts - prompts // 2 + prompts % 2
        nearest = nearest_cosine(patches.mT[None, :, :, None], bank.mT[None, :, :, None])
    np.testing.assert_allclose(nearest.flatten(), cosines.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 3), (2, 5), (3, 4), (12, 9)], ids=str)
def test_the_rest_of_a_picture_is_what_is_not_adjacent(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "ROWS", 8)  # so that a picture takes several blocks
    monkeypatch.setattr(patches_module, "COLUMNS", 8)
    units = F.normalize(torch.randn(2, 6, *grid, generator=torch.Generator().manual_seed(0)), dim=1)
    reach = 1 if max(grid) > 3 else 0
    expected = np.full((2, 1, *grid), -1.0)
    places = list(np.ndindex(grid))
    for picture, (y, x), (row, column) in itertools.product(range(2), places, places):
        if max(abs(y - row), abs(x - column)) > reach:
            cosine = float(units[picture, :, y, x].double() @ units[picture, :, row, column].double())
            expected[picture, 0, y, x] = max(expected[picture, 0, y, x], cosine)
    assert np.abs(nearest_of_rest(units).numpy() - expected).max() < 1e-6
