"""Measures a training step of MetaUAS on a CPU: from pictures, and from maps that an earlier epoch stored."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.modules import SCSEModule
from timing import medians
from torch import Tensor

from changepair.tasks.common.devices import computes_bf16
from changepair.tasks.detectors.metauas.attention import Attention
from changepair.tasks.detectors.metauas.model import MetaUAS
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings

pytestmark = pytest.mark.bench
PAIRS, SIDE, STEPS = 8, 128, 15  # as in the quickstart
FASTER_FROM_MAPS = 1.5


def test_a_step_from_stored_maps_against_one_from_pictures() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    queries, prompts = torch.rand(2, PAIRS, 3, SIDE, SIDE)
    masks = (torch.rand(PAIRS, SIDE, SIDE) > 0.9).float()
    network = MetaUAS(build_encoder(EncoderSettings(), SIDE), fusion="difference", decoder_channels=(96, 48, 32, 24, 16)).train()
    maps = network.encode_pairs(queries, prompts)
    optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=1e-5)
    own = [part for part in network.modules() if isinstance(part, Attention)]
    narrow = computes_bf16(torch.device("cpu"))

    def step(pairs: list[Tensor], kind: type[SCSEModule]) -> None:
        for part in own:
            part.__class__ = kind
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = F.binary_cross_entropy_with_logits(network(*pairs).float(), masks)
        loss.backward()
        optimizer.step()

    pictures = [queries, prompts]
    works = [partial(step, *work) for work in ((pictures, SCSEModule), (pictures, Attention), (maps, SCSEModule), (maps, Attention))]
    plain, attention, stored, both = medians(*works, times=STEPS)
    print(
        f"\na step of {PAIRS} pairs of {SIDE}x{SIDE} on one thread: {1e3 * plain:.0f} ms from pictures with PyTorch's operations, "
        f"{plain / attention:.2f} times as fast with our attention, {plain / stored:.2f} from stored maps, {plain / both:.2f} with both"
    )
    assert plain / both > FASTER_FROM_MAPS
