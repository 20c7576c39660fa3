"""Measures a step of training against the plain loop, and how far a device's scores are off a CPU's: on a GPU as it is meant, at a size
for a CPU elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timing import medians
from torch import Tensor

from changepair.tasks.common.devices import best_device
from changepair.tasks.detectors.metauas.model import MetaUAS
from changepair.tasks.detectors.metauas.settings import PUBLISHED, MetaUASSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.encoder import multiply_exactly
from changepair.tasks.training.loop import accelerator_for
from changepair.tasks.training.step import Batch, Step, compiled

pytestmark = pytest.mark.bench
DEVICE = best_device()
ON_GPU = DEVICE.type == "cuda"
SIDE, BATCH = (256, 128) if ON_GPU else (64, 4)
FASTER = 2.5  # on a GPU, than the plain loop as PyTorch computes it unless it is told, at least
NEAR = 1e-4  # of a score to a CPU's


def loss(model: Callable[..., Tensor], batch: Batch) -> Tensor:
    query, prompt, mask = batch
    return F.binary_cross_entropy_with_logits(model(query, prompt).float(), mask)


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    query, prompt = (torch.rand(BATCH, 3, SIDE, SIDE, generator=generator) for _ in range(2))
    mask = torch.zeros(BATCH, SIDE, SIDE)
    mask[:, SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = 1
    return query.to(DEVICE), prompt.to(DEVICE), mask.to(DEVICE)


def built(settings: MetaUASSettings) -> MetaUAS:
    torch.manual_seed(0)
    model = create_detector(settings, build_encoder(settings.encoder, SIDE))
    assert isinstance(model, MetaUAS)
    return model


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)


def plain(settings: MetaUASSettings, *, exact: bool) -> Callable[[], object]:
    """PyTorch's own parts in float32, in the layout and with the normalisations that they are built in."""
    model = built(settings).to(DEVICE)
    encoder, batch = model.encoder, a_batch()
    network = copy.deepcopy(encoder.network).to(memory_format=torch.contiguous_format)  # type: ignore[attr-defined]
    model.decoder.to(memory_format=torch.contiguous_format)
    optimizer = optimizer_of(model)

    def features(pictures: Tensor) -> list[Tensor]:
        return list(network((pictures - encoder.mean) / encoder.std)[-encoder.maps :])  # type: ignore[attr-defined]

    def forward(query: Tensor, prompt: Tensor) -> Tensor:
        queries = features(query)
        return model.segment(queries, model.relate(queries, [stage[:, None] for stage in model.remember(features(prompt))]))

    def step() -> float:
        multiply_exactly(exact)
        optimizer.zero_grad()
        value = loss(forward, batch)
        value.backward()
        optimizer.step()
        return value.item()

    model.train()
    return step


def ours(settings: MetaUASSettings, *, compiles: bool) -> Callable[[], object]:
    accelerator, model, batch = accelerator_for("auto"), built(settings), a_batch()
    prepared, optimizer = accelerator.prepare(model, optimizer_of(model))
    called = compiled(prepared) if compiles else prepared
    called.train()
    step = Step("metauas", loss, called, optimizer, accelerator, largest_gradient=None, folder=Path("unused"))

    def take() -> float:
        multiply_exactly(accelerator.mixed_precision == "no")
        return step.take(batch, 1, list)[0]

    return take


@pytest.mark.parametrize("settings", [PUBLISHED, MetaUASSettings()], ids=["efficientnet-b4", "efficientnet-lite0"])
def test_a_step_against_the_plain_loop(settings: MetaUASSettings) -> None:
    steps = {
        "plain, float32": plain(settings, exact=True),
        "plain, convolutions in TF32": plain(settings, exact=False),
        "ours": ours(settings, compiles=False),
        "ours, compiled": ours(settings, compiles=True),
    }
    seconds = dict(zip(steps, medians(*steps.values()), strict=True))
    print(f"\n{BATCH} pairs at {SIDE}x{SIDE} on {torch.cuda.get_device_name() if ON_GPU else 'a CPU'}:")
    for name, took in seconds.items():
        print(f"{name}: {1e3 * took:.0f} ms, {BATCH / took:.0f} pairs a second")
    assert not ON_GPU or seconds["plain, convolutions in TF32"] >= FASTER * seconds["ours, compiled"]


@pytest.mark.skipif(not ON_GPU, reason="no GPU here")
def test_a_picture_has_the_score_that_a_cpu_gives_it() -> None:
    model = built(MetaUASSettings()).eval()
    query, prompt, _mask = (part.cpu()[:8] for part in a_batch())

    def maps(device: torch.device) -> Tensor:
        with torch.inference_mode():
            return model.to(device)(query.to(device), prompt.to(device)).sigmoid().cpu()

    here = maps(torch.device("cpu"))
    for exact in (False, True):
        multiply_exactly(exact)
        off = float((maps(DEVICE) - here).abs().max())
        print(f"\n{'exact' if exact else 'TF32'}: maps off a CPU's by {off:.1e}")
    assert off < NEAR
