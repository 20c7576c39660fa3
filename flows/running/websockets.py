"""Bound the memory that clients of a Prefect server can take over websockets before they have logged in.

Prefect accepts a websocket, and reads the login from its first message. uvicorn would keep 32 messages of 16 MB for each that is open.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_WAITING = 16  # websockets at a time that have not sent their first message
SECONDS = 10.0  # until the first message is complete
LIMITS: dict[str, Any] = {"ws_max_size": 2_000_000, "ws_max_queue": 2}
"""Options of uvicorn: bytes of a message, of which an event has 1.5 MB at the most, and messages that wait to be read."""


class Handshakes:
    """An ASGI middleware that refuses websockets beyond MOST_WAITING, and closes those that say nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
        elif self._waiting >= MOST_WAITING:
            await send({"type": "websocket.close", "code": 1013})
        else:
            await self._until_first_message(scope, receive, send)

    async def _until_first_message(self, scope: Scope, receive: Receive, send: Send) -> None:
        waiting = True
        self._waiting += 1

        def done() -> None:
            nonlocal waiting
            self._waiting -= waiting
            waiting = False

        async def first() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and waiting:
                done()
                limit.reschedule(None)
            return message

        try:
            async with asyncio.timeout(SECONDS) as limit:
                await self.app(scope, first, send)
        except TimeoutError:
            if not limit.expired():
                raise
            await send({"type": "websocket.close", "code": 1008})
        finally:
            done()
