"""Create detectors from settings, load them from model folders, and save them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from safetensors.torch import save_file
from torch import Tensor, nn

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import write_text, written_beside
from changepair.tasks.common.texts import read_json
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.registry import BUILT_IN, DETECTORS, base_of, kind_of, resolved
from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.encoders.weights import read_weights

MODEL_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
NOT_OF_THE_NETWORK = ("encoder", "model", "model_of", "resolution", "tiles")
"""Settings that a detector's network is not called with: those of its encoder, its weights and the size of pictures."""
Settings = TypeVar("Settings")


def create_detector(settings: DetectorSettings, encoder: FrozenEncoder | None = None, *, filled: bool = True) -> Detector:
    """Create a detector from its settings. Its trained parts start at random.

    `encoder` is the encoder that `build_encoder` builds from the settings; None builds it here, and `filled` sets whether its weights are
    read. Raises BadInput if the encoder does not fit the detector.
    """
    return _created(settings, encoder or build_encoder(settings.encoder, settings.resolution, filled=filled), settings.encoder)


def load_detector(name: str, detectors: Mapping[str, Any], models: Path | None, encoder: FrozenEncoder | None = None) -> Detector:
    """Load a detector of a pipeline. If it is trained, its weights are read from models/<name>.

    `detectors` maps names to settings, and holds this detector and its base. With `models` None no weights are read, because the caller
    overwrites all of them. `encoder` is that of `create_detector`.
    """
    settings, base = detectors[name], base_of(name, detectors)
    if base != name:
        return _created(settings, load_detector(base, detectors, models, encoder), getattr(settings, "prior", None))
    detector = create_detector(settings, encoder, filled=models is not None)
    if models is not None and DETECTORS[kind_of(settings)].training is not None:
        load_model(models / name, detector)
    return detector


def _created(settings: Any, base: Any, encoder: EncoderSettings | None) -> Detector:
    """Create a detector from an encoder or from its base detector. `encoder` holds the settings that an error names."""
    kind = kind_of(settings)
    factory = _factory(kind)
    options = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in NOT_OF_THE_NETWORK}
    if options.get("prior") is not None:
        options["prior"] = build_encoder(settings.prior, settings.prior_resolution)
    try:
        return factory(base, **options)
    except ValueError as error:
        raise BadInput(f"encoder {encoder.name if encoder else 'of ' + kind}: {error}") from error


def _factory(kind: str) -> Callable[..., Detector]:
    """Import the factory of a kind's network. Raises BadInput if it belongs to another package and cannot be imported."""
    module, _, name = DETECTORS[kind].model.partition(":")
    try:
        return cast(Callable[..., Detector], getattr(import_module(module), name))
    except Exception as error:  # another package's code may raise anything
        if kind in BUILT_IN:
            raise
        why = in_short(f"{type(error).__name__}: {error}")
        raise BadInput(f"detector {kind}: {module}:{name} cannot be imported ({why}); fix or uninstall its package") from error


def known_kind(file: Path, kind: str, section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Convert the kind and settings in a file to those of this version. Raises BadInput if the kind is not installed."""
    kind, section = resolved(kind, section)
    if kind not in DETECTORS:
        raise BadInput(f"{file}: no detector {in_short(repr(kind))} is installed; install the package that registers it")
    return kind, section


def save_detector(folder: Path, detector: nn.Module, settings: Any, **about: Any) -> None:
    """Save a detector as a model folder. `about` is added to config.json, for example how the model was trained."""
    save_model(folder, detector, {"detector": kind_of(settings), "settings": asdict(settings), **about})


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write folder/model.safetensors, with every tensor including the encoder's, and folder/config.json."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_beside(folder / MODEL_NAME) as partial:
        save_file(tensors, partial)
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_model(folder: Path, model: nn.Module) -> None:
    """Fill `model` from folder/model.safetensors. Raises BadInput if the file is missing or its tensors do not fit the model."""
    file = folder / MODEL_NAME
    if not file.is_file():
        raise BadInput(f"{file}: no such file; the train stage or `changepair import` writes it")
    tensors = read_weights(file)
    wrong = misfits(tensors, model)
    if wrong:
        raise BadInput(f"{file}: does not fit the detector's settings, {as_line(wrong)}; train it with them, or set those of its training")
    model.load_state_dict(tensors)


def misfits(tensors: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """List why tensors do not fit a model: each missing or surplus one, and those of another shape or type."""
    own = model.state_dict()
    both = [(name, tensor, own[name]) for name, tensor in tensors.items() if name in own]
    return [
        *(f"missing {name}" for name in own if name not in tensors),
        *(f"surplus {name}" for name in tensors if name not in own),
        *(f"{name} of shape {tuple(one.shape)} instead of {tuple(mine.shape)}" for name, one, mine in both if one.shape != mine.shape),
        *(f"{name} of {_dtype(one)} instead of {_dtype(mine)}" for name, one, mine in both if one.dtype != mine.dtype),
    ]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def as_line(wrong: Sequence[str], at_most: int | None = 3) -> str:
    shown = wrong[:at_most]
    return f"{len(wrong)} tensors: " + ", ".join(shown) + (", …" if len(shown) < len(wrong) else "")


def settings_as_json(settings: Any) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(json.dumps(asdict(settings))))


def trained_otherwise(name: str, settings: Any, trained: Mapping[str, Any], *, with_encoder: bool = True) -> str:
    """List the settings that a model was trained with and that differ from the given ones, in the format of pipelines.yaml.

    The result is "" if none differs. `trained` is a result of `settings_as_json`; settings that an older version did not have are not
    compared. With `with_encoder`, the source of the encoder's weights and the resizing of pictures must be the same too.
    """
    own, said = settings_as_json(settings), []
    free = {"model", "tiles", *DETECTORS[name].scoring, *(() if with_encoder else ("encoder.weights", "encoder.resize"))}
    for key, value in trained.items():
        if key in free or key not in own:
            continue
        mine = own[key]
        if key == "encoder":
            value = settings_as_json(EncoderSettings()) | value  # an older version computed as the defaults of newer settings do
            value, mine = ({part: one for part, one in side.items() if f"encoder.{part}" not in free} for side in (value, mine))
        if value != mine:
            said.append(f"{key}: {json.dumps(value)}")
    return ", ".join(said)


def settings_from_json(kind: type[Settings], content: Mapping[str, Any]) -> Settings:
    """Create settings from a result of `settings_as_json`, which an older version may have written. Missing settings get their defaults.

    Raises ValueError for an unknown key, or for a value of another type.
    """
    hints = get_type_hints(kind, include_extras=True)
    for name in content:
        if name not in {field.name for field in fields(kind)}:  # type: ignore[arg-type]
            raise ValueError(f"no setting {name!r}")
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
    if type(value) not in kinds:  # `true` is not a number
        raise ValueError(f"{name}: expected {hint.__name__}, not {value!r}")
    return float(value) if hint is float else value


def read_config(folder: Path) -> tuple[str, Any]:
    """Read the detector's kind and settings from a model folder. Raises BadInput if it is not a model folder, or of another version."""
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise BadInput(f"{folder}: not a model folder: it has no {CONFIG_NAME}; the train stage or `changepair import` writes one")
    try:
        content = read_json(file)
        name, settings = known_kind(file, content["detector"], content["settings"])
        return name, settings_from_json(DETECTORS[name].settings, settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file}: not a config of this version ({in_short(error)}); train the model again") from error
