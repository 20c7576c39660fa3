"""What the options of the command line may be."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
from collections.abc import Mapping

from changepair.tasks.common.bounds import MOST, Between
from changepair.tasks.common.errors import BadInput, in_short

COUNT = Between(1, MOST)
TOKEN = "CHANGEPAIR_API_TOKEN"
"""The environment variable with the token of the API and of the pages."""


def check_options(arguments: argparse.Namespace, bounds: Mapping[str, Between]) -> None:
    """Raises BadInput for the first option, by its name in `arguments`, that is out of its bounds."""
    for name, bound in bounds.items():
        try:
            bound.check(getattr(arguments, name))
        except ValueError as error:
            raise BadInput(f"--{name.replace('_', '-')}: {error}") from error


def listening(host: str, port: int) -> socket.socket:
    """Opens the port before anything is loaded. Raises BadInput if it is taken, or the address is not this machine's."""
    try:
        own = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two of an address that cannot be one
        raise BadInput(
            f"{in_short(host)}:{port}: cannot listen there ({error}); is a server running already? Choose another port with --port"
        ) from error
    own.set_inheritable(True)
    return own


def token_for(listening: socket.socket) -> str | None:
    """Return the token, or None. Raises BadInput if there is none although other machines can reach the address."""
    token = os.environ.get(TOKEN) or None
    address = listening.getsockname()[0]
    if token is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise BadInput(f"--host {address}: other machines can reach it, and there is no token; set {TOKEN}, or listen on 127.0.0.1")
    return token
