"""The guard before the application: token, readiness, free places, limits on the body, disconnects.

It is plain ASGI, because all of this must happen before a framework reads the first byte of a body.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from time import perf_counter

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from siamdetr.serve.engine import RETRY_AFTER, Engine, queue_full
from siamdetr.serve.metrics import Metrics
from siamdetr.serve.refusals import Refused, not_ready, refusal

logger = logging.getLogger(__name__)

DETECT_PATH = "/v1/detect"
_PROBES = ("/v2/health/live", "/v2/health/ready")
_CLIENT_LEFT = 499  # read by the metrics only
_WORTH_DISCARDING = (
    8  # times the limit: a body up to that is read and discarded, so that its sender receives the answer
)


class Guard:
    """ASGI middleware around the application of `create_app`."""

    def __init__(self, app: ASGIApp, *, engine: Engine, metrics: Metrics) -> None:
        self._app, self._engine, self._metrics = app, engine, metrics
        self._settings = engine.settings
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        answer = _Answer(send, head=scope["method"] == "HEAD")
        if scope["method"] == "HEAD":  # answered as GET, without its body
            scope = {**scope, "method": "GET"}
        if self._settings.root_path:
            scope = _behind_prefix(scope, self._settings.root_path)
        endpoint = self._endpoint(scope)
        try:
            self._check(scope)
            await self._answered(scope, receive, answer)
        except Refused as error:
            if error.status_code in (429, 503):
                self._metrics.rejected.labels(
                    "queue full" if error.status_code == 429 else "not ready or too many"
                ).inc()
            await refusal(error)(scope, receive, answer)
        except ClientDisconnect:
            pass  # it left before its body was complete; nobody waits for an answer
        except Exception:  # a bug: the client gets a 500, the log the traceback
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not answer.started:
                await refusal(Refused(500, "the server failed on this request; its log says how"))(
                    scope, receive, answer
                )
        finally:
            self._metrics.requests.labels(endpoint, str(answer.status)).inc()
            self._metrics.request_seconds.labels(endpoint).observe(perf_counter() - started)

    def _endpoint(self, scope: Scope) -> str:
        """The address as a metric label with few values; unknown addresses are `other`."""
        path = str(scope["path"])
        known = (DETECT_PATH, "/metrics", "/v2", *_PROBES)
        if path in known:
            return path
        return "/v2/models" if path.startswith(f"/v2/models/{self._settings.model_name}") else "other"

    def _check(self, scope: Scope) -> None:
        """The refusal that follows from the headers of a request alone, or None."""
        headers = Headers(scope=scope)
        if self._settings.token is not None and scope["path"] not in _PROBES:
            _check_token(headers.get("authorization", ""), self._settings.token)
        if scope["method"] != "POST":
            return
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise Refused(415, f"content-encoding: got '{encoding[:40]}', expected none; send the body uncompressed")
        limit = self._settings.limits.max_body_bytes
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise _too_long(f"{length} bytes", limit, close=int(length) > _WORTH_DISCARDING * limit)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["path"] == DETECT_PATH and media_type != "multipart/form-data":
            raise Refused(
                415, f"content-type: got '{media_type}', expected multipart/form-data; curl -F images=@FILE sends it"
            )
        if not self._engine.ready:
            raise not_ready("the server", RETRY_AFTER)
        if self._engine.full:
            raise queue_full(self._settings.queue_size)
        if self._uploads >= self._settings.limits.max_uploads:
            raise Refused(503, f"{self._uploads} requests are under way already", retry_after=RETRY_AFTER)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Run the application until it has answered or its client has left."""
        if scope["method"] != "POST":
            await self._app(scope, receive, answer)
            return
        body = _Body(receive, self._settings.limits.max_body_bytes, self._settings.limits.body_seconds)
        self._uploads += 1
        work = asyncio.ensure_future(self._app(scope, body, answer))
        left = asyncio.ensure_future(body.client_left())
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            else:
                work.result()
        finally:
            self._uploads -= 1
            for task in (work, left):
                task.cancel()


def _behind_prefix(scope: Scope, prefix: str) -> Scope:
    """The request with the path that the application knows.

    A proxy that serves it under a prefix may or may not remove the prefix.
    """
    path = str(scope["path"])
    whole = {"path": path.removeprefix(prefix)} if path.startswith(f"{prefix}/") else {}
    return {**scope, **whole, "root_path": prefix}


class _Answer:
    """`send` that remembers the status, and leaves out the body of an answer to HEAD."""

    def __init__(self, send: Send, *, head: bool) -> None:
        self._send, self._head = send, head
        self.status = _CLIENT_LEFT
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
        elif self._head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


class _Body:
    """`receive` with a limit on the body's bytes and on the time until the last of them."""

    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self._receive, self._max_bytes, self._seconds = receive, max_bytes, seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._num_bytes = 0
        self._whole = asyncio.Event()

    async def __call__(self) -> Message:
        if self._whole.is_set():
            await asyncio.Event().wait()  # whoever asks for more than the body waits until it is cancelled
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self._seconds:g} s", close=True) from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise _too_long("more", self._max_bytes, close=True)
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._whole.set()
        return message

    async def client_left(self) -> None:
        """Return when the connection has ended, after the body."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _check_token(authorization: str, token: str) -> None:
    scheme, _, given = authorization.partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())  # takes as long wherever they differ
    if scheme.lower() != "bearer" or not same:
        error = Refused(401, "authorization: expected 'Bearer TOKEN' with the server's token")
        error.headers = {"WWW-Authenticate": "Bearer"}
        raise error


def _too_long(got: str, limit: int, *, close: bool) -> Refused:
    return Refused(413, f"body: got {got}, at most {limit} bytes are taken", close=close)
