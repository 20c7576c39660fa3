"""Machines for tests: network namespaces, each with an address of its own, on a net that nothing else is on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Machine:
    """A namespace: what is run in it sees its own address, the others', and nothing of the world."""

    name: str
    address: str

    def command(self, *command: str) -> tuple[str, ...]:
        """Gives the command that runs another there."""
        return ("ip", "netns", "exec", self.name, *command)


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Sets up that many, the first of which holds the net together. Skips the test where that is not allowed."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = [Machine(f"changepair-{os.getpid()}-{number}", f"10.231.0.{number + 1}") for number in range(count)]
    try:
        for machine in made:
            _ip("netns", "add", machine.name, refused="this machine makes no network namespaces")
            _ip("-n", machine.name, "link", "set", "lo", "up")
        head = made[0].name
        _ip("-n", head, "link", "add", "net", "type", "bridge", refused="this machine makes no bridges")
        _ip("-n", head, "address", "add", f"{made[0].address}/24", "dev", "net")
        _ip("-n", head, "link", "set", "net", "up")
        for number, machine in enumerate(made[1:], 1):
            _ip("-n", head, "link", "add", f"to-{number}", "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("-n", head, "link", "set", f"to-{number}", "master", "net", "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
        yield made
    finally:
        for machine in made:
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True)


def _ip(*arguments: str, refused: str | None = None) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode and refused is not None:
        pytest.skip(f"{refused}: {result.stderr.strip()}")
    assert not result.returncode, result.stderr
