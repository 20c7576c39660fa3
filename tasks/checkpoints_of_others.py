"""The authors' own checkpoints, turned into model folders: every tensor by its name and shape, none left over, none made up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from tasks.detector_settings import OF_THE_MODEL, EncoderSettings, InCTRLSettings, MetaUASSettings, TrainedSettings
from tasks.detectors import build_detector
from tasks.encoders import build_encoder
from tasks.errors import BadInput
from tasks.weights import misfits, read_weights, save_model, told

PUBLISHED_METAUAS = MetaUASSettings(encoder=EncoderSettings("smp", "efficientnet-b4", OF_THE_MODEL))
"""As github.com/gaobb/MetaUAS publishes it, for 256x256 and, with other weights, for 512x512; any multiple of 32 will do."""
PUBLISHED_INCTRL = InCTRLSettings(encoder=EncoderSettings("open_clip", "ViT-B-16-plus-240", OF_THE_MODEL, (7, 9, 11)))
"""As github.com/mala-lab/InCTRL publishes it."""

Rule = tuple[str, str]  # what a name starts with, theirs and ours

# Theirs aligns the last stage first.
METAUAS_RULES: tuple[Rule, ...] = (
    ("encoder.", "encoder.network."),
    *((f"alignment.{place}.alignment_layer.dimensionality_reduction.", f"alignments.{2 - place}.reduction.") for place in range(3)),
    ("decoder.", "decoder."),
    ("mask_head.", "head."),
)

HEAD_LAYERS = {
    "projection1": "first",
    "projection2": "second",
    "projection3": "last",
    "bn1": "input_norm",
    "bn2": "first_norm",
    "bn3": "second_norm",
}
INCTRL_RULES: tuple[Rule, ...] = (
    ("adapter.fc.", "adapter."),
    *(
        (f"{theirs}.{layer}.", f"{ours}.{name}.")
        for theirs, ours in (("diff_head_ref", "image_head"), ("diff_head", "holistic_head"))
        for layer, name in HEAD_LAYERS.items()
    ),
    ("", "encoder.network."),  # all the rest is open_clip's
)


def import_metauas(checkpoint: Path, folder: Path) -> int:
    """Writes the published MetaUAS to `folder`; gives the number of its tensors. Raises BadInput, listing every misfit."""
    return _import("metauas", PUBLISHED_METAUAS, METAUAS_RULES, checkpoint, folder)


def import_inctrl(checkpoint: Path, folder: Path) -> int:
    """Writes a published InCTRL (there is one for 2, 4 and 8 shots) to `folder`, as `import_metauas` does."""
    return _import("inctrl", PUBLISHED_INCTRL, INCTRL_RULES, checkpoint, folder)


IMPORTERS: dict[str, Callable[[Path, Path], int]] = {"metauas": import_metauas, "inctrl": import_inctrl}


def _import(name: str, settings: TrainedSettings, rules: tuple[Rule, ...], checkpoint: Path, folder: Path) -> int:
    tensors = _renamed(read_weights(checkpoint), rules)
    model = build_detector(settings, build_encoder(settings.encoder, settings.resolution, filled=False))
    wrong = misfits(tensors, model)
    if wrong:
        theirs = [_in_their_names(line, rules) for line in wrong]
        raise BadInput(f"{checkpoint}: is not the published {name}, {told(theirs, at_most=None)}")
    model.load_state_dict(tensors)
    save_model(folder, model, {"detector": name, "settings": asdict(settings), "imported_from": checkpoint.name})
    return len(tensors)


def _renamed(tensors: Mapping[str, Tensor], rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}  # of a DistributedDataParallel
    return {_replaced(name, rules): tensor for name, tensor in plain.items()}


def _replaced(name: str, rules: tuple[Rule, ...]) -> str:
    for theirs, ours in rules:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _in_their_names(line: str, rules: tuple[Rule, ...]) -> str:
    """A misfit, told with the name that the checkpoint's user knows."""
    return re.sub(r"\S+\.\S+", lambda match: _replaced(match.group(), tuple((ours, theirs) for theirs, ours in rules)), line, count=1)
