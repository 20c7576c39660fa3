"""Run float32 linear layers, convolutions and attention on an AMD processor with oneDNN.

PyTorch multiplies float32 matrices with MKL. One core of an AMD EPYC reaches 110 GFLOP/s with MKL, and 240 GFLOP/s with oneDNN. On an Intel
Xeon, both reach 160, and PyTorch's own attention and 1x1 convolutions are faster. PyTorch itself uses oneDNN only for convolutions and for
products of lower precision.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

VARIABLE = "CHANGEPAIR_ONEDNN"  # environment variable: 1 and 0 switch oneDNN on and off; the default depends on the processor
CPUINFO = Path("/proc/cpuinfo")
TIMM_BLOCK = ("timm.layers.mlp", "Mlp")  # module and name of timm's perceptron, whose children run in order
ROWS = 512  # queries that `attention` computes at once, so that their attention weights stay in the processor's cache
FEW_TOKENS = 128  # up to this number of tokens, PyTorch's attention is as fast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·weightᵀ + bias, as F.linear does. `x` is (..., C), `weight` is (D, C), and the result is (..., D)."""
    if (
        not runs_onednn(x)
        or weight.ndim != 2
        or not x.numel()
        or not _plain(weight)
        or not (bias is None or _plain_bias(bias, len(weight)))
    ):
        return F.linear(x, weight, bias)
    return _onednn(x, weight, bias)


def _plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.layout == torch.strided and weight.device.type == "cpu"


def _plain_bias(bias: Tensor, channels: int) -> bool:
    """Return whether the operators, which read a bias as an array without strides, add this one as PyTorch does."""
    return _plain(bias) and bias.shape == (channels,) and bias.is_contiguous()


class LinearGelu(nn.Linear):
    """A linear layer followed by GELU. oneDNN applies GELU while the result is in the processor's cache."""

    def forward(self, x: Tensor) -> Tensor:
        if not runs_onednn(x) or not x.numel():
            return F.gelu(F.linear(x, self.weight, self.bias))
        return _onednn(x, self.weight, self.bias, "gelu")


def fuse_gelu(network: nn.Module) -> None:
    """Fuse each linear layer with the GELU after it, in place, in blocks of timm and open_clip. No tensor's name or value changes."""
    for parent in network.modules():
        if type(parent) is not nn.Sequential and (type(parent).__module__, type(parent).__name__) != TIMM_BLOCK:
            continue
        for (_name, layer), (name, activation) in pairwise(parent.named_children()):
            if type(layer) is nn.Linear and type(activation) is nn.GELU and activation.approximate == "none":
                layer.__class__ = LinearGelu
                setattr(parent, name, nn.Identity())


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve x (B, C, H, W), as F.conv2d does.

    On one thread, F.conv2d runs 1x1 kernels without oneDNN, at half the speed. With channels last, they are a product of matrices here,
    which does not reorder the weights in each call, as a convolution does.
    """
    plain = _plain(weight) and (bias is None or _plain_bias(bias, len(weight)))
    if isinstance(padding, str) or not plain or not runs_onednn(x) or not x.numel() or x.ndim != 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    pairs = [[one, one] if isinstance(one, int) else list(one) for one in (padding, stride, dilation)]
    rows = x.permute(0, 2, 3, 1)
    product = weight.shape[1:] == (x.shape[1], 1, 1) and pairs[:2] == [[0, 0], [1, 1]] and groups == 1 and len(weight) > 0
    if product and rows.is_contiguous():
        return _onednn(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)
    return _convolved(x, weight, bias, *pairs, groups)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention (B, H, N, D), as F.scaled_dot_product_attention does.

    `query` is (B, H, N, C), `key` is (B, H, M, C), and `value` is (B, H, M, D). At most ROWS rows of the matrix (N, M) are held at once.
    """
    plain = attn_mask is None and not (dropout_p or is_causal or enable_gqa)
    alike = query.shape[:2] == key.shape[:2] and key.shape[:-1] == value.shape[:-1]
    if not plain or query.ndim != 4 or query.shape[2] <= FEW_TOKENS or not alike or not runs_onednn(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    result = query.new_empty(*query.shape[:2], query.shape[2], value.shape[3])
    heads = (part.flatten(0, 1) for part in (query, key, value, result))
    for queries, keys, values, output in zip(*heads, strict=True):
        keys, values = keys.contiguous(), values.mT.contiguous()
        for rows, part in zip(queries.split(ROWS), output.split(ROWS), strict=True):
            part.copy_(linear(linear((rows * scale).contiguous(), keys).softmax(dim=1), values))
    return result


def runs_onednn(x: Tensor) -> bool:
    """Return whether products of a tensor run in oneDNN.

    The tensor is float32, on an AMD processor, and without gradients, and no model is being exported or compiled. The environment variable
    CHANGEPAIR_ONEDNN=1 uses oneDNN on any processor, and CHANGEPAIR_ONEDNN=0 on none.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and _works()
    )


@cache
def _works() -> bool:
    """Return whether oneDNN is chosen, this version of PyTorch has its private operators, and they are correct."""
    if os.environ.get(VARIABLE, "1" if _is_amd() else "0") == "0":
        return False
    x, weight, bias = torch.arange(6.0).view(2, 3) / 8, torch.arange(12.0).view(4, 3) / 8, torch.arange(4.0) / 8
    exact = x @ weight.mT + bias
    try:
        convolved = _convolved(x[:, :, None, None], weight[:, :, None, None], bias, [0, 0], [1, 1], [1, 1], 1)
        found = _onednn(x, weight, bias), convolved.flatten(1), _onednn(x, weight, bias, "gelu")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, (exact, exact, F.gelu(exact)), strict=True))


def _is_amd() -> bool:
    """Return whether the processor is AMD's. Linux and Windows report its vendor."""
    return "AuthenticAMD" in (CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else platform.processor())


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none" if activation == "gelu" else "")
    return found


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *options: list[int] | int) -> Tensor:
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *options, "none", [], "")
    return found


def in_onednn(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context that runs linear layers, convolutions and attention of any network in oneDNN, if `runs_onednn(x)`."""
    return _InOneDNN() if runs_onednn(x) else nullcontext()


class _InOneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        return (func if "input" in options else REPLACED.get(func, func))(*args, **options)


def _self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    weight: Tensor | None,
    bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero: bool,
    dropout: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute nn.MultiheadAttention, as F.multi_head_attention_forward does. `query` is (N, B, C)."""
    mask = options.get("attn_mask")
    special = ("key_padding_mask", "static_k", "static_v", "is_causal", "use_separate_proj_weight")
    plain = not options.get("need_weights", True) and all(options.get(name) is None or options[name] is False for name in special)
    plain = plain and (mask is None or (mask.ndim == 2 and mask.is_floating_point()))  # a boolean mask is inverted there
    plain = plain and query.ndim == 3 and not (dropout and options.get("training", True))
    if not plain or not (query is key is value) or weight is None or bias_k is not None or add_zero:
        found: tuple[Tensor, Tensor | None] = F.multi_head_attention_forward(
            query, key, value, width, heads, weight, bias, bias_k, bias_v, add_zero, dropout, out_weight, out_bias, **options
        )
        return found
    queries, keys, values = linear(query, weight, bias).unflatten(-1, (3, heads, -1)).permute(2, 1, 3, 0, 4)  # (B, H, N, D) each
    attended = attention(queries, keys, values, mask)
    return linear(attended.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None


REPLACED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    F.conv2d: convolution,
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: _self_attention,
}
