"""Write the reference page of all settings, in Markdown, from the classes that pipelines.yaml is validated with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from changepair.flows.settings.keys import FILE_SECTION, PIPELINE, REQUIRED, SECTIONS, about_section, settings_of

HEAD = """\
# All settings

This page lists every key of `pipelines.yaml`. It is generated from the code. [Settings](settings.md) explains the keys that people
change most.

`changepair explain KEY` prints one key, and `changepair pipelines` checks the file. In the name of a file or folder, `~` is your home
folder.

Most sections belong to a pipeline: `sampling` here is `pipelines.<name>.sampling` in the file.
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([HEAD, *(line for title, section in SECTIONS.items() for line in _section(title, section))])


def _section(title: str, section: type[Any]) -> Iterator[str]:
    short = title.removeprefix(f"{PIPELINE}.")
    yield f"## {_escaped(title if short in SECTIONS else short)}\n"
    about = about_section(section)
    if about:
        yield f"{_escaped(about)}\n"
    yield "| key | type | default | description |\n|---|---|---|---|"
    for one in settings_of(section, "" if title == FILE_SECTION else title):
        default = one.default if one.default in (REQUIRED, "") else f"`{one.default}`"
        cells = (f"`{one.place.rpartition('.')[2]}`", one.values, default, one.about)
        yield "| " + " | ".join(_escaped(" ".join(cell.split())).replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _escaped(text: str) -> str:
    """Escape `<name>` outside of code, which would be read as HTML."""
    parts = text.split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))
