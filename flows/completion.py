"""`changepair completion`: prints what makes a shell complete changepair's commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import shtab

INSTALL = {
    "bash": "changepair completion bash > ~/.local/share/bash-completion/completions/changepair",
    "zsh": "changepair completion zsh > ~/.zfunc/_changepair, a folder of fpath",
    "tcsh": "changepair completion tcsh > ~/.changepair.tcsh, and source it",
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds the command. parser: gives the whole command line."""
    command = commands.add_parser("completion", help="print what makes a shell complete this command line")
    command.add_argument("shell", choices=sorted(INSTALL))
    command.epilog = "examples: " + "; ".join(f"{shell}: {line}" for shell, line in INSTALL.items())
    command.set_defaults(run=lambda arguments: print(shtab.complete(parser(), shell=arguments.shell)))
