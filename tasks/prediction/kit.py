"""Store a detector with its prompts and threshold in a self-contained folder: a kit.

<kit>/
  kit.json             which detector, its settings, the grid, the threshold with the scores that set it, a sha256 of each other file
  model.safetensors    every tensor of the detector, the encoder's too
  memory.safetensors   what the detector remembers of the prompts; the pictures themselves are not in it
  card.md              the same for a reader
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
MOST_TILES = 1024  # a side
FORM = 1  # of kit.json: one more whenever an older changepair could not read it


@dataclass(frozen=True)
class Prompted:
    """The prompts of a detector, as it remembers them."""

    memory: Features  # TxKx... each: T tiles of a grid, K prompts; [] without a prompt
    grid: Grid
    category: str
    prompts: tuple[str, ...]  # a hash of each prompt's pixels
    top: float = 0.0
    """The maximum of the map of a mirrored prompt, compared with the prompts; of several the median. Maps are drawn relative to it until a
    threshold is set."""
    intensity: Intensity = UNKNOWN  # the range of pictures of more than 8 bits


@dataclass(frozen=True)
class Kit:
    """A detector with its prompts and threshold, as a folder stores it. `Predictor.load(folder)` scores pictures with it."""

    model: Named
    prompted: Prompted
    threshold: Threshold | None  # None for a kit that gives scores and no verdicts

    @classmethod
    def load(cls, folder: str | Path) -> Kit:
        """Read a kit. Raise BadInput if a file is missing, damaged, or of another version."""
        return _read(place_of(folder))

    def save(self, folder: str | Path) -> None:
        """Write the kit; replace an existing kit once everything is written. Raise BadInput for a folder that holds anything else."""
        folder, model, prompted = Path(folder), self.model, self.prompted
        if folder.exists() and not (is_kit(folder) or (folder.is_dir() and not any(folder.iterdir()))):
            raise BadInput(f"{folder}: is there and no kit, so it is left as it is; name a new folder")
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
        raise BadInput(f"{file}: of form {in_short(str(content.get('form')))}, this changepair reads {FORM}; make the kit again")
    try:
        name, settings = content["detector"], _settings(content["settings"], file)
        prompts, category, (rows, columns) = tuple(map(_text, content["prompts"])), _text(content["category"]), content["grid"]
        if not all(type(count) is int and 1 <= count <= MOST_TILES for count in (rows, columns)):
            raise ValueError(f"no grid: {rows!r} x {columns!r}")
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
        raise BadInput(f"{file}: not what this version writes ({what}); make the kit again") from error
    for part, expected in hashes.items():
        if not (folder / part).is_file() or sha256(folder / part) != expected:
            raise BadInput(f"{folder / part}: missing or damaged; copy the kit again, whole")
    model = empty(name, settings)
    load_model(folder, model.detector)
    stored = read_weights(folder / MEMORY_NAME)
    memory = [stored[key] for key in sorted(stored)]
    if any(not part.dim() or len(part) != grid.tiles for part in memory):
        raise BadInput(f"{file}: {grid.tiles} tiles, and {MEMORY_NAME} is of others; copy the kit again, whole")
    return Kit(model, Prompted(memory, grid, category, prompts, top, intensity), threshold)


def read_intensity(folder: Path) -> Intensity:
    """Read the intensity ranges of a kit. Raises BadInput if kit.json has no valid ones."""
    try:
        return _intensity(read_json(folder / KIT_NAME).get("intensity", {}))
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / KIT_NAME}: no intensity range in it ({in_short(error)}); make the kit again") from error


def _settings(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    settings = {}
    for name, values in content.items():
        own = {key: value for key, value in values.items() if key != KIND}
        kind, own = known_kind(file, values.get(KIND, name), own)  # older kits have no kind
        settings[name] = settings_from_json(DETECTORS[kind].settings, own)
    return settings


def _threshold(content: Mapping[str, Any] | None) -> Threshold | None:
    if content is None:
        return None
    numbers = {key: _number(content[key]) for key in ("value", "false_alarms", "low", "high", "top")}
    if not (LEAST_RATE <= numbers["false_alarms"] <= MOST_RATE and 0 <= numbers["low"] <= numbers["high"] <= 1):
        raise ValueError("a threshold with invalid rates")
    numbers["value"] = rounded_up(numbers["value"])  # older kits have more digits than are reported
    return Threshold(**numbers, normals=tuple(map(_number, content["normals"])))


def _number(value: Any) -> float:
    """Return a finite number as float. Raises ValueError; with NaN, no picture would be anomalous."""
    if isinstance(value, bool) or not isinstance(value, (float, int)) or not math.isfinite(value):
        raise ValueError(f"no number: {value!r}")
    return float(value)


def _intensity(content: Mapping[str, Any]) -> Intensity:
    """Read the ranges of deep pictures. A kit of an older version has none."""
    integer, floating = (None if content.get(kind) is None else Range(*map(_number, content[kind])) for kind in ("integer", "floating"))
    full = content.get("full", False)
    if any(one is not None and not one.low < one.high for one in (integer, floating)) or not isinstance(full, bool):
        raise ValueError("an empty intensity range")
    return Intensity(integer, floating, full)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text: {value!r}")
    return value


def _card(model: Named, prompted: Prompted, threshold: Threshold | None) -> str:
    looks, grid = model.looks, prompted.grid
    cut = "whole" if grid.tiles == 1 else f"in {grid.rows} x {grid.columns} tiles"
    megabytes = sum(tensor.nbytes for tensor in model.detector.state_dict().values()) / 1e6
    return f"""# A kit of changepair {version("changepair")}

- Detector: {model.name}, encoder {looks.encoder.name} of {looks.encoder.library}, {megabytes:.1f} MB
- Pictures are seen {cut}, at {looks.resolution} pixels a side ({looks.encoder.resize})
- Prompts: {len(prompted.prompts)}; their features are in {MEMORY_NAME}, the pictures are not
- Category: {prompted.category}
- Threshold: {"none, so it gives scores and no verdicts" if threshold is None else threshold}

    changepair predict --kit <this folder> part.png

The threshold holds for normal pictures of the same kind as those that set it: the same parts, camera and light.
"""
