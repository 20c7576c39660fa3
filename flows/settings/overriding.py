"""Edit pipelines.yaml: set keys and add a pipeline. Its other lines, its form and its comments stay."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode

from changepair.flows.settings.pipelines import Pipelines, mistakes
from changepair.flows.settings.reader import FILE, check_values, nearest, parse, parse_yaml, read_yaml
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import write_text
from changepair.tasks.common.texts import read_text

WIDEST = 10_000  # characters of a line, so that none is broken


def override(pipeline: str, settings: Mapping[str, Any], file: Path = FILE) -> list[str]:
    """Writes values of a pipeline by their dotted keys, such as evaluation.resolution; gives a line for each that changed. Raises BadInput
    if there is no such pipeline or key, or the file would not be right; then it is left as it is."""
    wanted = read_yaml(file)
    if pipeline not in wanted["pipelines"]:
        raise BadInput(f"{file}: pipelines: no pipeline {pipeline!r}{nearest(pipeline, wanted['pipelines'])}")
    changes: list[tuple[str, Any, Any]] = []
    for key, value in settings.items():
        section, last = _section(wanted["pipelines"], (pipeline, *key.split(".")), file)
        if last not in section or section[last] != value:
            changes.append((key, section.get(last, "not there"), value))
            section[last] = value
    check_values(wanted, file)
    read = parse(Pipelines, wanted, file=file)
    wrong = next(mistakes(read), None)
    if wrong is not None:
        raise BadInput(f"{file}: {wrong}")
    text = read_text(file)
    for key, _before, value in changes:
        text = _written(text, ("pipelines", pipeline, *key.split(".")), value)
    if not _is(text, wanted):
        raise BadInput(f"{file}: pipelines.{pipeline}: what is to be changed is shared with another pipeline by an anchor; do it by hand")
    if changes:
        write_text(file, text)
    return [f"pipelines.{pipeline}.{key}: {before} is now {value}" for key, before, value in changes]


def add_pipeline(name: str, dataset: Mapping[str, Any], pipeline: str, file: Path = FILE) -> None:
    """Add a dataset and an enabled pipeline of one name. pipeline: its section as lines of YAML. Raises BadInput if the file has a form
    that this cannot extend; it then stays unchanged."""
    wanted, text = read_yaml(file), read_text(file)
    wanted["enabled"] = [*wanted["enabled"], name]
    wanted["datasets"]["folders"] = {**(wanted["datasets"].get("folders") or {}), name: dict(dataset)}
    wanted["pipelines"] = {**wanted["pipelines"], **parse_yaml(pipeline, file)}
    text = _written(text, ("enabled",), wanted["enabled"])
    text = _written(text, ("datasets", "folders", name), dict(dataset))
    first = YAML().compose(text)
    text = _before_first(text, next(held for key, held in first.value if key.value == "pipelines"), pipeline)
    if not _is(text, wanted):
        raise BadInput(
            f"{file}: its form cannot be extended automatically; add {name!r} to enabled, «{name}: {_flow(dict(dataset))}» under "
            f"datasets.folders, and under pipelines:\n{pipeline}"
        )
    write_text(file, text)


def _is(text: str, wanted: Any) -> bool:
    """Tell whether YAML has the wanted content."""
    try:
        return bool(parse_yaml(text, FILE) == wanted)
    except BadInput:
        return False


def _section(content: Any, keys: Sequence[str], file: Path) -> tuple[dict[str, Any], str]:
    """Gives a copy of its own of the section that holds a key, made where it is not there, and the key."""
    *sections, last = keys
    for place, name in enumerate(sections):
        held = content.get(name)
        if held is not None and not isinstance(held, dict):
            raise BadInput(f"{file}: pipelines.{'.'.join(keys[: place + 1])}: no section, so nothing in it can be changed")
        content[name] = dict(held or {})  # another pipeline may have the same by an anchor
        content = content[name]
    return content, last


def _written(text: str, keys: Sequence[str], value: Any) -> str:
    """Puts a value into YAML's text: in the place of the one that is there, else as a new key of the innermost mapping that is."""
    node = YAML().compose(text)
    for place, key in enumerate(keys):
        inner = {own.value: held for own, held in node.value}.get(key)
        if not isinstance(inner, MappingNode) or place == len(keys) - 1:
            break
        node = inner
    for missing in reversed(keys[place + 1 :]):
        value = {missing: value}
    if inner is not None:
        block = isinstance(inner, CollectionNode) and not inner.flow_style  # it may be no deeper than its key, a value has to be
        return text[: inner.start_mark.index] + " " * block + _flow(value) + text[_end(inner) :]
    entry, start = f"{keys[place]}: {_flow(value)}", node.start_mark.index
    if node.flow_style:
        after = node.value[-1][1].end_mark.index if node.value else text.index("{", start) + 1
        return f"{text[:after]}{', ' if node.value else ''}{entry}{text[after:]}"
    return _before_first(text, node, f"{entry}\n")


def _before_first(text: str, node: Any, lines: str) -> str:
    """Put lines before the first entry of a mapping in block style."""
    first = node.value[0][0].start_mark
    entry = textwrap.indent(lines, " " * first.column).lstrip(" ")
    return f"{text[: first.index]}{entry}{' ' * first.column}{text[first.index :]}"


def _end(node: Any) -> int:
    """Gives where a value ends. A block ends for YAML where the next one begins, comments between them included."""
    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _flow(value: Any) -> str:
    """Writes a value on one line."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style, yaml.width = True, WIDEST
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def read_settings(lines: Sequence[str]) -> dict[str, Any]:
    """Reads KEY=VALUE, the value being YAML. Raises BadInput."""
    settings = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise BadInput(f"{in_short(repr(line))}: a setting is KEY=VALUE, such as evaluation.resolution=128")
        settings[key] = parse_yaml(value, in_short(repr(line)))
    return settings
