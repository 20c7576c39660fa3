"""Measures how fast detectors compare, and on how much memory, each against the plain formula."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from timing import medians
from torch import Tensor

from changepair.tasks.detectors.inctrl.settings import InCTRLSettings
from changepair.tasks.detectors.residual.patch import PatchResidual
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.clip import ClipEncoder, WindowEncoder, windows
from changepair.tasks.encoders.settings import OF_THE_MODEL, EncoderSettings
from changepair.tasks.encoders.texts import sentences

CLIP = InCTRLSettings().encoder

pytestmark = pytest.mark.bench
RUNS = 3
LEAST_MEMORY_SAVED = 4  # times
FASTER_THAN_THE_LOOP = 50
FASTER_THAN_WINDOW_BY_WINDOW = 2
MOST_BEYOND_THE_PRODUCTS = 1.1


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)


ALIGNMENT = """
import re, statistics, sys, time, torch
from pathlib import Path
from changepair.tasks.detectors.metauas.model import FeatureAlignment
torch.set_num_threads(2)
torch.manual_seed(0)
stages = [(56, 64), (160, 32), (448, 16)]  # EfficientNet-B4's last three at 512x512
modules = [FeatureAlignment(channels, similarity="dot") for channels, _side in stages]
features = [(torch.randn(8, channels, side, side), torch.randn(8, 1, channels, side, side)) for channels, side in stages]

def memory(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

def plain(module, query, prompts):
    asked = module.reduction(query).flatten(2)
    offered = module.reduction(prompts[:, 0]).flatten(2)
    weights = torch.einsum("bcn,bcm->bnm", asked, offered).softmax(dim=2)
    return torch.einsum("bnm,bcm->bcn", weights, prompts[:, 0].flatten(2)).unflatten(2, query.shape[-2:])

align = plain if sys.argv[1] == "plain" else (lambda module, query, prompts: module(query, prompts))
with torch.inference_mode():
    for module, (query, prompts) in zip(modules, features):
        align(module, query[:1, :, :8, :8], prompts[:1, :, :, :8, :8])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    times = []
    for _run in range(5):
        start = time.perf_counter()
        for module, (query, prompts) in zip(modules, features):
            align(module, query, prompts)
        times.append(time.perf_counter() - start)
print(statistics.median(times), memory("VmHWM") - before)
"""


def test_alignment_of_large_pictures_never_holds_the_matrix() -> None:
    embeddings = {}
    for which in ("plain", "ours"):
        command = [sys.executable, "-c", ALIGNMENT, which]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        embeddings[which] = [float(number) for number in result.stdout.split()]
    (plain_time, plain_memory), (time_, memory) = embeddings["plain"], embeddings["ours"]
    print(
        f"\nalignment at 512x512, batch 8: {1000 * time_:.0f} ms and {memory:.0f} MiB; "
        f"plain formula {1000 * plain_time:.0f} ms and {plain_memory:.0f} MiB: {plain_time / time_:.1f} x, {plain_memory / memory:.1f} x"
    )
    assert memory * LEAST_MEMORY_SAVED <= plain_memory and time_ <= plain_time


def patch_by_patch(features: list[Tensor], prompts: list[Tensor]) -> Tensor:
    """The residual of every patch, one at a time, as the authors' loop has it. features: 1xCxhxw a layer; prompts: KxCxhxw."""
    layers = []
    for query, bank in zip(features, prompts, strict=True):
        patches, normal = query[0].flatten(1).T, bank.transpose(0, 1).flatten(1).T
        nearest = []
        for patch in patches:
            unit = normal / normal.norm(dim=1, keepdim=True)
            nearest.append((0.5 * (1 - (patch / patch.norm()) @ unit.T)).min())
        layers.append(torch.stack(nearest))
    return torch.stack(layers).mean(dim=0)


@torch.inference_mode()
def test_inctrl_with_cached_prompts_and_texts_against_a_loop_that_encodes_them_anew() -> None:
    settings = InCTRLSettings(encoder=EncoderSettings(CLIP.library, CLIP.name, OF_THE_MODEL, (7, 9, 11)))
    encoder = build_encoder(settings.encoder, 240)
    assert isinstance(encoder, ClipEncoder)
    model = create_detector(settings, encoder).eval()
    queries, prompts = torch.rand(8, 3, 240, 240), torch.rand(2, 3, 240, 240)
    memory = model.memorise(prompts)
    scores, _maps = model.score(queries, memory, "screw")

    start = time.perf_counter()
    features, banks = encoder(queries[:1]), encoder(prompts)
    residual = patch_by_patch(features[:3], banks[:3])
    means = torch.stack(
        [F.normalize(F.normalize(encoder.embed_texts(texts), dim=1).mean(dim=0), dim=0) for texts in sentences("screw", natural=False)]
    )
    token = features[-1].flatten(1)
    prior = (100 * F.normalize(token, dim=1) @ means.T).softmax(dim=1)[:, 1]
    score, _image = model(residual[None], token, banks[-1].flatten(1)[None], prior)
    loop = time.perf_counter() - start
    assert torch.allclose(score, scores[:1], atol=1e-5)

    [batch] = medians(lambda: model.score(queries, memory, "screw"), times=RUNS)
    print(
        f"\nInCTRL, a picture: {1000 * batch / 8:.0f} ms with cached prompts and texts, {1000 * loop:.0f} ms by the loop: "
        f"{loop * 8 / batch:.0f} x"
    )
    assert loop * 8 / batch >= FASTER_THAN_THE_LOOP


@torch.inference_mode()
def test_winclips_windows_against_one_at_a_time() -> None:
    clip = build_encoder(EncoderSettings(CLIP.library, CLIP.name, OF_THE_MODEL), 240)
    assert isinstance(clip, ClipEncoder)
    encoder, visual = WindowEncoder(clip), clip.network.visual
    tokens = visual._embeds(torch.rand(1, 3, 240, 240))

    def one_at_a_time() -> list[Tensor]:
        result = []
        for size in (2, 3):
            for members in windows(encoder.grid, size).T:
                chosen = tokens[:, [0, *(members + 1).tolist()]]
                result.append(visual._pool(visual.transformer(chosen))[0] @ visual.proj)
        return result

    def batched() -> list[Tensor]:
        return [encoder._windows(tokens, size) for size in (2, 3)]

    embeddings = torch.cat([map_.flatten(2)[0].T for map_ in batched()])
    assert torch.allclose(embeddings, torch.cat(one_at_a_time()), atol=1e-4)
    slow, fast = medians(one_at_a_time, batched, times=RUNS)
    print(
        f"\nWinCLIP's {len(embeddings)} windows of a picture: {1000 * fast:.0f} ms, one at a time {1000 * slow:.0f} ms: {slow / fast:.1f} x"
    )
    assert slow / fast >= FASTER_THAN_WINDOW_BY_WINDOW


class Given:
    """Features that are there already: patch residual is timed without its encoder."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.channels, self.strides, self.maps, self.scales = channels, strides, len(channels), (1.0,)

    def __call__(self, images: Tensor) -> list[Tensor]:
        raise AssertionError("not to be asked")


@pytest.mark.parametrize(
    ("name", "channels", "sides"),
    [
        ("tf_efficientnet_lite0 at 256, stages 3 to 5", (40, 112, 320), (32, 16, 8)),
        ("DINOv2-S at 224, three blocks", (384, 384, 384), (16, 16, 16)),
    ],
)
@torch.inference_mode()
def test_patch_residual_against_its_matrix_products_alone(name: str, channels: tuple[int, ...], sides: tuple[int, ...]) -> None:
    shots, batches, size = 8, 20, 50  # 1,000 queries
    detector = PatchResidual(Given(channels, (8, 16, 32)))  # type: ignore[arg-type]
    queries = [torch.randn(size, width, side, side) for width, side in zip(channels, sides, strict=True)]
    memory = detector.remember([torch.randn(shots, width, side, side) for width, side in zip(channels, sides, strict=True)])

    def score() -> None:
        for _batch in range(batches):
            detector.conclude(queries, detector.relate(queries, memory))

    banks = [stage.transpose(0, 1).flatten(1).contiguous() for stage in memory]
    patches = [stage.flatten(2).mT.contiguous() for stage in queries]
    outputs = [torch.empty(own.shape[1], bank.shape[1]) for own, bank in zip(patches, banks, strict=True)]

    def products() -> None:
        for _batch in range(batches):
            for own, bank, output in zip(patches, banks, outputs, strict=True):
                for query in own:
                    torch.mm(query, bank, out=output)

    ours, alone = medians(score, products, times=RUNS)
    print(f"\npatch residual, {name}, 8 shots, 1,000 queries: {ours:.2f} s, its products alone {alone:.2f} s: {ours / alone:.2f}")
    assert ours / alone <= MOST_BEYOND_THE_PRODUCTS
