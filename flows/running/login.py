"""Store the login of this user's Prefect server in a file that only this user can read, so that commands on one machine find it."""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from changepair.tasks.common.errors import BadInput


def new_login() -> str:
    """Generate a login, `<name>:<password>`, with 256 bits of randomness."""
    return f"changepair:{secrets.token_urlsafe(32)}"


def login_file() -> Path:
    """Return the path of the login file in PREFECT_HOME, next to the server's database."""
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value()) / "changepair-login"


def keep_login() -> str:
    """Read the login of this user's server, or generate it on first use. Raise BadInput if the file cannot be used."""
    file = login_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            descriptor, partial = tempfile.mkstemp(dir=file.parent)  # mode 0600
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(f"{new_login()}\n")
            with suppress(FileExistsError):  # another server of this user was faster
                os.link(partial, file)
            os.unlink(partial)
    except OSError as error:
        what = f"cannot write the login of the Prefect server ({error})"
        raise BadInput(f"{file}: {what}; set PREFECT_HOME to another folder") from error
    return _read(file)


def login_for(url: str) -> str | None:
    """Return the login for a Prefect API: Prefect's own setting, else the stored login if the server is on this machine."""
    from prefect.settings import PREFECT_API_AUTH_STRING

    configured: str | None = PREFECT_API_AUTH_STRING.value()
    if configured:
        return configured
    file = login_file()
    return _read(file) if is_loopback(urlsplit(url).hostname or "") and file.exists() else None


def is_loopback(host: str) -> bool:
    """Return whether a host name is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(file: Path) -> str:
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise BadInput(f"{file}: other users can read the login of the Prefect server; delete the file and restart `changepair ui`")
        login = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot read the login of the Prefect server ({error}); delete the file") from error
    if ":" not in login:
        raise BadInput(f"{file}: the login must be <name>:<password>; delete the file and restart `changepair ui`")
    return login
