"""Notices, posted to a real web server of the test; and what must not be seen."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, run
from prefect.settings import PREFECT_API_URL, temporary_settings
from receiver import receiver

from changepair.flows.running.secrets import hide, hide_in_log, holds_secret
from changepair.flows.runs import notices
from changepair.flows.runs.notices import notify
from changepair.flows.runs.states import RunState
from changepair.flows.settings.runs import Notices

LOGGER = logging.getLogger("changepair.test")
ABOUT = {"run": "8d0f", "commit": "abc", "figures": {"parts": {"metauas": {"image_auroc": 0.9}}}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, api: str) -> Iterator[None]:
    """Notices are sent by tasks of Prefect, which need a server."""
    monkeypatch.setattr(notices, "FIRST_PAUSE", 0.01)
    with temporary_settings({PREFECT_API_URL: api}):
        yield


@pytest.mark.parametrize(("state", "event"), [("Promoted", "promoted"), ("Kept", "kept"), ("Failed", "failed")])
def test_a_notice_says_what_happened(state: str, event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as server:
        monkeypatch.setenv("CHANGEPAIR_NOTICES", server.url)
        assert notify(Notices(url="env:CHANGEPAIR_NOTICES"), "mine", RunState(state), "because", ABOUT, LOGGER)
    [content] = server.notices
    assert content == {
        "text": f"changepair: mine {state}: because",
        "event": event,
        "pipeline": "mine",
        "state": state,
        "reason": "because",
        **ABOUT,
    }


BLOCK = """
import logging, sys
from prefect.blocks.system import Secret
from changepair.flows.runs.notices import notify
from changepair.flows.runs.states import RunState
from changepair.flows.settings.runs import Notices
Secret(value=sys.argv[1]).save("where-to")
assert notify(Notices(url="block:where-to"), "mine", RunState.KEPT, "because", {}, logging.getLogger())
assert not notify(Notices(url="block:nowhere"), "mine", RunState.KEPT, "because", {}, logging.getLogger("none"))
"""


def test_the_address_may_be_a_secret_block_of_the_server(api: str, tmp_path: Path) -> None:
    with receiver() as server:
        notices = run(tmp_path, "python", "-c", BLOCK, server.url, PYTHONPATH=str(ROOT), PREFECT_API_URL=api)
    assert notices.returncode == 0, notices.stderr
    assert [notice["event"] for notice in server.notices] == ["kept"]
    assert "no Secret block 'nowhere'" in notices.stderr and "T0PSECRET" not in notices.stdout + notices.stderr


def test_only_what_is_asked_for_is_told() -> None:
    with receiver() as server:
        settings = Notices(url=server.url, of=("failed",))
        assert not notify(settings, "mine", RunState.PROMOTED, "because", {}, LOGGER)
        assert not notify(settings, "mine", RunState.IN_USE, "because", {}, LOGGER)
        assert not notify(None, "mine", RunState.FAILED, "because", {}, LOGGER)
    assert server.notices == []


def test_a_busy_receiver_is_asked_again_and_a_refusing_one_is_not() -> None:
    with receiver(503, 429) as server:
        assert notify(Notices(url=server.url), "mine", RunState.KEPT, "because", {}, LOGGER) and len(server.notices) == 3
    with receiver(404) as server:
        assert not notify(Notices(url=server.url), "mine", RunState.KEPT, "because", {}, LOGGER) and len(server.notices) == 1


@pytest.mark.parametrize("trouble", ["nobody", "slow", "unset", "nonsense"])
def test_whatever_goes_wrong_no_run_fails_and_no_secret_is_told(
    trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver(pause=1.0 if trouble == "slow" else 0.0) as server:
        urls = {"nobody": "http://127.0.0.1:9/hooks/T0PSECRET", "slow": server.url, "unset": "env:NOT_SET", "nonsense": "env:NONSENSE"}
        url = urls[trouble]
        monkeypatch.setenv("NONSENSE", "http://[T0PSECRET")
        start = time.monotonic()
        assert not notify(Notices(url=url, timeout=0.2, retries=1), "mine", RunState.FAILED, "because", {}, LOGGER)
        assert time.monotonic() - start < 5
    [line] = [record.getMessage() for record in caplog.records if record.name == LOGGER.name]
    assert line.startswith("mine: ") and "T0PSECRET" not in caplog.text


def test_secrets_are_taken_out_of_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("SOME_TOKEN", "abc")  # too short to be one
    hidden = hide("push to https://me:pass@example.org/x with wJalrXUtnFEMI failed, abc")
    assert hidden == "push to https://***@example.org/x with *** failed, abc"
    record = logging.LogRecord("x", logging.INFO, "file", 1, "key %s", ("wJalrXUtnFEMI",), None)
    assert hide_in_log(record) and record.getMessage() == "key ***"


@pytest.mark.parametrize("how", ["a byte now and then", "an answer without end"])
def test_an_answer_takes_no_longer_than_is_allowed_in_all(how: str) -> None:
    """httpx's own limit is one for each wait, which a byte now and then is always within; nothing of an answer is read but its head."""
    ended = threading.Event()
    sent = 0

    def answer(connection: socket.socket) -> None:
        nonlocal sent
        with suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + (b"" if how == "a byte now and then" else b"\r\n"))
            while not ended.is_set():
                if how == "a byte now and then":
                    connection.sendall(b"x")
                    time.sleep(0.05)
                else:
                    sent += connection.send(b"x" * 65536)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: answer(server.accept()[0]), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        start = time.monotonic()
        arrived = notify(Notices(url=url, timeout=1.0, retries=0), "mine", RunState.FAILED, "because", {}, LOGGER)
        took = time.monotonic() - start
        ended.set()
    assert took < 5 and arrived == (how == "an answer without end")
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "address",
    [
        "https://TOPSECRET@example.org/x.git", "https://example.org/TOPSECRET@x", "HTTPS://TOPSECRET@EXAMPLE.ORG",
        "https://me:TOPSECRET@example.org/x.git", "https://me:TOP@TOPSECRET@example.org/x",  # pragma: allowlist secret
        "https://me:p/TOPSECRET@example.org/x", "postgresql+asyncpg://u:TOPSECRET@127.0.0.1/db",  # pragma: allowlist secret
        "https://example.org/x?private_token=TOPSECRET", "s3://example.org/x?a=1&key=TOPSECRET#y",
        "https://example.org/?TOPSECRET", "https://:TOPSECRET@example.org:8080/x?TOPSECRET",
    ],
)  # fmt: skip
def test_of_an_address_nothing_is_told_but_where_it_is(address: str) -> None:
    for text in (address, f"cannot reach {address}: gone", f"'{address}'", f"({address})", f"<{address}> and {address}"):
        assert "TOPSECRET" not in hide(text), hide(text)
    assert holds_secret(address)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/x.git", "ssh://git@example.org/x.git", "git@example.org:x.git", "/srv/x.git", "file:///srv/x", "s3://b/c"],
)
def test_an_address_that_says_no_more_is_no_secret(address: str) -> None:
    assert not holds_secret(address)
