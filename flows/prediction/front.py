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
HEAD_SECONDS = 10.0  # deadline for the headers of a request, and longest idle time of a connection
STALLED_SECONDS = 30.0  # longest time in which a client may read nothing of an answer
HEADERS = ((b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'"), (b"x-content-type-options", b"nosniff"))


@dataclass(frozen=True)
class Rules:
    """Limits that a service applies to every request."""

    token: str | None = None
    """Token that clients send as Bearer token or Basic password. Without a token, the Host header must be in `hosts`."""
    hosts: tuple[str, ...] | None = LOCAL  # accepted Host headers if there is no token; None accepts any
    free: tuple[str, ...] = ()  # paths without token and without limit on concurrent requests
    body: int | None = None  # largest body in bytes
    files: tuple[str, ...] = ()  # paths whose bodies are written to files and may be larger
    bodies: int | None = None  # largest sum of the bodies of all requests in bytes
    requests: int = 128  # largest number of concurrent requests
    body_seconds: float = 30.0  # deadline for the body of a request
    answer_seconds: float | None = None  # deadline for the answer after that; None if a page keeps a stream open


class Front:
    """Refuse requests before their body is read, and end those that take too long. This is an ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules, report: Callable[[Scope, int, float], None] = lambda *_: None) -> None:
        """Wrap an app. report: called with the scope, the status and the seconds of each request."""
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
        """Return the reason to refuse a request because of its headers; None if it is accepted."""
        rules, headers, free = self.rules, dict(scope["headers"]), scope["path"] in self.rules.free
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if rules.token is None and rules.hosts is not None and _name(host) not in rules.hosts:
            return HTTPException(421, f"this service answers only at {rules.hosts[0]}; to use another name, start it with {TOKEN} set")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            return HTTPException(403, "the request comes from a page of another site; open the address of the service")
        if rules.token is not None and not free and not _is_given(headers.get(b"authorization", b""), rules.token):
            challenge = 'Basic realm="changepair", Bearer' if b"text/html" in headers.get(b"accept", b"") else "Bearer"
            return HTTPException(401, "send the token as `Authorization: Bearer <token>`", {"WWW-Authenticate": challenge})
        if not free and self._requests >= rules.requests:
            return HTTPException(429, "too many concurrent requests; try again", {"Retry-After": "1"})
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
            if self._exceeds(scope, held):  # the headers stated no length
                raise self._too_large()
            if rules.bodies is not None and self._bodies > rules.bodies:
                raise HTTPException(429, "too many concurrent requests; try again", {"Retry-After": "1"})
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
                error = HTTPException(504, f"no answer within {rules.answer_seconds:g} seconds")
                if not whole:
                    error = HTTPException(408, f"the body was not complete within {rules.body_seconds:g} seconds", {"Connection": "close"})
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
    """Return whether a header contains the token, as Bearer token or as Basic password."""
    scheme, _space, given = authorization.partition(b" ")
    if scheme.lower() == b"basic":
        with suppress(binascii.Error):
            return secrets.compare_digest(base64.b64decode(given, validate=True).partition(b":")[2], token.encode())
        return False
    return scheme.lower() == b"bearer" and secrets.compare_digest(given.strip(), token.encode())


def serve_app(app: ASGIApp, listening: socket.socket, *, ending_seconds: int, **options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C. ending_seconds: time for open requests after that."""
    config = uvicorn.Config(
        app, http=Protocol, ws="none", log_level="warning", server_header=False, timeout_graceful_shutdown=ending_seconds, **options
    )
    uvicorn.Server(config).run(sockets=[listening])


class Protocol(H11Protocol):
    """Close connections of silent or slow clients. This extends the HTTP protocol of uvicorn.

    uvicorn has a deadline only between requests, and a single byte cancels it.
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
        """Check every second whether the client is stuck in the same state."""
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
