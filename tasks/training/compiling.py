"""Compiles the network that learns, where that pays."""

from __future__ import annotations

from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from changepair.tasks.detectors.models.encoder import FrozenEncoder

PAYS_FROM = 2000
"""Steps."""


def pays(accelerator: Accelerator, steps: int) -> bool:
    """Tells whether compiling takes less than it saves. On an H200 it took 65 s and saved 76 ms of the 171 of a MetaUAS step with
    EfficientNet-B4, 128 pairs of 256x256 (docs/pages/performance.md); on two cores of a CPU a step took
    between .87 and 1.18 times as long, from run to run."""
    return accelerator.device.type == "cuda" and accelerator.num_processes == 1 and steps >= PAYS_FROM


def compiled(network: nn.Module) -> nn.Module:
    """Gives a network, as accelerate has prepared it, to be called: of the same weights, its frozen encoders compiled on their own."""
    for part in network.modules():
        if isinstance(part, FrozenEncoder):
            part.compile_network()
    return cast(nn.Module, torch.compile(network))
