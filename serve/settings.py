"""Settings of a server: its address, its limits and its time-outs."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field

from siamdetr.errors import ServeError
from siamdetr.images.open import UPLOAD_LIMITS, ImageLimits

TOKEN_VARIABLE = "SIAMDETR_SERVE_TOKEN"
_SHORTEST_TOKEN = 16  # characters
_ORIGIN = re.compile(r"https?://[^/?#\s@*]+")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True)
class Limits:
    """Bounds on a client's requests, each checked before the costly step that it protects from.

    Attributes:
        max_body_bytes: of one request; the declared length is checked before reading, the real one while reading.
        max_image_bytes: of one image file.
        max_images: images of one request, or rows of one tensor.
        max_pixels: width × height of an image, read from its header before decoding.
        max_side: longer side of an image, pixels.
        max_uploads: requests that one process reads or answers at the same time; at worst it holds so many bodies in
            memory.
        body_seconds: time limit for receiving the whole body.
        inference_seconds: time limit from the whole body to the answer, waiting included.
        drain_seconds: time limit after SIGTERM for requests in progress.
    """

    max_body_bytes: int = 10 * 2**20 + 2**16
    max_image_bytes: int = UPLOAD_LIMITS.file_bytes
    max_images: int = 16
    max_pixels: int = UPLOAD_LIMITS.pixels
    max_side: int = UPLOAD_LIMITS.side
    max_uploads: int = 64
    body_seconds: float = 15.0
    inference_seconds: float = 10.0
    drain_seconds: int = 15

    @property
    def of_image(self) -> ImageLimits:
        """The bounds on one image."""
        return ImageLimits(self.max_pixels, self.max_side, self.max_image_bytes, UPLOAD_LIMITS.formats)


@dataclass(frozen=True)
class ServeSettings:
    """The settings of a server.

    Attributes:
        host: address to bind; anything but loopback needs a token.
        port: 0 takes a free one.
        workers: number of processes, each with its own copy of the model.
        queue_size: images that may wait or run at the same time in one process; beyond that requests are refused (429).
        runners: model calls at the same time in one process.
        max_batch: images of one size that one model call takes together; 1: no micro-batching.
        max_delay: longest wait of an image for others of its size while a runner is free, in seconds.
        model_name: under /v2/models.
        platform: what computes the model, as its metadata under /v2/models says.
        token: expected after `Authorization: Bearer`; None: no token is needed.
        cors_origins: origins (scheme://host[:port], or "*") whose pages may send requests from a browser; empty: none.
        root_path: path under which a proxy serves this server, such as "/detector"; "": no proxy path.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    queue_size: int = 64
    runners: int = 1
    max_batch: int = 1
    max_delay: float = 0.002
    model_name: str = "siamdetr"
    platform: str = "siamdetr"
    token: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ServeError: others reach the address and there is no token; the token is easily guessed; an origin or path
                is malformed; or the queue is shorter than one request.
        """
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii()):
            raise ServeError(
                f"{TOKEN_VARIABLE}: got {len(self.token)} characters, expected at least {_SHORTEST_TOKEN}, all ASCII; make one "
                "with `openssl rand -hex 32`"
            )
        if self.token is None and not is_loopback(self.host):
            raise ServeError(
                f"--host {self.host}: others could reach it, and no token is set; put one into the environment variable "
                f"{TOKEN_VARIABLE}, or bind 127.0.0.1"
            )
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ServeError(
                    f"--cors-origin: got '{origin}', expected scheme://host or scheme://host:port without a path, such as "
                    "https://app.example, or *"
                )
        if self.root_path and not _PATH.fullmatch(self.root_path):
            raise ServeError(
                f"--root-path: got '{self.root_path}', expected a path such as /detector, without a / at its end"
            )
        if self.limits.max_images > self.queue_size:
            raise ServeError(
                f"--queue: got {self.queue_size}, expected at least {self.limits.max_images}, the images of one request"
            )


def token_from_environment() -> str | None:
    """The token, which is never on the command line, where other users of the machine could read it."""
    return os.environ.get(TOKEN_VARIABLE) or None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; names other than localhost count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
