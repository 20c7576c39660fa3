"""Refuses requests whose body is larger than it may be, before it is held: by its announced length, or while it comes."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """An ASGI middleware: 413 for what is larger than `most` bytes."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self.app = app
        self.most = most
        self.detail = f"the request is larger than {most:,} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.most:
            await JSONResponse({"detail": self.detail}, 413, {"connection": "close"})(scope, receive, send)
            return
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > self.most:  # whose length was not announced
                raise HTTPException(413, self.detail, {"connection": "close"})
            return message

        await self.app(scope, counted, send)
