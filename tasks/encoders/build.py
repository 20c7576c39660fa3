"""Build encoders from their settings, with weights from a package, a hub or a file, or with random weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from changepair.tasks.common.errors import BadInput
from changepair.tasks.encoders.clip import ClipEncoder
from changepair.tasks.encoders.encoder import IMAGENET, FrozenEncoder, multiply_exactly
from changepair.tasks.encoders.folder import on_disk
from changepair.tasks.encoders.lite import LiteEncoder, efficientnet_lite
from changepair.tasks.encoders.presets import command_for, preset_of
from changepair.tasks.encoders.settings import HUB, OF_THE_MODEL, PACKAGED, EncoderSettings
from changepair.tasks.encoders.weights import PACKAGED_FILES, file_of_tag, packaged_weights, read_weights

DRAWS = frozenset([nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_])
NUMPY = (".npz", ".npy")  # files of big_vision, which open_clip reads with other code


def build_encoder(settings: EncoderSettings, resolution: int, *, filled: bool = True) -> FrozenEncoder:
    """Build an encoder for pictures of `resolution` pixels a side. `filled` sets whether its weights are read; otherwise they are random.

    The function makes a GPU's convolutions exact, so that scores equal those of a CPU. Raises BadInput if the network does not exist, its
    weights are missing, or it does not accept such pictures.
    """
    multiply_exactly(True)
    filled = filled and settings.weights != OF_THE_MODEL
    if filled:
        settings = on_disk(settings)
    build = {"timm": _timm, "open_clip": _open_clip, "smp": _smp}[settings.library]
    try:
        encoder = build(settings, resolution, filled)
        if not isinstance(encoder, LiteEncoder):  # it accepts any size
            for scale in settings.scales or (1.0,):
                _check_sides(encoder, round(scale * resolution))
        if settings.scales not in ((), (1.0,)):
            encoder.see_at(settings.scales)
    except BadInput:
        raise
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise BadInput(f"encoder {settings.name}: {_line(error)}; resolution {resolution}, layers {list(settings.layers)}") from error
    encoder.resolution = resolution
    return encoder


def _check_sides(encoder: FrozenEncoder, pixels: int) -> None:
    """Run an encoder once. Raises ValueError, or an error of its library, if it does not accept pictures of `pixels` a side."""
    sides = [map_.shape[-1] for map_ in encoder(torch.zeros(1, 3, pixels, pixels))]
    if any(side != -(-pixels // stride) for side, stride in zip(sides, encoder.strides, strict=True)):
        raise ValueError(f"it needs a multiple of its stride {encoder.strides[0]}")  # otherwise it would look beyond the border


def _timm(settings: EncoderSettings, resolution: int, filled: bool) -> FrozenEncoder:
    if settings.weights == PACKAGED:
        if settings.name not in PACKAGED_FILES:
            ready = " and ".join(PACKAGED_FILES)
            raise BadInput(
                f"encoder {settings.name}: no package has its weights, only those of {ready}; set weights: hub, or to the path of a file"
            )
        if settings.layers or settings.layer_norm:
            raise BadInput(f"encoder {settings.name}: its layers are its five stages; select from them with the detector's stages")
        return efficientnet_lite(settings.name, packaged_weights(settings.name) if filled else None)
    import timm  # takes two seconds, so it is imported here

    from changepair.tasks.encoders.timm_networks import NormalisedBlocks, TimmEncoder

    if not timm.is_model(settings.name):
        raise BadInput(f"encoder {settings.name}: timm has no such model{_near(settings.name, timm.list_models(settings.name[:4] + '*'))}")
    about = timm.get_pretrained_cfg(settings.name)
    asked: dict[str, Any] = {"num_classes": 0} if settings.layer_norm else {"features_only": True}
    indices = tuple(layer - 1 for layer in settings.layers)
    if indices and not settings.layer_norm:
        asked["out_indices"] = indices
    if about is not None and about.fixed_input_size:
        asked["img_size"] = resolution
    if filled and settings.weights != HUB:
        asked["pretrained_cfg_overlay"] = {"state_dict": _checked(settings, read_weights(Path(settings.weights)))}
    network = _fetched(settings, partial(timm.create_model, settings.name, pretrained=filled, **asked))
    if settings.layer_norm:
        network = NormalisedBlocks(network, indices or range(len(getattr(network, "blocks", ())))[-3:])
    mean, std = (about.mean, about.std) if about is not None else IMAGENET
    return TimmEncoder(network, mean=mean, std=std)


def _checked(settings: EncoderSettings, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors if they are the network's, with or without a classifier. timm would ignore those that do not fit."""
    import timm

    network: Any = timm.create_model(settings.name, pretrained=False)
    classifiers = network.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    head = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    wrong = [name for name in network.state_dict().keys() ^ tensors.keys() if name not in head and not name.endswith("num_batches_tracked")]
    if wrong:
        raise BadInput(
            f"encoder {settings.name}: weights {settings.weights!r} belong to another network: "
            f"{len(wrong)} tensors are missing or surplus, such as {min(wrong)}"
        )
    return tensors


def _open_clip(settings: EncoderSettings, resolution: int, filled: bool) -> FrozenEncoder:
    import open_clip  # costs a second

    if settings.name not in open_clip.list_models() and not settings.name.startswith(("hf-hub:", "local-dir:")):
        raise BadInput(f"encoder {settings.name}: open_clip has no such model{_near(settings.name, open_clip.list_models())}")
    asked: dict[str, Any] = {"force_image_size": resolution, "pretrained_text": False}
    if filled and settings.name.startswith(("hf-hub:", "local-dir:")):
        asked["pretrained"] = None  # the name states the source of the weights
    elif filled:
        tags = open_clip.list_pretrained_tags_by_model(settings.name)
        if settings.weights not in tags and not Path(settings.weights).is_file():
            raise BadInput(f"encoder {settings.name}: weights {settings.weights!r} are neither a tag of it ({', '.join(tags)}) nor a file")
        asked |= {"pretrained": settings.weights, "require_pretrained": True}
        if settings.weights in tags:
            asked["pretrained"] = _fetched(settings, partial(file_of_tag, settings.name, settings.weights)) or settings.weights
    else:
        asked["load_weights"] = False
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns about random weights, which are intended here
    try:
        file = Path(asked.get("pretrained") or "")
        if file.is_file() and file.suffix not in NUMPY:
            network = _fetched(settings, partial(_clip_of_file, settings.name, file, image_size=resolution))
        else:
            network = _fetched(settings, partial(open_clip.create_model, settings.name, **asked))
    finally:
        logging.root.setLevel(level)
    return ClipEncoder(network, partial(open_clip.get_tokenizer, settings.name), layers=settings.layers, layer_norm=settings.layer_norm)


def _clip_of_file(name: str, file: Path, *, image_size: int) -> nn.Module:
    """Build an open_clip network with the tensors of a file, which are read once and not mapped."""
    import open_clip

    with _Undrawn():
        network: Any = open_clip.create_model(name, load_weights=False, force_image_size=image_size, pretrained_text=False)
    assign = partial(network.load_state_dict, assign=True)

    def copied(tensors: Mapping[str, Tensor], **options: Any) -> Any:
        return assign({name: tensor.clone() for name, tensor in tensors.items()}, **options)

    network.load_state_dict = copied if file.suffix == ".safetensors" else assign  # its reader maps the file into memory
    open_clip.load_checkpoint(network, str(file))
    del network.load_state_dict
    return cast(nn.Module, network.float())


class _Undrawn(TorchFunctionMode):
    """Leave out the drawing of random weights, which takes seconds. Pages that are never written take no memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def _smp(settings: EncoderSettings, resolution: int, filled: bool) -> FrozenEncoder:
    from segmentation_models_pytorch.encoders import get_encoder_names

    from changepair.tasks.encoders.smp_networks import SmpEncoder

    if settings.name not in get_encoder_names():
        raise BadInput(f"encoder {settings.name}: library smp has no such encoder{_near(settings.name, get_encoder_names())}")
    if settings.layers or settings.layer_norm:
        raise BadInput(f"encoder {settings.name}: its layers are its five stages; select from them with the detector's stages")
    encoder = SmpEncoder(settings.name)
    if filled:
        encoder.network.load_state_dict(read_weights(Path(settings.weights)))
    return encoder


def _fetched(settings: EncoderSettings, make: Any) -> Any:
    """Build an encoder's network. `make` may need a hub."""
    try:
        return make()
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "state_dict" in str(error):
            raise BadInput(f"encoder {settings.name}: weights {settings.weights!r} belong to another network: {_line(error)}") from error
        if (preset := preset_of(settings)) is not None:
            raise BadInput(f"encoder {preset}: its weights are not on this machine; {command_for(preset)}") from error
        raise BadInput(
            f"encoder {settings.name}: weights {settings.weights!r} are not on this machine and could not be fetched ({_line(error)}); "
            "connect to the hub once without HF_HUB_OFFLINE, or give the path of a file"
        ) from error


def _near(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
