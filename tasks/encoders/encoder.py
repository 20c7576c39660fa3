"""Encode pictures: `encoder(images)` returns feature maps, finest first, each with its stride."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from changepair.tasks.common.onednn import fuse_gelu, in_onednn

Features = list[Tensor]
"""Feature maps, finest first: (B, C, h, w) of queries; (K, C, h, w) of prompts for all queries, or (B, K, C, h, w).

Some encoders append an embedding of the whole picture, as a map of one position. The mean over positions of the last entry always
represents the picture.
"""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation that most weights were trained with


AT_ONCE = 2**18
"""Pixels that a CPU encodes at once: 4 pictures of 256x256, or one larger picture. On 1 and 2 cores, more at once are no faster, and the
packaged encoders' tensors would exceed 32 MiB, from which the C library returns them to the system when they are freed."""


class Encoder(Protocol):
    """Maps images (B, 3, H, W) in [0, 1] to feature maps. `first` asks for those of the first scale only."""

    channels: tuple[int, ...]  # channels of every entry of the features
    strides: tuple[int, ...]  # pixels a position, of every entry; the picture's side for an embedding
    maps: int  # number of maps among the entries: all, or all except the embedding
    scales: tuple[float, ...]  # sizes at which a picture is encoded, as shares of its size; each gives the same number of maps

    def __call__(self, images: Tensor, *, first: bool = False) -> Features: ...


class FrozenEncoder(nn.Module):
    """A network that never trains and stays in evaluation mode. It normalises its input.

    It always computes in float32, because rounded features changed a score by up to 0.04 (an untrained MetaUAS with an FPN decoder).
    """

    mean: Tensor
    std: Tensor
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    maps: int
    scales: tuple[float, ...] = (1.0,)
    resolution: int  # pixels a side of the pictures that it was built for

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        """Wrap a network. `mean` and `std` describe its training pictures in [0, 1]: one number, or one for each channel."""
        super().__init__()
        fuse_gelu(network)
        # Convolutions are fastest with channels last: 1.7 times as fast for the packaged encoder on a CPU.
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        # The network that runs, built on first use. A list keeps it out of the state, and is that of all encoders of `at`.
        self._fast: list[Callable[[Tensor], Any]] = []
        self._compiles = False
        self.register_load_state_dict_post_hook(lambda module, _keys: module._forget_fast())
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        """Return itself, so that copies of a detector share the frozen weights."""
        return self

    def forward(self, images: Tensor, *, first: bool = False) -> Features:
        """Encode images (B, 3, H, W) in [0, 1]. With `first`, return the maps of the first scale only."""
        scales = self.scales[:1] if first else self.scales
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), nullcontext() if self._compiles else in_onednn(images):
            if self._compiles or images.device.type != "cpu" or torch.compiler.is_compiling():
                return self._encoded(images, scales)
            few = max(1, AT_ONCE // max(1, images.shape[-1] * images.shape[-2]))
            parts = [self._encoded(part, scales) for part in images.split(few)]
            return parts[0] if len(parts) == 1 else [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _encoded(self, images: Tensor, scales: Sequence[float]) -> Features:
        normalised = (images.float() - self.mean) / self.std
        found = [self.features(_scaled(normalised, scale).contiguous(memory_format=torch.channels_last)) for scale in scales]
        if len(found) == 1:
            return found[0]
        each = self.maps // len(self.scales)
        return [*(map_ for features in found for map_ in features[:each]), *found[0][each:]]

    def see_at(self, scales: Sequence[float]) -> None:
        """Encode every picture at several sizes from now on. The maps of the first size come first, then those of the second, and so on."""
        self.channels = (*(self.channels[: self.maps] * len(scales)), *self.channels[self.maps :])
        strides = [round(stride / scale) for scale in scales for stride in self.strides[: self.maps]]
        self.strides = (*strides, *self.strides[self.maps :])
        self.maps *= len(scales)
        self.scales = tuple(scales)

    def at(self, scales: Sequence[float]) -> FrozenEncoder:
        """Return an encoder with the same network that encodes every picture at other scales, as after `see_at`."""
        other = copy.copy(self)
        other.maps = self.maps // len(self.scales)
        other.channels = (*self.channels[: other.maps], *self.channels[self.maps :])
        strides = [round(stride * self.scales[0]) for stride in self.strides[: other.maps]]
        other.strides = (*strides, *self.strides[self.maps :])
        other.see_at(scales)
        return other

    def features(self, normalised: Tensor) -> Features:
        raise NotImplementedError

    def run(self, normalised: Tensor) -> Any:
        """Run the network, or its folded copy if there is one, which is 3 times as fast for the packaged encoder on a CPU."""
        if exporting():
            return self.network(normalised)
        if not self._fast:
            self._fast.append(self._fastest(normalised))
        return self._fast[0](normalised)

    def compile_network(self) -> None:
        """Compile the network separately from now on. Graphs compiled around it break here."""
        self._compiles = True
        self._forget_fast()
        self.forward = torch.compiler.disable(self.forward)  # type: ignore[method-assign]

    def become_fast(self) -> None:
        """Replace the network permanently by the one that runs, for export. It must have run once."""
        if self._fast and isinstance(self._fast[0], nn.Module):
            self.network = self._fast[0]

    def _fastest(self, normalised: Tensor) -> Callable[[Tensor], Any]:
        fast = self._folded(normalised) or self.network
        # dynamic=False: padding depends on the sizes, and with symbolic ones compiling took over eight minutes at several scales.
        return torch.compile(fast, dynamic=False) if self._compiles else fast

    def _folded(self, normalised: Tensor) -> nn.Module | None:
        """Return a copy of the network with folded normalisations; None if its features differ from the network's."""
        fast = folded(self.network)
        if fast is None:
            return None
        with exactly():  # rounding would increase the difference
            couples = zip(self.network(normalised), fast(normalised), strict=True)
            equal = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in couples)
        return fast if equal else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenEncoder:
        if fn(self.mean) is not self.mean:  # moved to another device
            self._forget_fast()
        return super()._apply(fn, recurse)

    def _forget_fast(self) -> None:
        self._fast.clear()


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Resize pictures (B, C, H, W) to a share of their sides, bilinear and antialiased."""
    if scale == 1.0:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def multiply_exactly(exact: bool) -> None:
    """Set whether a GPU's convolutions multiply float32 exactly.

    PyTorch's default rounds to the 10 bits of TF32, which is faster but does not equal a CPU. A CPU is always exact.
    """
    torch.backends.cudnn.allow_tf32 = not exact


@contextmanager
def exactly() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    multiply_exactly(True)
    try:
        yield
    finally:
        multiply_exactly(not before)


def exporting() -> bool:
    """Return whether a model is being exported.

    It then computes a whole batch at once, instead of picture by picture to stay in the processor's cache. The results are the same.
    """
    return bool(torch.compiler.is_exporting())


def folded(network: nn.Module) -> nn.Module | None:
    """Copy a network in evaluation mode, with each convolution and its normalisation folded into one. Return None if there is nothing to
    fold.

    The order of the modules shows which normalisation follows which convolution. This order is not guaranteed, so the caller must compare
    the results of the copy.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return None
    network = copy.deepcopy(network)
    pairs = [
        (parent, conv, name, norm)
        for parent in network.modules()
        for (_name, conv), (name, norm) in pairwise(parent.named_children())
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.num_features == conv.out_channels
    ]
    for parent, conv, name, norm in pairs:
        assert norm.running_mean is not None and norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        setattr(parent, name, getattr(norm, "act", None) or nn.Identity())  # of Norm in lite.py, and of timm's BatchNormAct2d
    return network.requires_grad_(False).to(memory_format=torch.channels_last) if pairs else None
