"""The demo answers only its own machine, keeps uploads private, and works behind a prefix."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from helpers.serving import encoded, pixels
from helpers.tiny_models import tiny_model

from siamdetr.errors import ServeError
from siamdetr.serve.demo.app import check_root_path


@dataclass(frozen=True)
class Demo:
    """`siamdetr demo` in a process of its own, as the person starts it."""

    process: subprocess.Popen[str]
    url: str
    temporary: Path  # where temporary folders go
    other: Path  # where the shell says that Gradio's uploads go


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    place, other = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("model") / "of another"
    model = other.parent / "model.safetensors"
    tiny_model("conditional").save(model)
    command = [sys.executable, "-m", "siamdetr.cli", "demo", str(model), "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(place), "GRADIO_TEMP_DIR": str(other), "COLUMNS": "300"}
    process = subprocess.Popen(
        [*command, "--root-path", "https://proxy.example/demo"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", lines[-1] if lines else "")):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    yield Demo(process, found[0], place, other)
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "host", ["rebound.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "10.0.0.1", ""]
)
def test_another_host_is_refused(demo: Demo, host: str) -> None:
    for place in ("", "config", "gradio_api/upload"):
        answer = httpx.get(f"{demo.url}{place}", headers={"Host": host, "Origin": "https://evil.example"})
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)
        assert "this demo answers pages of its own machine" in answer.text


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://proxy.example.evil.example", "http://[broken"]
)
def test_a_page_of_elsewhere_is_refused(demo: Demo, origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = httpx.request(method, f"{demo.url}config", headers=headers)
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:7860", "proxy.example", "PROXY.example:443"])
def test_this_machine_and_the_named_proxy_are_answered(demo: Demo, host: str) -> None:
    answer = httpx.get(f"{demo.url}config", headers={"Host": host})
    assert answer.status_code == 200
    assert answer.json()["root"] == "https://proxy.example/demo"


def test_uploads_lie_in_a_folder_of_this_demo(demo: Demo) -> None:
    files = {"files": ("a.png", encoded(pixels()), "image/png")}
    answer = httpx.post(f"{demo.url}gradio_api/upload", files=files)
    assert answer.status_code == 200, answer.text
    (folder,) = demo.temporary.glob("siamdetr-demo-*")
    assert Path(answer.json()[0]).is_relative_to(folder)
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("root_path", ["demo", "/demo/", "ftp://host/demo", "https://host/a b", "//x"])
def test_what_is_no_place_behind_a_proxy_is_refused(root_path: str) -> None:
    with pytest.raises(ServeError, match=r"--root-path: got"):
        check_root_path(root_path)
    check_root_path("https://proxy.example/demo")


def test_sigterm_leaves_nothing_behind(demo: Demo) -> None:
    """The last of this file: it ends the demo."""
    assert len(list(demo.temporary.glob("siamdetr-demo-*"))) == 1
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(60) == 143
    assert list(demo.temporary.glob("siamdetr-demo-*")) == []
    assert not demo.other.exists()
