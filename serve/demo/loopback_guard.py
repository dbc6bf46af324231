"""Refuse requests to the demo that come neither from this machine nor from the named proxy.

A page elsewhere can give its own name the address 127.0.0.1 (DNS rebinding) and would then read the person's pictures.
It cannot change the Host and Origin headers that the browser sends.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class LoopbackGuard:
    """ASGI middleware that refuses every other host, and pages of every other origin.

    Args:
        app: what is guarded.
        root_path: a path, or the whole address under which a proxy serves the page; its host is accepted, too.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app = app
        named = urlsplit(root_path).hostname
        self._hosts = _LOOPBACK | ({named} if named else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the page."""
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else None
        strange = None if headers is None else self._strange(headers)
        if strange is None:
            await self._app(scope, receive, send)
            return
        text = f"{strange}: this demo answers pages of its own machine; behind a proxy, start it with --root-path https://HOST/PATH\n"
        await PlainTextResponse(text, 403)(scope, receive, send)

    def _strange(self, headers: Headers) -> str | None:
        """The header that names another host or origin; None: there is none."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name_of(f"//{host}") not in self._hosts:
            return f"Host {host[:80]!r}"
        if origin is not None and _name_of(origin) not in self._hosts:
            return f"Origin {origin[:80]!r}"
        return None


def _name_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
