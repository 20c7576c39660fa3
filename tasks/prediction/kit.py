"""Store a detector with its prompts and threshold in a self-contained folder: a kit.

    <kit>/
      kit.json             detector, settings, grid, threshold with the scores that set it, sha256 of the files below
      model.safetensors    every tensor of the detector, including the encoder
      memory.safetensors   features of the prompts, without the pictures
      card.md              a summary for people

`Predictor.load(<kit>)` needs nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from changepair.tasks.common.decoding import UNKNOWN, Intensity, Range
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import made_anew, sha256, write_text
from changepair.tasks.common.places import place_of
from changepair.tasks.common.texts import read_json
from changepair.tasks.common.tiles import Grid
from changepair.tasks.detectors.registry import DETECTORS, KIND, kind_of, missing_base
from changepair.tasks.detectors.store import MODEL_NAME, known_kind, load_model, settings_as_json, settings_from_json
from changepair.tasks.encoders.encoder import Features
from changepair.tasks.encoders.weights import read_weights
from changepair.tasks.prediction.calibration import LEAST_RATE, MOST_RATE, Threshold, rounded_up
from changepair.tasks.prediction.files import KIT_NAME, is_kit
from changepair.tasks.prediction.models import Named, empty, portable

MEMORY_NAME, CARD_NAME = "memory.safetensors", "card.md"
MOST_TILES = 1024  # largest number of rows or columns
FORM = 1  # version of kit.json; increased when older versions of changepair cannot read it


@dataclass(frozen=True)
class Prompted:
    """The encoded prompts of a detector."""

    memory: Features
    """Features TxKx... for T tiles of the grid and K prompts; [] without prompts. K is 1 where the detector bounds its memory."""
    grid: Grid
    category: str
    prompts: tuple[str, ...]
    """Hash of each prompt's pixels."""
    top: float = 0.0
    """Median over the prompts of the maximum in the map of the mirrored prompt. Maps are drawn relative to it until a threshold is set."""
    intensity: Intensity = UNKNOWN
    """Range of pictures of more than 8 bits."""


@dataclass(frozen=True)
class Kit:
    """A detector with its prompts and threshold, as a folder stores it. `Predictor.load(folder)` scores pictures with it."""

    model: Named
    prompted: Prompted
    threshold: Threshold | None
    """None for a kit without verdicts."""

    @classmethod
    def load(cls, folder: str | Path) -> Kit:
        """Read a kit. Raises BadInput if a file is missing, damaged, or from another version."""
        return _read(place_of(folder))

    def save(self, folder: str | Path) -> None:
        """Write the kit. It replaces an existing kit at the end. Raises BadInput if the folder contains anything else."""
        folder, model, prompted = Path(folder), self.model, self.prompted
        if folder.exists() and not (is_kit(folder) or (folder.is_dir() and not any(folder.iterdir()))):
            raise BadInput(f"{folder}: is neither a kit nor empty, so it is not replaced; name a new folder")
        with made_anew(folder) as partial:
            # Clones, because safetensors refuses tensors that share memory.
            tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.detector.state_dict().items()}
            save_file(tensors, partial / MODEL_NAME)
            memory = {f"{place:03d}": part.cpu().clone().contiguous() for place, part in enumerate(prompted.memory)}
            save_file(memory, partial / MEMORY_NAME)
            content = {
                "form": FORM,
                "changepair": version("changepair"),
                "detector": model.name,
                "settings": {name: {KIND: kind_of(one)} | settings_as_json(one) for name, one in portable(model.settings).items()},
                "category": prompted.category,
                "grid": list(prompted.grid),
                "prompts": list(prompted.prompts),
                "top": prompted.top,
                "intensity": asdict(prompted.intensity),
                "threshold": None if self.threshold is None else asdict(self.threshold),
                "sha256": {name: sha256(partial / name) for name in (MODEL_NAME, MEMORY_NAME)},
            }
            write_text(partial / KIT_NAME, json.dumps(content, indent=1, sort_keys=True) + "\n")
            write_text(partial / CARD_NAME, _card(model, prompted, self.threshold))


def _read(folder: Path) -> Kit:
    file = folder / KIT_NAME
    content = read_json(file)
    if isinstance(content, dict) and content.get("form") != FORM:
        raise BadInput(f"{file}: form {in_short(str(content.get('form')))} is not supported, only form {FORM}; write the kit again")
    try:
        name, settings = content["detector"], _settings(content["settings"], file)
        prompts, category, (rows, columns) = tuple(map(_text, content["prompts"])), _text(content["category"]), content["grid"]
        if not all(type(count) is int and 1 <= count <= MOST_TILES for count in (rows, columns)):
            raise ValueError(f"invalid grid: {rows!r} x {columns!r}")
        grid = Grid(rows, columns)
        threshold, top = _threshold(content["threshold"]), _number(content["top"])
        intensity = _intensity(content.get("intensity", {}))
        hashes = {name: content["sha256"][name] for name in (MODEL_NAME, MEMORY_NAME)}
        if name not in settings or missing_base(name, settings):
            raise ValueError(f"no settings of {name}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        what = in_short(f"{type(error).__name__}: {error}")
        raise BadInput(f"{file}: is invalid ({what}); write the kit again") from error
    for part, expected in hashes.items():
        if not (folder / part).is_file() or sha256(folder / part) != expected:
            raise BadInput(f"{folder / part}: missing or damaged; copy the whole kit again")
    model = empty(name, settings)
    load_model(folder, model.detector)
    stored = read_weights(folder / MEMORY_NAME)
    memory = [stored[key] for key in sorted(stored)]
    if any(not part.dim() or len(part) != grid.tiles for part in memory):
        raise BadInput(f"{file}: {grid.tiles} tiles, but {MEMORY_NAME} has others; copy the whole kit again")
    return Kit(model, Prompted(memory, grid, category, prompts, top, intensity), threshold)


def read_intensity(folder: Path) -> Intensity:
    """Read the intensity ranges of a kit. Raises BadInput if they are invalid."""
    try:
        return _intensity(read_json(folder / KIT_NAME).get("intensity", {}))
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / KIT_NAME}: has no valid intensity range ({in_short(error)}); write the kit again") from error


def _settings(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    settings = {}
    for name, values in content.items():
        own = {key: value for key, value in values.items() if key != KIND}
        kind, own = known_kind(file, values.get(KIND, name), own)  # older kits do not store the kind
        settings[name] = settings_from_json(DETECTORS[kind].settings, own)
    return settings


def _threshold(content: Mapping[str, Any] | None) -> Threshold | None:
    if content is None:
        return None
    numbers = {key: _number(content[key]) for key in ("value", "false_alarms", "low", "high", "top")}
    if not (LEAST_RATE <= numbers["false_alarms"] <= MOST_RATE and 0 <= numbers["low"] <= numbers["high"] <= 1):
        raise ValueError("a threshold with invalid rates")
    numbers["value"] = rounded_up(numbers["value"])  # older kits have more decimals
    return Threshold(**numbers, normals=tuple(map(_number, content["normals"])))


def _number(value: Any) -> float:
    """Return a finite number as float. Raises ValueError otherwise: with NaN, no picture would be anomalous."""
    if isinstance(value, bool) or not isinstance(value, (float, int)) or not math.isfinite(value):
        raise ValueError(f"not a number: {value!r}")
    return float(value)


def _intensity(content: Mapping[str, Any]) -> Intensity:
    """Read the ranges of pictures of more than 8 bits. Older kits have none."""
    integer, floating = (None if content.get(kind) is None else Range(*map(_number, content[kind])) for kind in ("integer", "floating"))
    full = content.get("full", False)
    if any(one is not None and not one.low < one.high for one in (integer, floating)) or not isinstance(full, bool):
        raise ValueError("an empty intensity range")
    return Intensity(integer, floating, full)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not text: {value!r}")
    return value


def _card(model: Named, prompted: Prompted, threshold: Threshold | None) -> str:
    looks, grid = model.looks, prompted.grid
    cut = "whole" if grid.tiles == 1 else f"in {grid.rows} x {grid.columns} tiles"
    megabytes = sum(tensor.nbytes for tensor in model.detector.state_dict().values()) / 1e6
    return f"""# A kit of changepair {version("changepair")}

- Detector: {model.name}, encoder {looks.encoder.name} of {looks.encoder.library}, {megabytes:.1f} MB
- Pictures: {cut}, {looks.resolution} pixels a side ({looks.encoder.resize})
- Prompts: {len(prompted.prompts)}; {MEMORY_NAME} has their features, not the pictures
- Category: {prompted.category}
- Threshold: {"none, so there are scores without verdicts" if threshold is None else threshold}

    changepair predict --kit <this folder> part.png

The threshold is valid for pictures like those that set it: the same parts, camera and light.
"""
