"""scSE attention in training: its value and gradients are those of segmentation_models_pytorch."""

from __future__ import annotations

import pytest
import torch
from segmentation_models_pytorch.base.modules import SCSEModule

from changepair.tasks.detectors.metauas.attention import Attention


@pytest.mark.parametrize(
    ("narrow", "mixed", "error"),
    [(False, False, 1e-5), (False, True, 2e-2), (True, True, 3e-2)],  # relative; bfloat16 has 8 bits
)
@pytest.mark.parametrize("last", [True, False])
def test_values_and_gradients_are_those_of_separate_operations(narrow: bool, mixed: bool, error: float, last: bool) -> None:
    torch.manual_seed(0)
    plain, own = SCSEModule(48), Attention(48)
    own.load_state_dict(plain.state_dict())
    layout = torch.channels_last if last else torch.contiguous_format
    start = torch.randn(3, 48, 10, 7).to(torch.bfloat16 if narrow else torch.float32).contiguous(memory_format=layout)
    towards = torch.randn(3, 48, 10, 7)
    found = []
    for module in (plain, own):
        x = start.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            y = module(x * 1.5)
        assert y.dtype == x.dtype
        (y.float() * towards).sum().backward()
        found.append([y, x.grad, *(weight.grad for weight in module.parameters())])
    assert len(found[0]) == 2 + 6
    for expected, value in zip(*found, strict=True):
        assert value.shape == expected.shape and value.abs().max() > 0
        assert (value.float() - expected.float()).norm() <= error * expected.float().norm()
    for module in (plain, own):
        module.eval()
    with torch.inference_mode():
        assert torch.equal(plain(start.float()), own(start.float()))
