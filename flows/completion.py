"""Print a completion script for a shell: the command `changepair completion`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import shtab

INSTALL = {
    "bash": "changepair completion bash > ~/.local/share/bash-completion/completions/changepair",
    "zsh": "changepair completion zsh > ~/.zfunc/_changepair     # a folder of your fpath",
    "tcsh": "changepair completion tcsh > ~/.changepair.tcsh     # then source this file",
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command. parser: returns the whole command line."""
    command = commands.add_parser("completion", help="Print a completion script")
    command.add_argument("shell", choices=sorted(INSTALL), help="shell that runs the script")
    command.epilog = "\n".join(["examples:", *(f"  {line}" for line in INSTALL.values())])
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.set_defaults(run=lambda arguments: print(shtab.complete(parser(), shell=arguments.shell)))
