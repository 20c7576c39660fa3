"""Write the reference page of the command line, in Markdown, from its parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, cast

from changepair.flows.cli import parser

HEAD = """\
# Command line

This page lists every command and option. It is generated from the code. `changepair COMMAND --help` prints the same for one command.

A command that fails because of its input prints one line to standard error and exits with 2.
"""
WIDTH = 76  # characters of a usage line
EXAMPLE = re.compile(r"(  .*|examples?: changepair .*)")


def page() -> str:
    """Return the page as Markdown."""
    line = parser()
    commands = {name: command for action in line._subparsers._group_actions for name, command in action.choices.items()}  # type: ignore
    groups = [(title, names) for title, names in line.groups.items()]  # type: ignore[attr-defined]
    lines = [HEAD]
    for title, names in groups:
        lines += [f"## {title[0].upper()}{title[1:]}\n", *(one for name, _about in names for one in _command(name, commands[name]))]
    return "\n".join(lines)


def _command(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the section of a command, then those of its subcommands."""
    yield f"### changepair {name}\n"
    yield f"{_escaped(command.description or '')}\n"
    shape = cast(Any, command.formatter_class)(prog=command.prog, width=WIDTH)
    shape.add_usage(command.usage, command._actions, command._mutually_exclusive_groups, prefix="")
    yield f"```text\n{shape.format_help().strip()}\n```\n"
    rows = [
        (_names(action), shape._expand_help(action) if action.help else "")
        for action in command._actions
        if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS and action.dest != "help"
    ]
    if rows:
        yield "| argument | description |\n|---|---|"
        yield from (f"| `{names}` | {_escaped(about)} |" for names, about in rows)
        yield ""
    yield from _epilog(command.epilog or "")
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, subcommand in action.choices.items():
                yield from _command(f"{name} {inner}", subcommand)


def _names(action: argparse.Action) -> str:
    """Return how an argument is written, such as `--last RUNS`."""
    metavar = action.metavar if isinstance(action.metavar, str) else None
    if action.choices is not None and metavar is None:
        metavar = f"{{{','.join(map(str, action.choices))}}}"
    if not action.option_strings:
        return (metavar or action.dest).replace("|", "\\|")
    value = "" if action.nargs == 0 else f" {metavar or action.dest.upper()}"
    return f"{', '.join(action.option_strings)}{value}".replace("|", "\\|")


def _epilog(text: str) -> Iterator[str]:
    """Yield the examples of a command as a code block, and other lines as text."""
    examples = [one.removeprefix("example: ").removeprefix("examples: ").strip() for one in text.splitlines() if EXAMPLE.fullmatch(one)]
    if examples:
        yield "```sh\n" + "\n".join(examples) + "\n```\n"
    paragraphs = "\n".join("" if EXAMPLE.fullmatch(one) or one in ("examples:", "example:") else one for one in text.splitlines())
    for one in filter(str.strip, paragraphs.split("\n\n")):
        yield f"{_escaped(one.strip()[0].upper() + one.strip()[1:])}\n"


def _escaped(text: str) -> str:
    """Escape what Markdown would read as HTML, as a new cell or as a list."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
