"""Reads a detector back from what was stored of it: settings in JSON, weights in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.texts import read_json
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.detectors.weights import CONFIG_NAME

Settings = TypeVar("Settings")
FREE = ("model", "resolution", "tiles", "top_share", "background", "rotations", "mirrored", "own", "foreground", "contrast", "smoothing")
"""Settings that no weight depends on."""
AT_ANY_SCALES = ("metric-residual", "multi-scale-residual")
"""Detectors of which none depends on the scales either that the encoder sees pictures at."""


def settings_as_json(settings: Any) -> dict[str, Any]:
    """Gives settings as JSON has them."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return content


def trained_otherwise(name: str, settings: Any, trained: Mapping[str, Any], *, with_encoder: bool = True) -> str:
    """Says which settings a model was trained with that are not those given, as pipelines.yaml would have them; "" if none.

    trained: as `settings_as_json` gives them; what an older version did not know is not compared. with_encoder: whether where the encoder's
    weights come from, and how pictures become square for it, are to be the same too.
    """
    own, said = settings_as_json(settings), []
    for key, value in trained.items():
        if key in FREE or key not in own:
            continue
        mine = own[key]
        if key == "encoder":
            free = [*(["scales"] if name in AT_ANY_SCALES else []), *([] if with_encoder else ["weights", "resize"])]
            value, mine = ({part: one for part, one in side.items() if part not in free} for side in (value, mine))
        if value != mine:
            said.append(f"{key}: {json.dumps(value)}")
    return ", ".join(said)


def settings_from_json(kind: type[Settings], content: Mapping[str, Any]) -> Settings:
    """Gives settings that `settings_as_json` wrote, or an older version of this package: what it did not know has its default.

    Raises ValueError for a key that there is not, or a value of another type.
    """
    hints = get_type_hints(kind, include_extras=True)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    surplus = [name for name in content if name not in names]
    if surplus:
        raise ValueError(f"no setting {surplus[0]!r}")
    return kind(**{name: _value(hints[name], value, name) for name, value in content.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) is Annotated:
        bounded = _value(get_args(hint)[0], value, name)
        for bound in get_args(hint)[1:]:
            if bounded is not None:
                bound.check(bounded)
        return bounded
    if is_dataclass(hint):
        return settings_from_json(hint, value)  # type: ignore[arg-type]
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        *others, last = (part for part in inner if part is not NoneType)
        if value is None and NoneType in inner:
            return None
        for other in others:
            with suppress(TypeError, ValueError):
                return _value(other, value, name)
        return _value(last, value, name)
    if get_origin(hint) is tuple:
        return tuple(_value(inner[0], one, name) for one in value)
    if inner:  # a Literal
        if value not in inner:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, inner))}, not {value!r}")
        return value
    kinds = (int, float) if hint is float else (hint,)
    if type(value) not in kinds:  # nor is true a number
        raise ValueError(f"{name}: expected {hint.__name__}, not {value!r}")
    return float(value) if hint is float else value


def read_config(folder: Path) -> tuple[str, Any]:
    """Reads which detector a model folder holds, and its settings. Raises BadInput if it is no model folder, or of another version."""
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise BadInput(f"{folder}: no model folder, as it has no {CONFIG_NAME}; `changepair import` and the train stage write such")
    try:
        content = read_json(file)
        name = content["detector"]
        return name, settings_from_json(DETECTORS[name].settings, content["settings"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file}: not what this version writes ({in_short(error)}); make the model again") from error
