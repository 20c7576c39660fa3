"""Look up settings of pipelines.yaml by their keys, in the classes that the file is validated with."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from changepair.flows.settings.pipelines import Datasets, Elsewhere, Execution, OwnRuns, Pipeline, Pipelines, cores
from changepair.flows.settings.reader import nearest
from changepair.flows.settings.runs import Runs, Schedule, Watch
from changepair.tasks.common.bounds import Between, Bound, NonEmpty
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.detectors.registry import ALIASES, BUILT_IN, DETECTORS, KIND
from changepair.tasks.encoders.presets import PRESET, PRESETS
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.settings import FolderSettings, ObjectsSettings
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.sampling.settings import SamplingSettings
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.synthesis.settings import AugmentationSettings, ObjectSettings, SynthesisSettings

FILE_SECTION, NAME, PIPELINE, ENCODER = "pipelines.yaml", "<name>", "pipelines.<name>", "pipelines.<name>.detectors.<name>.encoder"
SECTIONS: dict[str, type[Any]] = {
    FILE_SECTION: Pipelines,
    "datasets": Datasets,
    "datasets.folders.<name>": FolderSettings,
    "datasets.objects.<name>": ObjectsSettings,
    "datasets.elsewhere.<name>": Elsewhere,
    "execution": Execution,
    "runs": Runs,
    PIPELINE: Pipeline,
    f"{PIPELINE}.schedule": Schedule,
    f"{PIPELINE}.runs": OwnRuns,
    f"{PIPELINE}.inpainter": InpainterSettings,
    f"{PIPELINE}.synthesis": SynthesisSettings,
    f"{PIPELINE}.synthesis.objects": ObjectSettings,
    f"{PIPELINE}.synthesis.inpainting": RepaintingSettings,
    f"{PIPELINE}.synthesis.augmentation": AugmentationSettings,
    f"{PIPELINE}.sampling": SamplingSettings,
    **{f"{PIPELINE}.detectors.{name}": kind.settings for name, kind in BUILT_IN.items()},
    ENCODER: EncoderSettings,
    **{f"{PIPELINE}.training.{name}": kind.training.settings for name, kind in BUILT_IN.items() if kind.training is not None},
    f"{PIPELINE}.evaluation": EvaluationSettings,
    f"{PIPELINE}.promotion": PromotionSettings,
    f"{PIPELINE}.watch": Watch,
    f"{PIPELINE}.watch.schedule": Schedule,
}
"""Every section of pipelines.yaml by its place, in the order of the reference page."""
REQUIRED = "required"
ABOUT_KIND = "Kind of the detector. A detector whose name is not a kind needs it."
ABOUT_PRESET = (
    f"Name of a preset: {', '.join(PRESETS)}. It stands for the other keys, with the layers and the resolution that papers use. A key next "
    "to it replaces the preset's. `encoder: dinov2-small` is short for `encoder: {preset: dinov2-small}`."
)
DETECTORS_KEY, TRAINING_KEY = "detectors", "training"
TYPES = {int: "integer", float: "number", str: "string", bool: "true or false", timedelta: "duration such as 6 hours"}
TYPES[EncoderSettings] = "section or name of a preset"


@dataclass(frozen=True)
class Setting:
    """A key of pipelines.yaml, as the class of its section defines it."""

    place: str
    """Dotted path in the file, with `<name>` for a name that the user chooses."""
    about: str
    """Description, with the unit."""
    values: str
    """Type of its values, and their bounds, in words."""
    default: str
    """Default as in YAML; REQUIRED without one; empty for a section."""
    section: type[Any] | None = None
    """Class of the section, for a key that holds other keys."""

    @property
    def key(self) -> str:
        """The place without the pipeline's part, as `changepair explain` takes it."""
        return self.place.removeprefix(f"{PIPELINE}.")

    @property
    def settings(self) -> list[Setting]:
        """The keys that this one holds."""
        return [] if self.section is None else settings_of(self.section, self.place)


def settings_of(section: Any, place: str) -> list[Setting]:
    """List the settings of a section. place: its dotted path; empty for the whole file."""
    hints, words = typing.get_type_hints(section, include_extras=True), words_of(section)
    found = [
        Setting(f"{place}.{name}".lstrip("."), words.get(name, ""), type_of(hints[name]), default, _section(hints[name]))
        for name, default in _fields(section)
    ]
    is_detector = place.rpartition(".")[0] == f"{PIPELINE}.{DETECTORS_KEY}"
    if section is EncoderSettings:
        return [Setting(f"{place}.{PRESET}", ABOUT_PRESET, _either(PRESETS), "null"), *found]
    return [Setting(f"{place}.{KIND}", ABOUT_KIND, "string", "the name of the detector"), *found] if is_detector else found


def find(key: str, kinds: Mapping[str, str] | None = None) -> Setting:
    """Find a setting or a section by its dotted key. The key starts at the top of the file or within a pipeline.

    kinds: the kinds of detectors with other names. Raises BadInput with the nearest keys.

    >>> find("sampling.seeds").default, find("pipelines.mine.sampling.seeds").place
    ('[0, 1, 2, 3, 4]', 'pipelines.<name>.sampling.seeds')
    """
    if key.startswith(("encoder", f"{DETECTORS_KEY}.{NAME}.", f"{PIPELINE}.{DETECTORS_KEY}.{NAME}.")):  # of any detector
        section = Setting(ENCODER, about_section(EncoderSettings), TYPES[EncoderSettings], "", EncoderSettings)
        ends = (f"{PIPELINE}.", f"{PIPELINE}.{DETECTORS_KEY}.{NAME}.")
        found = next((one for one in (section, *every()) if key in (one.place, *map(one.place.removeprefix, ends))), None)
        if found is not None:
            return found
    parts = key.split(".")
    for start in ((), ("pipelines", NAME)):
        found = _descend((*start, *parts), kinds or {})
        if found is not None:
            return found
    shown = in_short(key if key and key.isprintable() else repr(key))
    raise BadInput(f"{shown}: no such setting{_nearest(key)}; `changepair explain` lists the sections")


def every() -> Iterator[Setting]:
    """Yield every setting of every section."""
    for place, section in SECTIONS.items():
        yield from settings_of(section, "" if section is Pipelines else place)


def about_section(section: type[Any]) -> str:
    """Return the docstring of a section's class; empty without one."""
    about = inspect.cleandoc(section.__dict__.get("__doc__") or "")
    return "" if about.startswith(f"{section.__name__}(") else about  # a dataclass without a docstring gets its signature as one


def _descend(parts: tuple[str, ...], kinds: Mapping[str, str]) -> Setting | None:
    """Follow a path from the top of the file. Return None if there is no such key."""
    section: type[Any] | None = Pipelines
    place, found = "", None
    defaults: Any = {}  # of a kind of an earlier version
    rest = list(parts)
    while rest:
        part = rest.pop(0)
        found = next((one for one in settings_of(section, place) if one.place.rpartition(".")[2] == part), None) if section else None
        if found is None:
            return None
        place, section = found.place, found.section
        defaults = defaults.get(part) if isinstance(defaults, dict) else None
        if isinstance(defaults, (float, int, list)):
            found = dataclasses.replace(found, default=default_of(defaults))
        if rest and section is None and found.values.startswith("mapping of ") and _named(place) is None:
            rest.pop(0)  # a name that the user chooses
        inner = _named(place)
        if inner is not None and rest:
            name = rest.pop(0)
            place = f"{place}.{name if inner is Any else NAME}"
            section = _of_kind(found.key, name, kinds) if inner is Any else inner
            defaults = ALIASES.get(kinds.get(name, name), ("", {}))[1] if found.key == DETECTORS_KEY else {}
            found = Setting(place, about_section(section) or f"Settings of {name}.", "section", "", section)
    return found


def _named(place: str) -> Any:
    """Return the class of the sections under a mapping of names. Any for detectors, which have several classes."""
    if place in (f"{PIPELINE}.{DETECTORS_KEY}", f"{PIPELINE}.{TRAINING_KEY}"):
        return Any
    return SECTIONS.get(f"{place}.{NAME}")


def _of_kind(key: str, name: str, kinds: Mapping[str, str]) -> type[Any]:
    """Return the settings of a detector, or of its training. name: of the detector or its kind. Raises BadInput if there are none."""
    kind = kinds.get(name, name)
    kind = ALIASES[kind][0] if kind in ALIASES else kind
    if kind not in DETECTORS:
        shown = in_short(name if name and name.isprintable() else repr(name))
        raise BadInput(f"{key}.{shown}: not a detector of pipelines.yaml and not a kind of detector{nearest(name, DETECTORS)}")
    training = DETECTORS[kind].training
    if key == TRAINING_KEY and training is None:
        raise BadInput(f"{key}.{name}: a {kind} needs no training")
    return training.settings if key == TRAINING_KEY and training is not None else DETECTORS[kind].settings


def _nearest(key: str) -> str:
    """Return `; did you mean ...?` with up to three keys whose last part is spelled alike."""
    last = key.rpartition(".")[2]
    keys = {one.key: one.key.rpartition(".")[2] for one in every()}
    alike = get_close_matches(last, sorted(set(keys.values())), n=1, cutoff=0.7)
    near = get_close_matches(key, [one for one, name in keys.items() if name in alike], n=3, cutoff=0)
    return f"; did you mean {_either(near)}?" if near else ""


def _section(hint: Any) -> type[Any] | None:
    """Return the class of a section that a field holds itself, and not under names."""
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and (dataclasses.is_dataclass(part) or issubclass(part, BaseModel)):
            return part if typing.get_origin(hint) not in (dict, list, tuple) else None
        if typing.get_origin(part) is typing.Annotated:
            found = _section(typing.get_args(part)[0])
            if found is not None:
                return found
    return None


def _fields(section: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield each field with its default."""
    if issubclass(section, BaseModel):
        for name, field in section.model_fields.items():
            counted = field.default_factory is cores
            yield name, "number of cores" if counted else default_of(field.get_default(call_default_factory=True))
        return
    for one in dataclasses.fields(section):
        yield one.name, default_of(one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default)


@cache
def words_of(section: Any) -> Mapping[str, str]:
    """Read the docstring under each field of a class and its bases."""
    return {name: text for base in reversed(section.__mro__) for name, text in _words(base)}


def _words(section: type[Any]) -> Iterator[tuple[str, str]]:
    try:
        [tree] = ast.parse(inspect.cleandoc("\n" + inspect.getsource(section))).body
    except (OSError, TypeError):
        return
    last = ""
    for item in tree.body if isinstance(tree, ast.ClassDef) else []:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            last = item.target.id
        elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str) and last:
            yield last, " ".join(item.value.value.split())
            last = ""


def type_of(hint: Any) -> str:
    """Describe a type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [_bound(item) for item in arguments[1:] if not (isinstance(item, NonEmpty) and arguments[0] is str)]
        return ", ".join([type_of(arguments[0]), *filter(None, bounds)])
    if origin is typing.Literal:
        return _either(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        parts = [one for part in arguments for one in (typing.get_args(part) if typing.get_origin(part) is typing.Literal else (part,))]
        return _either("null" if part is type(None) else part if isinstance(part, str) else type_of(part) for part in parts)
    if origin in (tuple, list):
        counted = "" if Ellipsis in arguments or origin is list else f"{len(arguments)} × "
        return f"list of {counted}{type_of(arguments[0])}"
    if origin is dict:
        inner = "section" if arguments[1] is Any else type_of(arguments[1])
        return f"mapping of {type_of(arguments[0])} to {inner}"
    return TYPES.get(hint, "section")


def _either(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _bound(item: Any) -> str:
    """Describe a bound, of ours or of pydantic; empty for anything else."""
    if isinstance(item, FieldInfo):
        low, high = (next((getattr(one, end) for one in item.metadata if hasattr(one, end)), None) for end in ("ge", "le"))
        return "" if low is None and high is None else str(Between(low, high))
    return str(item) if isinstance(item, Bound) else ""


def default_of(value: Any) -> str:
    """Format a default as in YAML.

    >>> default_of((0.4, 1.0)), default_of(None), default_of(True)
    ('[0.4, 1]', 'null', 'true')
    """
    if value is dataclasses.MISSING or value is PydanticUndefined:
        return REQUIRED
    if isinstance(value, EncoderSettings):
        return f"{{library: {value.library}, name: {value.name}}}"
    if dataclasses.is_dataclass(value) or isinstance(value, BaseModel):
        return ""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(default_of, value))}]"
    if isinstance(value, dict):
        parts = {name: "…" if dataclasses.is_dataclass(part) else part for name, part in value.items()}
        return f"{{{', '.join(f'{name}: {part}' for name, part in parts.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else '""'
