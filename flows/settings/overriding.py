"""Edit pipelines.yaml: set keys and add a pipeline. Other lines, the layout and the comments stay unchanged."""

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

WIDEST = 10_000  # characters; ruamel breaks no line below it


def override(pipeline: str, settings: Mapping[str, Any], file: Path = FILE) -> list[str]:
    """Set values of a pipeline by their dotted keys, such as evaluation.resolution. Return one line for each change.

    Raises BadInput if the pipeline or a key does not exist, or the resulting file would be invalid. The file then stays unchanged.
    """
    wanted, changes = with_values(pipeline, settings, file)
    checked(wanted, file)
    text = read_text(file)
    for key, _before, value in changes:
        text = _written(text, ("pipelines", pipeline, *key.split(".")), value)
    if not _is(text, wanted):
        raise BadInput(f"{file}: pipelines.{pipeline}: another pipeline shares this section through a YAML anchor; edit the file by hand")
    if changes:
        write_text(file, text)
    return [f"pipelines.{pipeline}.{key}: {before} → {value}" for key, before, value in changes]


def with_values(pipeline: str, settings: Mapping[str, Any], file: Path = FILE) -> tuple[Any, list[tuple[str, Any, Any]]]:
    """Read the file with other values of a pipeline. Return its content, and the key, the earlier and the new value of each change.

    Raises BadInput if the pipeline or a section does not exist.
    """
    wanted = read_yaml(file)
    if pipeline not in wanted["pipelines"]:
        raise BadInput(f"{file}: pipelines: no pipeline {pipeline!r}{nearest(pipeline, wanted['pipelines'])}")
    changes: list[tuple[str, Any, Any]] = []
    for key, value in settings.items():
        section, last = _section(wanted["pipelines"], (pipeline, *key.split(".")), file)
        if last not in section or section[last] != value:
            changes.append((key, section.get(last, "default"), value))
            section[last] = value
    return wanted, changes


def checked(content: Any, file: Path = FILE) -> Pipelines:
    """Parse the content of the file. Raises BadInput if it would be invalid."""
    check_values(content, file)
    read = parse(Pipelines, content, file=file)
    wrong = next(mistakes(read), None)
    if wrong is not None:
        raise BadInput(f"{file}: {wrong}")
    return read


def add_pipeline(name: str, dataset: Mapping[str, Any], pipeline: str, file: Path = FILE) -> None:
    """Add a dataset and an enabled pipeline under one name. `pipeline` is the pipeline's section as lines of YAML.

    Raises BadInput if the layout of the file does not allow it. The file then stays unchanged.
    """
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
            f"{file}: the layout of the file prevents an automatic edit; add {name!r} to enabled, `{flow(name)}: {flow(dict(dataset))}` to "
            f"datasets.folders, and this section to pipelines:\n{pipeline}"
        )
    write_text(file, text)


def _is(text: str, wanted: Any) -> bool:
    """Return whether YAML has the wanted content."""
    try:
        return bool(parse_yaml(text, FILE) == wanted)
    except BadInput:
        return False


def _section(content: Any, keys: Sequence[str], file: Path) -> tuple[dict[str, Any], str]:
    """Copy the section that contains a key, or create it; return the copy and the last part of the key."""
    *sections, last = keys
    for place, name in enumerate(sections):
        held = content.get(name)
        if held is not None and not isinstance(held, dict):
            raise BadInput(f"{file}: pipelines.{'.'.join(keys[: place + 1])}: not a section, so it has no keys to set")
        content[name] = dict(held or {})  # another pipeline may share it through an anchor
        content = content[name]
    return content, last


def _written(text: str, keys: Sequence[str], value: Any) -> str:
    """Write a value into YAML text. It replaces the existing value, or becomes a new key of the innermost existing mapping."""
    node = YAML().compose(text)
    for place, key in enumerate(keys):
        inner = {own.value: held for own, held in node.value}.get(key)
        if not isinstance(inner, MappingNode) or place == len(keys) - 1:
            break
        node = inner
    for missing in reversed(keys[place + 1 :]):
        value = {missing: value}
    if inner is not None:
        block = isinstance(inner, CollectionNode) and not inner.flow_style  # a block may start below its key, a flow value may not
        return text[: inner.start_mark.index] + " " * block + flow(value) + text[_end(inner) :]
    entry, start = f"{flow(keys[place])}: {flow(value)}", node.start_mark.index
    if node.flow_style:
        after = node.value[-1][1].end_mark.index if node.value else text.index("{", start) + 1
        return f"{text[:after]}{', ' if node.value else ''}{entry}{text[after:]}"
    return _before_first(text, node, f"{entry}\n")


def _before_first(text: str, node: Any, lines: str) -> str:
    """Insert lines before the first entry of a mapping in block style."""
    first = node.value[0][0].start_mark
    entry = textwrap.indent(lines, " " * first.column).lstrip(" ")
    return f"{text[: first.index]}{entry}{' ' * first.column}{text[first.index :]}"


def _end(node: Any) -> int:
    """Return the index at which a value ends. YAML ends a block where the next one begins, after the comments between them."""
    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def flow(value: Any) -> str:
    """Format a value as YAML on one line."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style, yaml.width = True, WIDEST
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def read_settings(lines: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE lines. Each value is YAML. Raises BadInput."""
    settings = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise BadInput(f"{in_short(repr(line))}: expected KEY=VALUE, such as evaluation.resolution=128")
        settings[key] = parse_yaml(value, in_short(repr(line)))
    return settings
