"""The seam between pictures and detectors: `encoder(images) -> feature maps`, finest first, each with its stride."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import get_encoder
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Features = list[Tensor]
"""Maps BxCxhxw for queries; for prompts KxCxhxw shared by all queries, or BxKxCxhxw. Finest first. Some encoders end it with an
embedding of the whole picture, as a map of one position; the mean over positions of the last entry always stands for the picture."""

Pair = tuple[nn.Module, str, str]  # the module that holds both, the convolution's name in it, the normalisation's
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that most weights were trained with


class Encoder(Protocol):
    """Maps images Bx3xHxW in [0, 1] to feature maps."""

    channels: tuple[int, ...]  # of every entry of the features
    strides: tuple[int, ...]  # pixels a position, of every entry; of an embedding the picture's side
    maps: int  # how many of the entries are maps: all, or all but the embedding
    scales: tuple[float, ...]  # the sizes that a picture is seen at, in shares of its own; as many maps come of each

    def __call__(self, images: Tensor) -> Features: ...


class FrozenEncoder(nn.Module):
    """A network that never trains and stays in evaluation mode. It normalises its input itself.

    It computes in float32 whatever the rest computes in: rounded features moved a score by up to 0.04 (an untrained MetaUAS with an FPN
    decoder), and are not what the same detector sees elsewhere.
    """

    mean: Tensor
    std: Tensor
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    maps: int
    scales: tuple[float, ...] = (1.0,)
    resolution: int  # pixels a side of the pictures that it was built for

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        """mean, std: of the pictures in [0, 1] that the network was trained on; one number, or one a channel."""
        super().__init__()
        # Channels last is what convolutions compute fastest in: 1.7 times as fast for the packaged encoder on a CPU.
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._fast: tuple[Callable[[Tensor], Any], ...] = ()  # the network as it is run, made when it is; no module, so not in the state
        self._compiles = False
        self.register_load_state_dict_post_hook(lambda module, _keys: module._forget_fast())
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        """Gives itself: what never changes is shared by the copies of a detector."""
        return self

    def forward(self, images: Tensor) -> Features:
        """Encodes images Bx3xHxW in [0, 1]."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            normalised = (images.float() - self.mean) / self.std
            if self.scales == (1.0,):
                return self.features(normalised.contiguous(memory_format=torch.channels_last))
            maps: Features = []
            rest: Features = []
            for scale in self.scales:
                found = self.features(_scaled(normalised, scale).contiguous(memory_format=torch.channels_last))
                each = self.maps // len(self.scales)
                maps += found[:each]
                rest = rest or found[each:]
            return [*maps, *rest]

    def see_at(self, scales: Sequence[float]) -> None:
        """Sees every picture at several sizes from now on: gives the maps of the first, then of the second, and so on."""
        once = slice(0, self.maps)
        self.channels = (*(self.channels[once] * len(scales)), *self.channels[self.maps :])
        strides = [round(stride / scale) for scale in scales for stride in self.strides[once]]
        self.strides = (*strides, *self.strides[self.maps :])
        self.maps *= len(scales)
        self.scales = tuple(scales)

    def features(self, normalised: Tensor) -> Features:
        raise NotImplementedError

    def run(self, normalised: Tensor) -> Any:
        """Runs the network, by its folded copy if there is one: 3 times as fast for the packaged encoder on a CPU."""
        if exporting():
            return self.network(normalised)
        if not self._fast:
            self._fast = (self._fastest(normalised),)
        return self._fast[0](normalised)

    def compile_network(self) -> None:
        """Runs the network compiled from now on, on its own: what is compiled around it stops here."""
        self._compiles = True
        self._forget_fast()
        self.forward = torch.compiler.disable(self.forward)  # type: ignore[method-assign]

    def become_fast(self) -> None:
        """Replaces the network by the one that is run, for good: to be exported. It must have run once."""
        if self._fast and isinstance(self._fast[0], nn.Module):
            self.network = self._fast[0]

    def _fastest(self, normalised: Tensor) -> Callable[[Tensor], Any]:
        fast = folded(self.network)
        if fast is not None:
            with exactly():  # rounded, the two differ by more than that
                couples = list(zip(self.network(normalised), fast(normalised), strict=True))
        if fast is None or not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in couples):
            fast = self.network
        # Each size on its own: for sizes as symbols, which padding depends on, a picture at several scales took over eight minutes.
        return torch.compile(fast, dynamic=False) if self._compiles else fast

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenEncoder:
        self._forget_fast()  # moved to another device
        return super()._apply(fn, recurse)

    def _forget_fast(self) -> None:
        self._fast = ()


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Resizes pictures BxCxHxW to that share of their sides, bilinear, each pixel the mean of what it covers."""
    if scale == 1.0:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class TimmEncoder(FrozenEncoder):
    """A timm network made with features_only: five stages of a CNN, strides 2 to 32, or chosen blocks of a vision transformer."""

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__(network, mean=mean, std=std)
        about: Any = network.feature_info
        self.channels = tuple(about.channels())
        self.strides = tuple(about.reduction())
        self.maps = len(self.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.run(normalised))


class SmpEncoder(FrozenEncoder):
    """An encoder of segmentation_models_pytorch, five stages. The published MetaUAS was trained on one: its EfficientNet pads and
    counts its stages otherwise than timm's of the same name, and than that of today's segmentation_models_pytorch."""

    def __init__(self, name: str) -> None:
        """name: as segmentation_models_pytorch calls it, for example efficientnet-b4. Its weights start at random."""
        network: Any = get_encoder(name, weights=None)
        _pad_as_published(network)
        super().__init__(network, mean=IMAGENET[0], std=IMAGENET[1])
        self.channels = tuple(network.out_channels[1:])
        self.strides = tuple(2 ** (stage + 1) for stage in range(len(self.channels)))
        self.maps = len(self.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.run(normalised)[1:])  # the first is the picture


def _pad_as_published(network: nn.Module) -> None:
    """Pads an EfficientNet as efficientnet-pytorch 0.6.3 does, which the authors of MetaUAS pin: every convolution as for the picture's
    whole side that the network is defined at (380 for B4), however much smaller its own input is."""
    settings: Any = getattr(network, "_global_params", None)
    for module in network.modules() if settings is not None else ():
        if isinstance(module, nn.Conv2d) and hasattr(module, "static_padding"):
            kernel, stride = module.kernel_size[0], module.stride[0]
            room = max((-(-settings.image_size // stride) - 1) * stride + kernel - settings.image_size, 0)
            module.static_padding = nn.ZeroPad2d((room // 2, room - room // 2) * 2)


def efficientnet_lite0(weights: Mapping[str, Tensor] | None) -> TimmEncoder:
    """Builds timm's tf_efficientnet_lite0 (Tan and Le, ICML 2019, in its Lite variant): 16, 24, 40, 112, 320 channels.

    weights: a classifier's state dict with the same tensors in the same order under any names; the head is left over. None leaves
    them at random. Raises ValueError if a tensor's shape does not fit.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    if weights is not None:
        network.load_state_dict(_in_order(network.state_dict(), weights))
    return TimmEncoder(network, mean=0.5, std=0.5)


def _in_order(own: dict[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = [(name, tensor) for name, tensor in weights.items() if not name.endswith("num_batches_tracked")]
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    for (name, tensor), target in zip(given, wanted, strict=False):
        if tensor.shape != own[target].shape:
            raise ValueError(f"encoder weights: {name} has shape {tuple(tensor.shape)}, {target} needs {tuple(own[target].shape)}")
        own[target] = tensor
    if len(given) < len(wanted):
        raise ValueError(f"encoder weights: {len(given)} tensors, but the encoder has {len(wanted)}")
    return own


def multiply_exactly(exact: bool) -> None:
    """Says whether a GPU's convolutions multiply float32 as it is or, as PyTorch has it unless it is told, rounded to the 10 bits of TF32:
    faster, and not what a CPU gives. A CPU's are exact always."""
    torch.backends.cudnn.allow_tf32 = not exact


@contextmanager
def exactly() -> Iterator[None]:
    """Multiplies exactly for a while."""
    before = torch.backends.cudnn.allow_tf32
    multiply_exactly(True)
    try:
        yield
    finally:
        multiply_exactly(not before)


def exporting() -> bool:
    """Tells whether a model is being exported: it then computes all of a batch at once, where it else goes picture by picture to stay in
    the processor's cache. The results are the same."""
    return bool(torch.compiler.is_exporting())


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
