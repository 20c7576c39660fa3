"""Format our docstrings for the page of the Python API. griffe, which reads the code for mkdocstrings, loads this extension."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>>.*\n?(?:^(?!$).*\n?)*)+", re.MULTILINE)
COMMENT = re.compile(r".*\S  # (.+)")
RAISES = re.compile(r"(?<=[.)]) (?=Raises? [A-Z]\w*Error\b|Raises? BadInput\b)")


class Formatted(griffe.Extension):
    """Fences examples, lists parameters, and takes a field's comment as its docstring."""

    def on_object(self, *, obj: griffe.Object, **_others: Any) -> None:
        if obj.is_attribute and obj.docstring is None:
            obj.docstring = _comment(obj)
        elif obj.docstring is not None and (obj.is_class or obj.is_function):
            obj.docstring.value = formatted(obj.docstring.value, _parameters(obj))


def formatted(text: str, parameters: list[str]) -> str:
    """Return a docstring as Markdown. parameters: the names that it may describe as `name: text`."""
    text = EXAMPLE.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
    if parameters:
        text = re.sub(rf"(?:(?<=\. )|(?<=\n\n)|^)({'|'.join(map(re.escape, parameters))}): ", r"\n\n- `\1`: ", text)
    return RAISES.sub("\n\n", text)


def _parameters(obj: griffe.Object) -> list[str]:
    function: Any = obj.members.get("__init__", obj) if obj.is_class else obj
    return [one.name for one in getattr(function, "parameters", ())]


def _comment(obj: griffe.Object) -> griffe.Docstring | None:
    """Return the comment behind a field of a class; None without one."""
    source = "\n".join(obj.lines) if obj.parent is not None and obj.parent.is_class else ""
    found = COMMENT.fullmatch(source)
    return griffe.Docstring(found[1][0].upper() + found[1][1:], parent=obj) if found else None
