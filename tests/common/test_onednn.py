"""Products in oneDNN are as close to double precision as PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from changepair.tasks.common import onednn
from changepair.tasks.common.onednn import VARIABLE, attention, convolution, fuse_gelu, in_onednn, linear, runs_onednn


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choose oneDNN on any processor."""
    monkeypatch.setenv(VARIABLE, "1")
    onednn._works.cache_clear()
    yield
    onednn._works.cache_clear()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the operators that run in oneDNN."""
    assert onednn._works()
    names: list[str] = []
    linears, convolutions = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._convolution_pointwise

    def counted(name: str, operator: Any) -> Any:
        def run(*arguments: Any) -> Any:
            names.append(name)
            return operator(*arguments)

        return run

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted("linear", linears))
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", counted("convolution", convolutions))
    return names


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    onednn._works.cache_clear()
    onednn._works()  # cached, so that its product is not counted


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 384), (1, 1), (600, 1536)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_agrees_with_double_precision(used: list[str], shape: tuple[int, ...], biased: bool) -> None:
    x, weight = drawn(*shape), drawn(70, shape[-1])
    bias = drawn(70) if biased else None
    with torch.no_grad():
        found = linear(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert used == ["linear"] and found.shape == (*shape[:-1], 70)
    magnitudes = F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
    assert error(found, exact) <= 4 * torch.finfo(torch.float32).eps * float(magnitudes.max())  # a few roundings of the sum


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"groups": 8, "padding": (1, 0)}, {"dilation": 2, "stride": (1, 2)}, {"padding": "same"}],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_a_convolution_agrees_with_double_precision(used: list[str], options: dict[str, Any], layout: torch.memory_format) -> None:
    x, weight, bias = drawn(2, 8, 13, 11).to(memory_format=layout), drawn(16, 8 // options.get("groups", 1), 3, 3), drawn(16)
    with torch.no_grad():
        found = convolution(x, weight, bias, **options)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), **options)
    assert used == ([] if options.get("padding") == "same" else ["convolution"])
    assert error(found, exact) <= 2 * error(F.conv2d(x, weight, bias, **options), exact) + 1e-6


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_1x1_kernel_is_a_product_of_matrices_if_the_channels_are_last(used: list[str], layout: torch.memory_format, biased: bool) -> None:
    x, weight = drawn(2, 8, 13, 11).to(memory_format=layout), drawn(16, 8, 1, 1).to(memory_format=torch.channels_last)
    bias = drawn(16) if biased else None
    for options, product in (({}, True), ({"stride": 2}, False), ({"padding": 1}, False)):
        used.clear()
        with torch.no_grad():
            found = convolution(x, weight, bias, **options)
        exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), **options)
        assert used == (["linear"] if product and layout is torch.channels_last else ["convolution"])
        assert found.shape == exact.shape and error(found, exact) < 1e-5
        assert layout is not torch.channels_last or found.is_contiguous(memory_format=layout)
    with torch.no_grad():
        grouped = convolution(x, weight[:, :4], bias, groups=2)
        with pytest.raises(RuntimeError):
            convolution(x, weight, bias, groups=2)
    assert error(grouped, F.conv2d(x, weight[:, :4], bias, groups=2).double()) < 1e-5


@pytest.mark.parametrize("tokens", [5, 129, 700])  # few; more than FEW_TOKENS; more than ROWS
@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_agrees_with_double_precision(used: list[str], tokens: int, scale: float | None) -> None:
    query, key, value = drawn(2, 3, tokens, 16), drawn(2, 3, tokens + 1, 16), drawn(2, 3, tokens + 1, 24)
    value = value[..., :16] if tokens == 5 else value
    with torch.no_grad():
        found = attention(query, key, value, scale=scale)
    weights = (query.double() @ key.double().mT * (0.25 if scale is None else scale)).softmax(dim=-1)
    exact = weights @ value.double()
    assert error(found, exact) <= 2 * error(F.scaled_dot_product_attention(query, key, value, scale=scale), exact) + 1e-6
    assert bool(used) == (tokens > onednn.FEW_TOKENS)


def test_a_bias_with_strides_or_another_shape_is_added_as_pytorch_does(used: list[str]) -> None:
    """The operators would read the memory of the bias as an array of all channels."""
    x, weight, pictures, kernels = drawn(5, 8), drawn(6, 8), drawn(2, 4, 9, 9), drawn(6, 4, 3, 3)
    strided = drawn(12)[::2]
    with torch.no_grad():
        for bias in (strided, torch.full((1,), 3.0).expand(6), torch.tensor(2.0), drawn(1), drawn(5, 6)):
            assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(convolution(pictures, kernels, strided), F.conv2d(pictures, kernels, strided))
    assert not used


def test_arguments_that_are_not_replaced_are_pytorchs() -> None:
    x, weight, pictures, kernels = drawn(5, 8), drawn(6, 8), drawn(2, 4, 9, 9), drawn(6, 4, 3, 3)
    with torch.no_grad(), in_onednn(x):
        assert F.linear(input=x, weight=weight).shape == (5, 6) and F.conv2d(input=pictures, weight=kernels).shape == (2, 6, 7, 7)
        assert torch.allclose(F.linear(x, weight[0]), x @ weight[0], atol=1e-6)
        query, value = drawn(2, 3, 200, 16), drawn(1, 3, 200, 16)
        assert F.scaled_dot_product_attention(query, query, value).shape == query.shape


TOKENS = 9
OPTIONS: dict[str, dict[str, Any]] = {
    "no mask": {},
    "boolean mask": {"attn_mask": torch.ones(TOKENS, TOKENS).triu(1).bool()},
    "mask": {"attn_mask": torch.full((TOKENS, TOKENS), -torch.inf).triu(1)},
    "causal": {"attn_mask": torch.zeros(TOKENS, TOKENS), "is_causal": True},
    "masks": {"attn_mask": torch.zeros(4, TOKENS, TOKENS)},
    "padding": {"key_padding_mask": torch.arange(TOKENS).view(1, -1) > 3},
    "keys": {"static_k": torch.zeros(4, TOKENS, 4)},
    "values": {"static_v": torch.zeros(4, TOKENS, 4)},
    "weights": {"need_weights": True},
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_of_modules_is_pytorchs_with_any_option(name: str, batched: bool) -> None:
    """A boolean mask selects what is left out here, but what is used in F.scaled_dot_product_attention."""
    query, weight, bias, out, options = (
        drawn(TOKENS, 1, 16),
        drawn(48, 16),
        drawn(48),
        drawn(16, 16),
        {"need_weights": False} | OPTIONS[name],
    )
    if not batched:
        query = query[:, 0]
        options = {key: value[0] if key == "key_padding_mask" else value for key, value in options.items()}

    def run() -> Tensor:
        given = (query, query, query, 16, 4, weight, bias, None, None, False, 0.0, out, None)
        return F.multi_head_attention_forward(*given, training=False, **options)[0]

    with torch.no_grad():
        own = run()
        with in_onednn(query):
            assert torch.allclose(run(), own, atol=1e-5)


def test_causal_attention_runs_in_pytorch(used: list[str]) -> None:
    query, key, value = (drawn(1, 2, 200, 16) for _ in range(3))
    with torch.no_grad():
        assert torch.equal(attention(query, key, value, is_causal=True), F.scaled_dot_product_attention(query, key, value, is_causal=True))
    assert not used


class Network(nn.Module):
    """A convolution, PyTorch's module of attention, and a linear layer."""

    def __init__(self, *, mask: bool) -> None:
        super().__init__()
        self.stem, self.attend, self.out = nn.Conv2d(3, 32, 4, 4), nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 8)
        self.register_buffer("mask", torch.full((144, 144), -torch.inf).triu(1) if mask else None)

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.stem(pictures).flatten(2).mT
        found: Tensor = self.out(tokens + self.attend(tokens, tokens, tokens, need_weights=False, attn_mask=self.mask)[0])
        return found


@pytest.mark.parametrize("mask", [False, True])
def test_any_network_runs_in_onednn_in_the_context(used: list[str], mask: bool) -> None:
    torch.manual_seed(0)
    network, pictures = Network(mask=mask).eval().requires_grad_(False), drawn(2, 3, 48, 48)
    with torch.no_grad(), in_onednn(pictures):
        found = network(pictures)
    assert {"linear", "convolution"} == set(used) and used.count("linear") >= 3  # both projections of the attention, and the last layer
    own = network(pictures)
    exact = network.double()(pictures.double())
    assert error(found, exact) <= 2 * error(own, exact) + 1e-6


def test_attention_that_returns_its_weights_runs_in_pytorch() -> None:
    torch.manual_seed(0)
    module, tokens = nn.MultiheadAttention(16, 2).eval().requires_grad_(False), drawn(9, 2, 16)
    with torch.no_grad():
        expected = module(tokens, tokens[:4], tokens[:4])
        with in_onednn(tokens):
            found = module(tokens, tokens[:4], tokens[:4])
    assert torch.allclose(found[0], expected[0], atol=1e-6) and torch.allclose(found[1], expected[1], atol=1e-6)


def test_gradients_flow_through_pytorchs_own_products(used: list[str]) -> None:
    layer, x = nn.Linear(4, 3), drawn(5, 4)
    with in_onednn(x):
        layer(x).sum().backward()
    assert layer.weight.grad is not None and torch.allclose(layer.weight.grad, x.sum(dim=0).expand(3, -1)) and not used


def test_the_variable_switches_to_pytorchs_products(used: list[str], plain: None) -> None:
    x, weight = drawn(5, 4), drawn(3, 4)
    with torch.no_grad():
        assert not runs_onednn(x)
        assert torch.equal(linear(x, weight), F.linear(x, weight)) and not used


@pytest.mark.parametrize(("vendor", "faster"), [("AuthenticAMD", True), ("GenuineIntel", False), ("ARM", False)])
def test_without_the_variable_the_vendor_of_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, faster: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", encoding="utf-8")
    monkeypatch.delenv(VARIABLE)
    for report in (cpuinfo, tmp_path / "none"):  # the second as on Windows
        monkeypatch.setattr(onednn, "CPUINFO", report)
        monkeypatch.setattr("platform.processor", lambda: f"Family 25 Model 1, {vendor}")
        onednn._works.cache_clear()
        with torch.no_grad():
            assert runs_onednn(drawn(5, 4)) == faster


@pytest.mark.parametrize("missing", ["_linear_pointwise", "_convolution_pointwise"])
def test_without_an_operator_all_products_are_pytorchs(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def absent(*_arguments: Any) -> None:
        raise RuntimeError("no such operator")

    onednn._works.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, missing, absent)
    with torch.no_grad():
        assert not runs_onednn(drawn(5, 4))
    onednn._works.cache_clear()


@pytest.mark.parametrize("of", ["timm", "Sequential"])
def test_a_linear_layer_is_fused_with_the_gelu_after_it(used: list[str], of: str) -> None:
    def layers(activation: type[nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        if of == "timm":
            return Mlp(8, 16, act_layer=activation)
        return nn.Sequential(nn.Linear(8, 16), activation(), nn.Linear(16, 8))

    x, own = drawn(5, 8), layers(nn.GELU)
    joined, other = layers(nn.GELU).requires_grad_(False), layers(nn.ReLU)
    fuse_gelu(joined)
    fuse_gelu(other)
    assert joined.state_dict().keys() == own.state_dict().keys() and not any(isinstance(part, nn.GELU) for part in joined.modules())
    assert any(isinstance(part, nn.ReLU) for part in other.modules())
    assert torch.equal(joined(x), own(x)) and not used  # with gradients
    with torch.no_grad(), in_onednn(x):
        found = joined(x)
    exact = own.double()(x.double())
    assert set(used) == {"linear"} and len(used) >= 2 and error(found, exact) < 1e-6
