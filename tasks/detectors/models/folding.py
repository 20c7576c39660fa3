"""Folds batch normalisations into the convolutions before them, so that a frozen network computes faster."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Pair = tuple[nn.Module, str, str]  # the module that holds both, the convolution's name in it, the normalisation's


def folded(network: nn.Module) -> nn.Module | None:
    """Copies a network in evaluation mode into one that gives the same, a convolution and its normalisation as one; None if it has no such.

    Which normalisation follows which convolution is read off the order they stand in, which nothing promises: whoever takes the copy
    must see that it does give the same.
    """
    if not any(True for _pair in _pairs(network)):
        return None
    network = copy.deepcopy(network)
    for parent, conv_name, norm_name in list(_pairs(network)):
        conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        setattr(parent, norm_name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def _pairs(network: nn.Module) -> Iterator[Pair]:
    for parent in network.modules():
        parts = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(parts):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.num_features == conv.out_channels:
                yield parent, conv_name, norm_name
