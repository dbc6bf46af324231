"""Soak test: whether a server's memory or its number of open files grows under mixed requests.

    python benchmarks/serve_soak.py [--model BUNDLE] [--seconds 60] [--clients 8]

Clients send good pictures of many sizes and kinds, damaged ones, rubbish, forms that break off, and connections that
they drop half-way. Prints memory and file descriptors every tenth of the time, then what was answered; exits with 1 if
anything got a 500 or no answer where one was due, or if memory or descriptors of the second half lie above those of the
first.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from serve import HEADERS, connection, export, server  # noqa: TID251  # benchmarks/serve.py, beside this file


def bodies(seed: int) -> list[bytes]:
    """Valid and invalid request bodies."""
    generator = np.random.default_rng(seed)
    files: list[bytes] = [b"", b"<html>", bytes(generator.bytes(3000))]
    for kind, height, width in (
        ("JPEG", 480, 640),
        ("PNG", 200, 90),
        ("WEBP", 64, 64),
        ("BMP", 33, 57),
        ("JPEG", 90, 800),
    ):
        file = io.BytesIO()
        pixels = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(file, kind)
        good = file.getvalue()
        files += [good, good, good[: len(good) // 2], good[:40] + generator.bytes(9) + good[49:]]
    bomb = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(bomb, "PNG")
    files.append(bomb.getvalue())
    name = b'--boundary\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    forms = [name + file + b"\r\n--boundary--\r\n" for file in files]
    return [*forms, forms[3][:-5], b"rubbish", name + files[3] + b"\r\n" + name + files[3] + b"\r\n--boundary--\r\n"]


def client(url: str, seed: int, end: float, statuses: Counter[int]) -> None:
    """Send bodies in random order until the end; some are broken off in the middle."""
    generator = np.random.default_rng(seed)
    all_bodies = bodies(seed)
    opened = connection(url)
    while time.monotonic() < end:
        body = all_bodies[generator.integers(len(all_bodies))]
        try:
            if generator.random() < 0.1:
                opened.putrequest("POST", "/v1/detect")
                opened.putheader("Content-Type", HEADERS["Content-Type"])
                opened.putheader("Content-Length", str(len(body) + 1))
                opened.endheaders(body)
                opened.close()
                statuses[-1] += 1
                continue
            opened.request("POST", "/v1/detect", body, HEADERS)
            answer = opened.getresponse()
            answer.read()
            statuses[answer.status] += 1
        except OSError:
            opened.close()
            statuses[0] += 1


def usage(process: int) -> tuple[float, int]:
    """Resident megabytes, open files."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 1e6, len(list(Path(f"/proc/{process}/fd").iterdir()))


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    statuses: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.model or export(Path(folder), 320)
        with server(bundle, "--threads", 1, "--max-batch", 4) as (process, url):
            end = time.monotonic() + given.seconds
            threads = [
                threading.Thread(target=client, args=(url, seed, end, statuses)) for seed in range(given.clients)
            ]
            for thread in threads:
                thread.start()
            rows: list[tuple[float, int]] = []
            for step in range(10):
                time.sleep(given.seconds / 10)
                rows.append(usage(process))
                print(
                    f"{(step + 1) * given.seconds / 10:5.0f} s   {rows[-1][0]:7.1f} MB   {rows[-1][1]:4} files",
                    flush=True,
                )
            for thread in threads:
                thread.join()
    print({"answered": {status: count for status, count in sorted(statuses.items()) if status > 0},
           "hung up": statuses[-1], "no answer": statuses[0]})  # fmt: skip
    memory, files = (np.array(column) for column in zip(*rows, strict=True))
    growth = memory[5:].mean() - memory[2:5].mean()
    print(
        f"second half against the first, without warming up: {growth:+.1f} MB, files at most {files[5:].max()} after {files[:5].max()}"
    )
    sound = statuses[500] == statuses[0] == 0 and growth < 10 and files[5:].max() <= files[:5].max() + given.clients
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
