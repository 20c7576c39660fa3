"""Check requests before a service reads them, and listen with deadlines for clients that are slow or silent."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from changepair.flows.arguments import TOKEN

LOCAL = ("localhost", "127.0.0.1", "::1")
MOST_CONNECTIONS = 512
HEAD_SECONDS = 10.0  # until the headers of a request are complete; also how long a connection may be idle
STALLED_SECONDS = 30.0  # how long a client may take no byte of an answer
HEADERS = ((b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'"), (b"x-content-type-options", b"nosniff"))


@dataclass(frozen=True)
class Rules:
    """What a service asks of every request."""

    token: str | None = None
    """What clients must send as Bearer token or as Basic password. Without it, only names of this machine are accepted as Host."""
    hosts: tuple[str, ...] | None = LOCAL  # names that a request may have as Host if there is no token; None for any
    free: tuple[str, ...] = ()  # paths that need no token and that are answered however many requests there are
    body: int | None = None  # largest body, bytes
    files: tuple[str, ...] = ()  # paths whose bodies are written to files, and may be larger
    bodies: int | None = None  # largest sum of the bodies of all requests, bytes
    requests: int = 128  # requests at a time
    body_seconds: float = 30.0  # until the body of a request is complete
    answer_seconds: float | None = None  # from there until the answer is complete; None for no limit, where a page keeps a stream open


class Front:
    """An ASGI middleware that refuses requests before their body is read, and ends those that take too long."""

    def __init__(self, app: ASGIApp, rules: Rules, report: Callable[[Scope, int, float], None] = lambda *_: None) -> None:
        """report: gets the scope, the status and the seconds of each request."""
        self.app, self.rules, self._report = app, rules, report
        self._requests = self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [(name, value) for name, value in message["headers"] if not name.lower().startswith(b"access-control-")]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        refused = self._refused(scope)
        self._requests += 1
        try:
            if refused is not None:
                await _refuse(refused, scope, receive, answer)
            else:
                await self._within_time(scope, receive, answer, lambda: status > 0)
        finally:
            self._requests -= 1
            self._report(scope, status or 500, time.perf_counter() - start)

    def _refused(self, scope: Scope) -> HTTPException | None:
        """Return why a request is refused by its headers alone."""
        rules, headers, free = self.rules, dict(scope["headers"]), scope["path"] in self.rules.free
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if rules.token is None and rules.hosts is not None and _name(host) not in rules.hosts:
            return HTTPException(421, f"this service answers at {rules.hosts[0]} alone; set {TOKEN} to reach it by another name")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            return HTTPException(403, "a page of another site asks; open the service's own address")
        if rules.token is not None and not free and not _is_given(headers.get(b"authorization", b""), rules.token):
            challenge = 'Basic realm="changepair", Bearer' if b"text/html" in headers.get(b"accept", b"") else "Bearer"
            return HTTPException(401, "send the token as `Authorization: Bearer <token>`", {"WWW-Authenticate": challenge})
        if not free and self._requests >= rules.requests:
            return HTTPException(429, "too many requests at a time; try again", {"Retry-After": "1"})
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or self._exceeds(scope, int(announced)):
            return self._too_large()
        return None

    def _exceeds(self, scope: Scope, size: int) -> bool:
        return self.rules.body is not None and scope["path"] not in self.rules.files and size > self.rules.body

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self.rules.body:,} bytes")

    async def _within_time(self, scope: Scope, receive: Receive, send: Send, started: Callable[[], bool]) -> None:
        rules, headers, held = self.rules, dict(scope["headers"]), 0
        whole = b"transfer-encoding" not in headers and int(headers.get(b"content-length", b"0")) == 0

        async def counted() -> Message:
            nonlocal held, whole
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            self._bodies += size
            if self._exceeds(scope, held):  # its length was not announced
                raise self._too_large()
            if rules.bodies is not None and self._bodies > rules.bodies:
                raise HTTPException(429, "too many requests at a time; try again", {"Retry-After": "1"})
            if not whole and message["type"] == "http.request" and not message.get("more_body", False):
                whole = True
                limit.reschedule(self._end())
            return message

        try:
            async with asyncio.timeout_at(self._end() if whole else asyncio.get_running_loop().time() + rules.body_seconds) as limit:
                await self.app(scope, counted, send)
        except TimeoutError:
            if not limit.expired():
                raise
            if not started():
                error = HTTPException(504, f"not answered within {rules.answer_seconds:g} seconds")
                if not whole:
                    error = HTTPException(408, f"the body is not complete within {rules.body_seconds:g} seconds", {"Connection": "close"})
                await _refuse(error, scope, receive, send)
        finally:
            self._bodies -= held

    def _end(self) -> float | None:
        return None if self.rules.answer_seconds is None else asyncio.get_running_loop().time() + self.rules.answer_seconds


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": error.detail}, error.status_code, error.headers)(scope, receive, send)


def _name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _is_given(authorization: bytes, token: str) -> bool:
    """Tell whether a header has the token, as Bearer token or as Basic password."""
    scheme, _space, given = authorization.partition(b" ")
    if scheme.lower() == b"basic":
        with suppress(binascii.Error):
            return secrets.compare_digest(base64.b64decode(given, validate=True).partition(b":")[2], token.encode())
        return False
    return scheme.lower() == b"bearer" and secrets.compare_digest(given.strip(), token.encode())


def serve_app(app: ASGIApp, listening: socket.socket, *, ending_seconds: int, **options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C. ending_seconds: how long requests that have begun may take then."""
    config = uvicorn.Config(
        app, http=Protocol, ws="none", log_level="warning", server_header=False, timeout_graceful_shutdown=ending_seconds, **options
    )
    uvicorn.Server(config).run(sockets=[listening])


class Protocol(H11Protocol):
    """The HTTP protocol of uvicorn, which closes connections of clients that are silent or slow.

    uvicorn itself has a deadline only between requests, and one byte cancels it.
    """

    head_seconds = HEAD_SECONDS
    stalled_seconds = STALLED_SECONDS
    _watch: asyncio.TimerHandle | None = None
    _state: tuple[Any, ...] = ()
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Look every second whether the client has been in the same state for too long."""
        unsent, now = self.transport.get_write_buffer_size(), self.loop.time()
        answered = self.cycle is None or self.cycle.response_complete
        allowed = self.stalled_seconds if unsent else self.head_seconds if answered else float("inf")
        state = (unsent, answered, id(self.cycle))
        if state != self._state:
            self._state, self._since = state, now
        if now - self._since > allowed:
            self.transport.abort()
            return
        self._watch = self.loop.call_later(1.0, self._look)
