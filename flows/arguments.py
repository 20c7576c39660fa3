"""Check options of the command line, and open the address of a server."""

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
"""Environment variable that holds the token of the API and the pages."""


def check_options(arguments: argparse.Namespace, bounds: Mapping[str, Between]) -> None:
    """Check options against their bounds, by their names in `arguments`. Raises BadInput for the first one outside."""
    for name, bound in bounds.items():
        try:
            bound.check(getattr(arguments, name))
        except ValueError as error:
            raise BadInput(f"--{name.replace('_', '-')}: {error}") from error


def listening(host: str, port: int) -> socket.socket:
    """Open the port before anything is loaded. Raises BadInput if it is taken, or if the address belongs to another machine."""
    try:
        own = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two for an invalid address
        raise BadInput(
            f"{in_short(host)}:{port}: cannot listen at this address ({error}); if another server runs there, choose another --port"
        ) from error
    own.set_inheritable(True)
    return own


def token_for(listening: socket.socket) -> str | None:
    """Return the token, or None. Raises BadInput without a token if other machines can reach the address."""
    token = os.environ.get(TOKEN) or None
    address = listening.getsockname()[0]
    if token is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise BadInput(f"--host {address}: other machines can reach this address, but no token is set; set {TOKEN}, or listen on 127.0.0.1")
    return token
