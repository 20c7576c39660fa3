"""Write the reference pages that are generated, and replace placeholders in pages by values from where they are defined.

    {{ default: KEY }}    default of a setting, such as sampling.shots, or of an option of a command, such as predict --false-alarms
    {{ metric: TARGET DETECTOR METRIC SHOTS }}    class-specific metric of the quickstart, mean ± standard deviation over seeds, in percent

A placeholder that names nothing fails the build, with the page and the placeholder. mkdocs calls the functions named `on_...`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from changepair.flows.cli import parser
from changepair.flows.cli import reference as commands
from changepair.flows.settings import reference as settings
from changepair.flows.settings.keys import REQUIRED, find
from changepair.flows.settings.schema import schema_of_file
from changepair.tasks.common.errors import BadInput
from changepair.tasks.scoring.results import ALL, read_metrics

ROOT = Path(__file__).parent.parent
METRICS = ROOT / "data" / "evaluation" / "quickstart" / "metrics.csv"
LEFT = re.compile(r"\{\{\s*(default|metric)\b[^}]{0,80}", re.IGNORECASE)  # misspelt
PLACEHOLDER = re.compile(r"\{\{ *(\w+): *(.*?) *\}\}")
GENERATED: dict[str, Callable[[], str]] = {
    "reference/cli.md": commands.page,
    "reference/settings-all.md": settings.page,
    "reference/pipelines.schema.json": lambda: json.dumps(schema_of_file(), indent=1),
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, write in GENERATED.items():
        files.append(File.generated(config, path, content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Replace the placeholders of a page."""
    return filled(markdown, page.file.src_uri)


def filled(markdown: str, page: str) -> str:
    """Replace the placeholders in Markdown. page: its path, for an error. Raises PluginError."""

    def value(match: re.Match[str]) -> str:
        try:
            return VALUES[match[1]](match[2])
        except (BadInput, ValueError) as error:
            raise PluginError(f"{page}: {match[0]}: {error}") from error
        except KeyError as error:
            raise PluginError(f"{page}: {match[0]}: choose from {', '.join(VALUES)}") from error

    page_filled = PLACEHOLDER.sub(value, markdown)
    wrong = LEFT.search(page_filled)
    if wrong is not None:
        raise PluginError(f"{page}: {' '.join(wrong[0].split())}: not a placeholder; write {{{{ {wrong[1].lower()}: … }}}} on one line")
    return page_filled


@cache
def default(key: str) -> str:
    """Return the default of a setting, or of a command's option. Raises BadInput."""
    command, _, option = key.partition(" ")
    found = _option(command, option) if option else find(key).default
    if found in (REQUIRED, ""):
        raise BadInput("it has no default")
    return found


def _option(command: str, option: str) -> str:
    actions: Any = parser()._subparsers._group_actions  # type: ignore[union-attr]
    chosen = actions[0].choices.get(command)
    found: list[argparse.Action] = [one for one in chosen._actions if option in one.option_strings] if chosen else []
    if not found:
        raise BadInput("no such option")
    return "" if found[0].default in (None, argparse.SUPPRESS) else str(found[0].default)


def metric(words: str) -> str:
    """Return a metric of the quickstart, in percent. words: target, detector, metric and shots. Raises BadInput."""
    found = _metrics().get(tuple(words.split()))
    if found is None:
        raise BadInput(f"not in {METRICS.relative_to(ROOT)}; give target, detector, metric and shots")
    return found


@cache
def _metrics() -> dict[tuple[str, ...], str]:
    return {
        (row.target, row.detector, row.metric, str(row.shots)): f"{100 * row.mean:.1f} ± {100 * row.std:.1f}"
        for row in read_metrics(METRICS)
        if row.category == ALL and row.protocol == "class-specific"
    }


VALUES: dict[str, Callable[[str], str]] = {"default": default, "metric": metric}
