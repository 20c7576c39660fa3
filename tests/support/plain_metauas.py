"""The published MetaUAS, restated from its papers' formulas over the tensors of its checkpoint by their own names. Slow and plain."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# EfficientNet-B4 (Tan and Le, ICML 2019, table 1, width 1.4, depth 1.8): the blocks that halve the picture, and the last block before
# each halving, whose output is a stage. The authors' efficientnet-pytorch 0.6.3 pads every layer, however deep, as «same» padding of the
# 380 pixels that B4 is defined at.
HALVING, STAGE_ENDS, DEFINED_AT = (2, 6, 10, 22), (5, 9, 21, 31), 380
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def metauas(tensors: Mapping[str, Tensor], query: Tensor, prompt: Tensor) -> Tensor:
    """query, prompt: Bx3xHxW in [0, 1]. The anomaly map BxHxW."""
    queries, prompts = encoder(tensors, query), encoder(tensors, prompt)
    for place in range(3):  # 0 is the last stage
        stage = 4 - place
        name = f"alignment.{place}.alignment_layer.dimensionality_reduction"
        q, k = (F.conv2d(part, tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for part in (queries[stage], prompts[stage]))
        weights = torch.einsum("bcij,bckl->bijkl", q, k).flatten(3).softmax(dim=3)
        aligned = torch.einsum("bijp,bcp->bcij", weights, prompts[stage].flatten(2))
        queries[stage] = torch.cat([queries[stage], aligned], dim=1)
    decoded = queries[4]
    for number in range(5):
        skip = queries[3 - number] if number < 4 else None
        decoded = decoder_block(tensors, f"decoder.blocks.{number}", decoded, skip)
    return F.conv2d(decoded, tensors["mask_head.weight"], tensors["mask_head.bias"]).sigmoid()[:, 0]


def encoder(tensors: Mapping[str, Tensor], picture: Tensor) -> list[Tensor]:
    x = (picture - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    x = same_conv(x, tensors["encoder._conv_stem.weight"], 2)
    x = swish(norm(tensors, "encoder._bn0", x, 1e-3))
    stages = [x]
    count = 1 + max(int(re.split(r"\.", name)[2]) for name in tensors if name.startswith("encoder._blocks."))
    for number in range(count):
        block = f"encoder._blocks.{number}"
        inner = x
        if f"{block}._expand_conv.weight" in tensors:
            inner = swish(norm(tensors, f"{block}._bn0", F.conv2d(inner, tensors[f"{block}._expand_conv.weight"]), 1e-3))
        stride = 2 if number in HALVING else 1
        inner = same_conv(inner, tensors[f"{block}._depthwise_conv.weight"], stride, groups=inner.shape[1])
        inner = swish(norm(tensors, f"{block}._bn1", inner, 1e-3))
        squeezed = inner.mean(dim=(2, 3), keepdim=True)
        squeezed = swish(F.conv2d(squeezed, tensors[f"{block}._se_reduce.weight"], tensors[f"{block}._se_reduce.bias"]))
        inner = inner * F.conv2d(squeezed, tensors[f"{block}._se_expand.weight"], tensors[f"{block}._se_expand.bias"]).sigmoid()
        inner = norm(tensors, f"{block}._bn2", F.conv2d(inner, tensors[f"{block}._project_conv.weight"]), 1e-3)
        x = x + inner if stride == 1 and inner.shape == x.shape else inner
        if number in STAGE_ENDS:
            stages.append(x)
    return stages


def same_conv(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    positions = -(-DEFINED_AT // stride)
    padding = max((positions - 1) * stride + weight.shape[-1] - DEFINED_AT, 0)
    return F.conv2d(F.pad(x, (padding // 2, padding - padding // 2) * 2), weight, stride=stride, groups=groups)


def decoder_block(tensors: Mapping[str, Tensor], name: str, x: Tensor, skip: Tensor | None) -> Tensor:
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    if skip is not None:
        x = scse(tensors, f"{name}.attention1.attention", torch.cat([x, skip], dim=1))
    for conv in ("conv1", "conv2"):
        x = norm(tensors, f"{name}.{conv}.1", F.conv2d(x, tensors[f"{name}.{conv}.0.weight"], padding=1), 1e-5).relu()
    return x if skip is None else scse(tensors, f"{name}.attention2.attention", x)  # no attention where there is no skip


def scse(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Roy et al., MICCAI 2018."""
    channel = F.conv2d(x.mean(dim=(2, 3), keepdim=True), tensors[f"{name}.cSE.1.weight"], tensors[f"{name}.cSE.1.bias"]).relu()
    channel = F.conv2d(channel, tensors[f"{name}.cSE.3.weight"], tensors[f"{name}.cSE.3.bias"]).sigmoid()
    return x * channel + x * F.conv2d(x, tensors[f"{name}.sSE.0.weight"], tensors[f"{name}.sSE.0.bias"]).sigmoid()


def norm(tensors: Mapping[str, Tensor], name: str, x: Tensor, epsilon: float) -> Tensor:
    mean, variance, weight, bias = (tensors[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (variance + epsilon).sqrt() * weight + bias


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()
