"""What every service checks before it reads a request, and its deadlines: real sockets to a real server."""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from processes import within

from changepair.flows.arguments import TOKEN, listening, token_for
from changepair.flows.prediction import demo, serve
from changepair.flows.prediction.front import Front, Protocol, Rules
from changepair.tasks.common.errors import BadInput


class Hasty(Protocol):
    head_seconds = 1.0
    stalled_seconds = 1.0


class App:
    """Reads the body, and answers with its length; /large with 64 MB, /slow after 30 s; with headers that let other sites read."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked.append(scope["path"])
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if scope["path"] == "/slow":
            await asyncio.sleep(30)
        body = bytes(64_000_000) if scope["path"] == "/large" else str(size).encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def served(rules: Rules) -> Iterator[tuple[App, str, int]]:
    app = App()
    with listening("127.0.0.1", 0) as own:
        config = uvicorn.Config(Front(app, rules), http=Hasty, ws="none", lifespan="off", log_level="critical", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]})
        thread.start()
        within(10, lambda: server.started)
        port = own.getsockname()[1]
        try:
            yield app, f"http://127.0.0.1:{port}", port
        finally:
            server.should_exit = True
            thread.join()


def until_closed(client: socket.socket, *, drip: bytes = b"") -> tuple[float, bytes]:
    """Return after how many seconds the server closes a connection, and what it sent. drip: sent again and again."""
    start, got = time.monotonic(), b""
    client.settimeout(0.2)
    while time.monotonic() - start < 10:
        try:
            if drip:
                client.sendall(drip)
            part = client.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            break
        if not part:
            break
        got += part
    return time.monotonic() - start, got


def test_headers_that_never_end_and_idle_connections_are_closed() -> None:
    with served(Rules()) as (app, url, port):
        begun = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        for client in silent[:50]:
            client.sendall(begun)
        dripping, idle = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
        dripping.sendall(begun)
        idle.sendall(begun + b"\r\n")
        assert until_closed(dripping, drip=b"X: y\r\n")[0] < 4
        seconds, answer = until_closed(idle)
        assert answer.startswith(b"HTTP/1.1 200") and seconds < 4
        assert all(until_closed(client)[0] < 2 for client in silent)
        assert app.asked == ["/"] and httpx.get(url).status_code == 200


def test_a_body_that_never_ends_and_an_answer_that_takes_too_long_are_given_up() -> None:
    with served(Rules(body_seconds=1.0, answer_seconds=1.0)) as (_app, url, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        seconds, answer = until_closed(client, drip=b"x")
        assert answer.startswith(b"HTTP/1.1 408") and b"the body was not complete within 1 seconds" in answer and seconds < 4
        late = httpx.get(f"{url}/slow", timeout=10)
        assert late.status_code == 504 and late.json() == {"detail": "no answer within 1 seconds"}


def test_a_client_that_takes_no_answer_is_cut_off() -> None:
    with served(Rules()) as (_app, _url, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(3)
        assert len(until_closed(client)[1]) < 64_000_000  # what the kernel held


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic czNjcmV0", "Basic OndyYW5n", "Basic \xe4", "s3cret"])
def test_without_the_token_nothing_of_the_body_is_read(authorization: str) -> None:
    with served(Rules(token="s3cret", body_seconds=5.0)) as (app, _url, port):
        client = socket.create_connection(("127.0.0.1", port))
        given = f"Authorization: {authorization}\r\n" if authorization else ""
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{given}Content-Length: 60000000\r\n\r\n".encode("latin-1"))
        client.settimeout(2)
        assert client.recv(65536).startswith(b"HTTP/1.1 401") and not app.asked


def test_the_token_is_a_bearer_token_or_the_password_that_a_browser_asks_for() -> None:
    with served(Rules(token="s3cret")) as (_app, url, _port):
        assert httpx.post(url, headers={"Authorization": "Bearer s3cret"}, content=b"abc").text == "3"
        assert httpx.get(url, auth=("anyone", "s3cret")).status_code == 200
        assert httpx.get(url, headers={"Accept": "text/html"}).headers["www-authenticate"].startswith("Basic ")
        assert httpx.get(url, headers={"Host": "scores.example.com", "Authorization": "Bearer s3cret"}).status_code == 200  # of a proxy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example.com"}, 421),  # a name that an attacker lets point to 127.0.0.1
        ({"Host": "127.0.0.1.evil.example.com"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "localhost:99"}, 200),
        ({"Host": "[::1]:99"}, 200),
        ({"Origin": "http://evil.example.com"}, 403),  # a form on another site
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:99", "Origin": "http://localhost:99"}, 200),
        ({"Host": "localhost:99", "Origin": "http://localhost:98"}, 403),
    ],
)
def test_only_pages_of_this_machine_can_ask_a_service_without_a_token(headers: dict[str, str], status: int) -> None:
    with served(Rules()) as (app, url, _port):
        answer = httpx.post(url, headers=headers, content=b"abc")
        assert answer.status_code == status and len(app.asked) == (status == 200)
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert "access-control-allow-origin" not in answer.headers


def test_more_requests_or_bodies_than_a_service_takes_are_asked_to_come_again() -> None:
    with served(Rules(requests=2, free=("/health",))) as (_app, url, port):
        for _ in range(2):
            socket.create_connection(("127.0.0.1", port)).sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.3)
        answer = httpx.get(url)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1" and httpx.get(f"{url}/health").status_code == 200
    with served(Rules(body=1000)) as (app, url, _port):
        assert httpx.post(url, content=b"x" * 1001).status_code == 413 and not app.asked
        assert httpx.post(url, content=b"x" * 1000).status_code == 200


@pytest.mark.parametrize("run", [serve.serve, demo.demo])
def test_an_address_that_others_reach_needs_a_token(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    arguments = argparse.Namespace(
        host="0.0.0.0", port=0, kits=None, memory=None, batch_size=1, most_waiting=1, most_pictures=1, most_megabytes=1, timeout=1.0
    )
    with pytest.raises(BadInput, match=f"--host 0.0.0.0: other machines can reach this address, but no token is set; set {TOKEN}"):
        run(arguments)
    with listening("0.0.0.0", 0) as own:
        monkeypatch.setenv(TOKEN, "s3cret")
        assert token_for(own) == "s3cret"
    monkeypatch.delenv(TOKEN)
    for host in ("127.0.0.1", "localhost"):
        with listening(host, 0) as own:
            assert token_for(own) is None
