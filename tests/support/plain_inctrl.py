"""The published InCTRL, restated from its paper's formulas over the tensors of its checkpoint by their own names. Slow and plain."""

from __future__ import annotations

from collections.abc import Mapping

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS, HEAD_WIDTH = (7, 9, 11), 64  # counted from 1; channels of an attention head
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def inctrl(tensors: Mapping[str, Tensor], query: Tensor, prompts: Tensor, texts: tuple[list[str], list[str]]) -> tuple[float, Tensor]:
    """query 3xHxW, prompts Kx3xHxW in [0, 1], the normal and the anomalous sentences. The score and the patch residuals N."""
    token, layers = image_tower(tensors, query)
    others = [image_tower(tensors, prompt) for prompt in prompts]
    residual = torch.zeros(len(layers[0]))
    for layer, patches in enumerate(layers):
        bank = F.normalize(torch.cat([own[layer] for _token, own in others]), dim=1)
        for number, patch in enumerate(patches):
            residual[number] += (0.5 * (1 - bank @ F.normalize(patch, dim=0))).min() / len(layers)
    image = head(
        tensors, "diff_head_ref", torch.stack([adapter(tensors, own) for own, _layers in others]).mean(dim=0) - adapter(tensors, token)
    )
    means = [
        F.normalize(torch.stack([F.normalize(text_tower(tensors, texts), dim=0) for texts in side]).mean(dim=0), dim=0) for side in texts
    ]
    prior = (100 * torch.stack(means) @ F.normalize(token, dim=0)).softmax(dim=0)[1]
    holistic = head(tensors, "diff_head", residual + image + prior)
    return float((holistic + residual.max()) / 2), residual


def image_tower(tensors: Mapping[str, Tensor], picture: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = (picture - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    weight = tensors["visual.conv1.weight"]
    patches = F.conv2d(x[None], weight, stride=weight.shape[-1])[0].flatten(1).T
    x = torch.cat([tensors["visual.class_embedding"][None], patches]) + tensors["visual.positional_embedding"]
    x = layer_norm(tensors, "visual.ln_pre", x)
    kept = []
    for number in range(12):
        x = block(tensors, f"visual.transformer.resblocks.{number}", x)
        if number + 1 in BLOCKS:
            kept.append(x[1:])
    return layer_norm(tensors, "visual.ln_post", x[0]) @ tensors["visual.proj"], kept


def text_tower(tensors: Mapping[str, Tensor], text: str) -> Tensor:
    tokens = open_clip.SimpleTokenizer()([text])[0]
    x = tensors["token_embedding.weight"][tokens] + tensors["positional_embedding"]
    future = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)
    for number in range(12):
        x = block(tensors, f"transformer.resblocks.{number}", x, future)
    return layer_norm(tensors, "ln_final", x)[tokens.argmax()] @ tensors["text_projection"]


def block(tensors: Mapping[str, Tensor], name: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
    inner = layer_norm(tensors, f"{name}.ln_1", x)
    q, k, v = (
        part.unflatten(1, (-1, HEAD_WIDTH)).transpose(0, 1)
        for part in (inner @ tensors[f"{name}.attn.in_proj_weight"].T + tensors[f"{name}.attn.in_proj_bias"]).chunk(3, dim=1)
    )
    products = q @ k.mT / HEAD_WIDTH**0.5
    attended = (products if mask is None else products + mask).softmax(dim=2) @ v
    x = x + linear(tensors, f"{name}.attn.out_proj", attended.transpose(0, 1).flatten(1))
    inner = F.gelu(linear(tensors, f"{name}.mlp.c_fc", layer_norm(tensors, f"{name}.ln_2", x)))
    return x + linear(tensors, f"{name}.mlp.c_proj", inner)


def adapter(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return (tensors["adapter.fc.2.weight"] @ (tensors["adapter.fc.0.weight"] @ x).relu()).relu()


def head(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    for layer, norm in (("projection1", "bn2"), ("projection2", "bn3")):
        x = linear(tensors, f"{name}.{layer}", x).relu()
        mean, variance = tensors[f"{name}.{norm}.running_mean"], tensors[f"{name}.{norm}.running_var"]
        x = (x - mean) / (variance + 1e-5).sqrt() * tensors[f"{name}.{norm}.weight"] + tensors[f"{name}.{norm}.bias"]
    return linear(tensors, f"{name}.projection3", x).sigmoid()[0]


def linear(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def layer_norm(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
