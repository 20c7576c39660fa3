"""Build the command line `changepair`. Each group of commands has a module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

GROUPS = ("use", "pipelines", "data", "pairs", "models", "monitoring", "operations")
"""Modules of the groups, in the order of the help."""
USE = ("predict", "demo", "api", "export")
"""Commands of the group `use`. They import this group only, which saves a third of a second."""
WIDTH = 14
"""Width of the column of command names in the help."""


class _Line(argparse.ArgumentParser):
    """Parse the command line, and list the commands in groups in its help."""

    groups: dict[str, list[tuple[str, str]]]

    def format_help(self) -> str:
        lines = [self.format_usage(), f"{self.description}\n"]
        for title, commands in self.groups.items():
            lines += [f"{title}:", *(f"  {name:{WIDTH}}{about}" for name, about in commands), ""]
        return "\n".join([*lines, "Run `changepair <command> --help` for the options of a command.", ""])


def main() -> None:
    line = parser(GROUPS[:1] if sys.argv[1:2] and sys.argv[1] in USE else GROUPS)
    for word in sys.argv[1:]:
        if word.startswith("--") and word.endswith("=--"):  # argparse reads this value as an empty list
            line.error(f"{word}: has no value; write it after the equals sign")
    if sys.argv[1:2] == ["score"]:
        print("changepair: `changepair score` was renamed; use `changepair watch`", file=sys.stderr)
        sys.argv[1] = "watch"
    arguments = line.parse_args()

    from changepair.flows.running.exit_handling import exit_on_bad_input

    exit_on_bad_input(lambda: arguments.run(arguments))


def parser(groups: Sequence[str] = GROUPS) -> argparse.ArgumentParser:
    """Build the command line with the commands of some groups. Only their modules are imported."""
    line = _Line(
        prog="changepair",
        description="Find defects by comparing pictures with a few normal ones; train and evaluate detectors.",
    )
    commands: Any = line.add_subparsers(required=True, metavar="command", parser_class=argparse.ArgumentParser)
    line.groups = {}
    examples: dict[str, str] = {}
    for name in groups:
        group = import_module(f"{__name__}.{name}")
        before = set(commands.choices)
        group.add(commands)
        if name == "operations":
            from changepair.flows import completion

            completion.add(commands, parser)
        about = {action.dest: str(action.help) for action in commands._choices_actions}
        line.groups[group.TITLE] = [(name, about[name]) for name in commands.choices if name not in before]
        examples |= group.EXAMPLES
    for name, about_it in (one for group in line.groups.values() for one in group):
        command = commands.choices[name]
        if command.description is None:
            command.description = f"{about_it}."
        if name in examples:
            command.epilog = f"example:\n  {examples[name]}"
            command.formatter_class = argparse.RawDescriptionHelpFormatter  # an example stays on its line, to be copied
    return line
