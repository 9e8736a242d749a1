"""A page on this machine: the socket it listens on, and who may ask.

Shared by the live page and the rating page: loopback by default, requests only from the page itself.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lpm_jax.errors import InputError

MAX_UPLOAD = 20_000_000  # bytes
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]", "testserver")
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or ``InputError``."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port: expected 0 to 65535, found {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError):
            raise InputError(f"--host: expected an address of this machine, found {host!r}") from None
        raise InputError(f"--port: expected a free port, found {host}:{port}: {error.strerror}") from None
    return listener


class Guard:
    """ASGI middleware. Other sites' pages are refused (Origin), other names for this machine too (Host, against DNS
    rebinding) unless ``any_host``; bodies end at 20 MB."""

    def __init__(self, app: ASGIApp, any_host: bool = False) -> None:
        self.app, self.any_host = app, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        known = self.any_host or urlsplit(f"//{host}").hostname in LOOPBACK
        if not known or (origin is not None and urlsplit(origin).netloc != host):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 4403})
            else:
                await JSONResponse({"error": "requests from other sites are refused"}, 403)(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b"")) if message["type"] == "http.request" else 0
            if size > MAX_UPLOAD + 10_000:  # the form's own lines
                raise HTTPException(413, f"expected at most {MAX_UPLOAD // 1_000_000} MB")
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-cache"),
                ]
            await send(message)

        await self.app(scope, limited if scope["type"] == "http" else receive, guarded)
