"""Hide secrets in output and logs: passwords in addresses, and the values of secret environment variables."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

HIDDEN = "***"
SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|AUTH_STRING|CONNECTION_URL", re.IGNORECASE)
SHORTEST = 6  # characters; hiding shorter values would damage ordinary words
END = r"\s'\"<>"  # characters that end an address
USER = re.compile(rf"(?<=://)[^{END}]+(?=@)")
QUERY = re.compile(rf"(://[^{END}?]*\?)[^{END}]+")


def hide(text: str) -> str:
    """Hide the user and the query of addresses, and the values of environment variables whose names suggest secrets.

    A password may contain any character, even / and @, so everything before the last @ of an address is hidden.
    """
    text = QUERY.sub(rf"\g<1>{HIDDEN}", USER.sub(HIDDEN, text))
    secrets = (value for name, value in os.environ.items() if SECRET_NAMES.search(name))
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


def hidden(value: Any) -> Any:
    """Hide the secrets in every text of a JSON value."""
    if isinstance(value, dict):
        return {key: hidden(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hidden(one) for one in value]
    return hide(value) if isinstance(value, str) else value


def holds_secret(address: str) -> bool:
    """Return whether an address has a password, a token or a query. An SSH user name is not a secret."""
    place = re.sub(r"^ssh://[\w.-]+@", "ssh://", address)
    return hide(place) != place


def hide_in_log(record: logging.LogRecord) -> bool:
    """Filter the log: hide the secrets in every record."""
    message = record.getMessage()
    hidden = hide(message)
    if hidden != message:
        record.msg, record.args = hidden, ()
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        record.exc_text = hide(logging.Formatter().formatException(record.exc_info))
    return True
