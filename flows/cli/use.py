"""Add the commands that use a model: predict, demo, api, export."""

from __future__ import annotations

from changepair.flows.cli.command import Commands
from changepair.flows.prediction import demo, export, predict, serve

TITLE = "use a model"
EXAMPLES: dict[str, str] = {}


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    for command in (predict, demo, serve, export):
        command.add(commands)
