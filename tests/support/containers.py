"""Run commands as a container of deploy/ does: as its user, on a read-only root, with its environment, folders and network alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT
from machines import Machine
from processes import kill_group

USER = 1000
"""The uid of deploy/Dockerfile."""
HOME = "/home/changepair"


@contextmanager
def container(
    machine: Machine,
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    volumes: Mapping[Path, str],
    tmpfs: Sequence[str],
    cwd: str = "/",
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a container. volumes: folder -> where the command sees it, below /home, /tmp or at its own path. tmpfs: as in
    Compose. Needs root."""
    script = _script(command, environment, volumes, tmpfs, cwd)
    with log.open("ab") as output:
        started = machine.command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", script)
        process = subprocess.Popen(started, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        kill_group(process)


def _script(command: Sequence[str], environment: Mapping[str, str], volumes: Mapping[Path, str], tmpfs: Sequence[str], cwd: str) -> str:
    # Python and the checkout may lie below a folder that is closed to other users, or below /tmp, which is empty in a container.
    shown = [(Path(folder), folder, "ro") for folder in {sys.base_prefix, sys.prefix, str(ROOT)}]
    shown += [(folder, place, "rw") for folder, place in volumes.items()]
    shown.sort(key=lambda item: len(item[1]))  # a folder before those within it
    lines = ["mount --make-rprivate /", "mount -t tmpfs -o mode=755 none /home", f"install -d -o {USER} -g {USER} {HOME}"]
    for number, (folder, _place, _mode) in enumerate(shown):
        lines += [f"mkdir /home/held-{number}", f"mount --bind {folder} /home/held-{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {Path.home()}", "mount -o remount,bind,ro /"]
    for place, _, options in (item.partition(":") for item in tmpfs):
        lines.append(f"mount -t tmpfs -o {options or 'mode=1777'} none {place}")
    for number, (_folder, place, mode) in enumerate(shown):
        lines += [f"mkdir -p {place}", f"mount --bind /home/held-{number} {place}", f"mount -o remount,bind,{mode} {place}"]
    variables = [f"{name}={value}" for name, value in {**_image(), **environment}.items()]
    as_user = f"setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
    lines += ["mount -o remount,ro /home", "mount -t proc proc /proc", f"cd {cwd}"]
    return "\n".join([*lines, f"exec env -i {shlex.join(variables)} {as_user} {shlex.join(command)}"])


def _image() -> dict[str, str]:
    """The environment of deploy/Dockerfile, with this environment's Python."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}:/usr/local/bin",
        "HOME": HOME,
        "DVC_NO_ANALYTICS": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
