"""`siamdetr serve` as a process: its messages, its workers, and that it finishes what it began."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.serving import encoded, form, pixels, wait_until_ready
from typer.testing import CliRunner

from siamdetr.api import SiamDETR
from siamdetr.cli.__main__ import app
from siamdetr.errors import ExportError, ServeError
from siamdetr.export.runtime import OnnxDetector
from siamdetr.serve.process import bind, open_model
from siamdetr.serve.settings import ServeSettings

BODY, HEADERS = form(encoded(pixels(480, 640), "JPEG"), threshold=0.2)


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`siamdetr serve` and its address, ready."""
    command = [sys.executable, "-m", "siamdetr.cli", "serve", "--port", "0", "--threads", "1", *map(str, arguments)]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    try:
        assert server.stdout is not None
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)) and (line := server.stdout.readline()):
            said += line
        assert found, said
        wait_until_ready(found[0])
        yield server, found[0]
    finally:
        server.terminate()
        try:
            server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            raise


def ask(url: str) -> tuple[int, int]:
    """The status, and the number of detections."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/detect", BODY, HEADERS), timeout=60) as answer:
        return answer.status, len(json.load(answer)["images"][0]["detections"])


def figure(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    return float(lines.get(name, 0))


@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_of_twenty_in_flight_at_sigterm_are_answered(tiny_bundle: Path, workers: int) -> None:
    with process(tiny_bundle, "--workers", workers) as (server, url), ThreadPoolExecutor(20) as pool:
        expected = ask(url)
        assert expected[1] > 0
        waiting = [pool.submit(ask, url) for _ in range(20)]
        while figure(url, "siamdetr_images_in_flight") + sum(one.done() for one in waiting) < 20:
            pass
        server.send_signal(signal.SIGTERM)
        assert [one.result() for one in waiting] == [expected] * 20
        assert server.wait(20) == 0
        with pytest.raises(OSError):
            ask(url)


def test_answers_are_sent_at_once() -> None:
    """Without TCP_NODELAY the second packet of an answer waits 40 ms for the client's acknowledgement."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                found.set_result(option)
                transport.close()

        listener = bind(ServeSettings(port=0))
        server = await asyncio.get_running_loop().create_server(Accepted, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            option = await found
            writer.close()
            return option

    assert asyncio.run(accepted()) == 1


def test_workers_answer_side_by_side_and_a_dead_one_is_replaced(tiny_bundle: Path) -> None:
    with process(tiny_bundle, "--workers", 2) as (server, url):
        workers = children(server.pid)
        assert len(workers) == 2
        with ThreadPoolExecutor(8) as pool:
            assert {status for status, _ in pool.map(ask, [url] * 24)} == {200}
        name = 'siamdetr_requests_total{endpoint="/v1/detect",status="200"}'
        assert figure(url, name) == 24  # of both together
        os.kill(workers[0], signal.SIGKILL)
        end = time.monotonic() + 60
        while len(set(children(server.pid)) - set(workers)) < 1 and time.monotonic() < end:
            time.sleep(0.05)
        wait_until_ready(url)
        assert ask(url)[0] == 200
        assert figure(url, name) >= 24
        workers = children(server.pid)
        server.kill()  # which cannot be caught: the workers must notice by themselves
        end = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_workers_that_cannot_start_end_the_server_with_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    boxes = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["boxes before" if name == boxes else name for name in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 7, 7]), "no such shape"))
    model.graph.node.append(onnx.helper.make_node("Reshape", ["boxes before", "no such shape"], [boxes]))
    onnx.save(model, tmp_path / "broken.onnx")
    command = [
        sys.executable,
        "-m",
        "siamdetr.cli",
        "serve",
        str(tmp_path / "broken.onnx"),
        "--port",
        "0",
        "--workers",
        "2",
    ]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=50
    )  # not after 60 s of silence
    assert answer.returncode == 1
    assert "Never ready: the model cannot run." in answer.stderr
    assert "broken.onnx: a process of the server could not start; what it said above tells why" in answer.stdout


def children(parent: int) -> list[int]:
    """The server's worker processes; multiprocessing's resource tracker is not one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
            if ours and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def test_a_server_without_pytorch_does_not_load_it(tiny_bundle: Path) -> None:
    code = (
        "import sys; from siamdetr.serve.process import open_model; from siamdetr.serve.server import create_app; "
        f"open_model({str(tiny_bundle)!r}, 'cpu', 1); print([name for name in ('torch', 'cv2', 'scipy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other habits")
def test_the_memory_of_large_pictures_goes_back_to_the_system(tiny_bundle: Path) -> None:
    code = (
        "import io, sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path; from PIL import Image; "
        "from siamdetr.images.preprocessing import PreprocessingSpec; from siamdetr.serve.image_gate import prepare; "
        "from siamdetr.serve.process import open_model; from siamdetr.serve.settings import Limits; "
        f"open_model({str(tiny_bundle)!r}, 'cpu', 1); file = io.BytesIO(); exif = Image.Exif(); exif[274] = 6; "
        "Image.new('RGB', (4000, 5000)).save(file, 'JPEG', exif=exif); "
        "work = lambda _: prepare(file.getvalue(), PreprocessingSpec.from_size(32), Limits(), name='image'); "
        "held = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20; before = held(); "
        "[*ThreadPoolExecutor(2).map(work, range(6))]; print(held() - before)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 60  # MiB; a picture takes 160 while it is decoded and turned


def test_checkpoints_and_exported_models_are_served_alike(tiny_bundle: Path, tmp_path: Path) -> None:
    from helpers.tiny_models import tiny_model

    tiny_model().save(tmp_path / "best.safetensors")
    assert isinstance(open_model(tmp_path, "cpu", 1), SiamDETR)
    assert isinstance(open_model(tiny_bundle, "cpu", 1), OnnxDetector)
    assert isinstance(open_model(tiny_bundle / "model.onnx", "cpu", 1), OnnxDetector)


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_the_backend_is_chosen_and_said(tiny_bundle: Path, tmp_path: Path) -> None:
    """In the log, and as the platform of the model's metadata; `auto` measures once."""
    for asked, wanted in (("openvino", {"openvino"}), ("auto", {"openvino", "onnxruntime"})):
        with process(tiny_bundle, "--backend", asked, XDG_CACHE_HOME=str(tmp_path)) as (server, address):
            with urllib.request.urlopen(f"{address}/v2/models/siamdetr", timeout=30) as answer:
                platform = json.loads(answer.read())["platform"]
            assert platform in wanted
            server.terminate()
            assert server.stdout is not None
            assert f"runs under {platform}, 1 threads a call" in server.stdout.read()


def test_a_backend_that_cannot_run_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(ValueError, match="backend 'tensorrt' does not run such a file; take pytorch"):
        open_model(tmp_path, "cpu", 1, "tensorrt")


def test_what_prevents_a_start_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    def failure(*arguments: object) -> BaseException | None:
        return CliRunner().invoke(app, ["serve", *map(str, arguments)]).exception

    with pytest.raises(ExportError, match=r"none\.onnx: no such file"):
        raise failure(tmp_path / "none.onnx") or AssertionError
    with pytest.raises(ServeError, match=r"--host 0\.0\.0\.0: others could reach it"):
        raise failure(tiny_bundle, "--host", "0.0.0.0") or AssertionError
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServeError, match=rf"--host 127\.0\.0\.1 --port {port}: cannot listen there \(Address already"
        ):
            raise failure(tiny_bundle, "--port", port) or AssertionError


def test_a_missing_extra_is_named(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['siamdetr', 'serve', 'x.onnx']; "
        "from siamdetr.cli.__main__ import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "'uvicorn' is not installed; pip install 'siamdetr[serve]'" in answer.stdout
