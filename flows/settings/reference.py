"""Write the page of all settings from the classes that pipelines.yaml is read into.

`python -m changepair.flows.settings.reference` prints it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from changepair.flows.settings.pipelines import Datasets, Elsewhere, Execution, OwnRuns, Pipeline, Pipelines, cores
from changepair.flows.settings.runs import Runs, Schedule, Watch
from changepair.tasks.common.bounds import Bound, NonEmpty
from changepair.tasks.detectors.registry import BUILT_IN
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.settings import FolderSettings, ObjectsSettings
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.sampling.settings import SamplingSettings
from changepair.tasks.scoring.decision import PromotionSettings
from changepair.tasks.scoring.settings import EvaluationSettings
from changepair.tasks.synthesis.settings import AugmentationSettings, ObjectSettings, SynthesisSettings

HEAD = """\
# Settings

All that `pipelines.yaml` can say, with its type, its default and what it means. `changepair pipelines` checks the file and names a misspelt
key. In what names a file or a folder, `~` is the user's own folder. This page is written from the code (`make docs`).
"""
PIPELINE = "pipelines.&lt;name&gt;"
SECTIONS: dict[str, type[Any]] = {
    "pipelines.yaml": Pipelines,
    "datasets": Datasets,
    "datasets.folders.&lt;name&gt;": FolderSettings,
    "datasets.objects.&lt;name&gt;": ObjectsSettings,
    "datasets.elsewhere.&lt;name&gt;": Elsewhere,
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
    f"{PIPELINE}.detectors.&lt;detector&gt;.encoder": EncoderSettings,
    **{f"{PIPELINE}.training.{name}": kind.training.settings for name, kind in BUILT_IN.items() if kind.training is not None},
    f"{PIPELINE}.evaluation": EvaluationSettings,
    f"{PIPELINE}.promotion": PromotionSettings,
    f"{PIPELINE}.watch": Watch,
}
REQUIRED, COUNTED = "required", object()


def page() -> str:
    """Gives the page as Markdown."""
    return "\n".join([HEAD, *(line for title, kind in SECTIONS.items() for line in _section(title, kind))])


def _section(title: str, kind: type[Any]) -> Iterator[str]:
    yield f"## {title}\n"
    about = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    if about and not about.startswith(f"{kind.__name__}("):  # which a dataclass without words of its own says of itself
        yield _plain(about) + "\n"
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    words = {name: text for base in reversed(kind.__mro__) for name, text in _words(base).items()}
    hints = typing.get_type_hints(kind, include_extras=True)
    for name, default in _fields(kind):
        cells = (f"`{name}`", _type(hints[name]), _default(default), _plain(words.get(name, "")))
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _plain(text: str) -> str:
    """Gives text that is no HTML."""
    return text.replace("<", "&lt;")


def _fields(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            counted = field.default_factory is cores
            yield name, COUNTED if counted else field.get_default(call_default_factory=True)
        return
    for one in dataclasses.fields(kind):
        yield one.name, one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default


def _words(kind: type[Any]) -> dict[str, str]:
    """Reads the text that stands under each field."""
    try:
        [tree] = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
    except (OSError, TypeError):
        return {}
    words, last = {}, ""
    for item in tree.body if isinstance(tree, ast.ClassDef) else []:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            last = item.target.id
        elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str) and last:
            words[last], last = item.value.value, ""
    return words


def _type(hint: Any) -> str:
    """Gives a type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [
            str(item) for item in arguments[1:] if isinstance(item, Bound) and not (isinstance(item, NonEmpty) and arguments[0] is str)
        ]
        return ", ".join([_type(arguments[0]), *bounds])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in arguments)
    if origin in (tuple, list):
        return (
            f"list of {_type(arguments[0])}"
            if Ellipsis in arguments or origin is list
            else f"list of {len(arguments)} {_type(arguments[0])}"
        )
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", timedelta: "time such as 6 hours"}
    return names.get(hint, "section")


def _default(value: Any) -> str:
    if value is COUNTED:
        return "as many as the machine has"
    if value is dataclasses.MISSING or value is PydanticUndefined:
        return REQUIRED
    if isinstance(value, EncoderSettings):
        return f"`{{library: {value.library}, name: {value.name}}}`"
    if dataclasses.is_dataclass(value) or isinstance(value, BaseModel):
        return "its own defaults"
    if value is None or isinstance(value, bool):
        return "null" if value is None else f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict):
        parts = {name: "…" if dataclasses.is_dataclass(part) else part for name, part in value.items()}
        return f"`{{{', '.join(f'{name}: {part}' for name, part in parts.items())}}}`"
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    print(page(), end="")
