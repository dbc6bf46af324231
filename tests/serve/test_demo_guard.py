"""The demo answers pages of its own machine alone, keeps uploads in a folder of its own, and works behind a proxy's prefix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers.serving import encoded, pixels
from helpers.tiny_models import tiny_model

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

from siamdetr.errors import ServeError
from siamdetr.serve.demo.answers import NamedModel
from siamdetr.serve.demo.app import Served, build_demo, check_root_path, own_folder, serve_demo
from siamdetr.serve.demo.example_images import find_examples

pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")


def started(folder: Path, root_path: str) -> Served:
    model = tiny_model("conditional")
    model.detector.eval()
    return serve_demo(build_demo([NamedModel("one", model)], find_examples(None, folder)[:1]), root_path=root_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    with own_folder() as folder:
        demo = started(tmp_path_factory.mktemp("demo"), "https://proxy.example/demo")
        yield demo, folder
        demo.stop()


@pytest.mark.parametrize(
    "host", ["rebound.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "10.0.0.1", ""]
)
def test_another_host_is_refused(served: tuple[Served, Path], host: str) -> None:
    for place in ("", "config", "gradio_api/upload"):
        answer = httpx.get(f"{served[0].url}{place}", headers={"Host": host, "Origin": "https://evil.example"})
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)
        assert "this demo answers pages of its own machine" in answer.text


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://proxy.example.evil.example", "http://[broken"]
)
def test_a_page_of_elsewhere_is_refused(served: tuple[Served, Path], origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = httpx.request(method, f"{served[0].url}config", headers=headers)
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:7860", "proxy.example", "PROXY.example:443"])
def test_this_machine_and_the_named_proxy_are_answered(served: tuple[Served, Path], host: str) -> None:
    answer = httpx.get(f"{served[0].url}config", headers={"Host": host})
    assert answer.status_code == 200
    assert answer.json()["root"] == "https://proxy.example/demo"


def test_uploads_lie_in_a_folder_of_this_demo(served: tuple[Served, Path]) -> None:
    files = {"files": ("a.png", encoded(pixels()), "image/png")}
    answer = httpx.post(f"{served[0].url}gradio_api/upload", files=files)
    assert answer.status_code == 200, answer.text
    assert Path(answer.json()[0]).is_relative_to(served[1])
    assert served[1].stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("root_path", ["demo", "/demo/", "ftp://host/demo", "https://host/a b", "//x"])
def test_what_is_no_place_behind_a_proxy_is_refused(root_path: str) -> None:
    with pytest.raises(ServeError, match=r"--root-path: got"):
        check_root_path(root_path)
    check_root_path("https://proxy.example/demo")


def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    tiny_model("conditional").save(tmp_path / "model.safetensors")
    place = tmp_path / "temporary"
    place.mkdir()
    command = [sys.executable, "-m", "siamdetr.cli", "demo", str(tmp_path / "model.safetensors"), "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(place), "GRADIO_TEMP_DIR": str(tmp_path / "of another")}
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert demo.stdout is not None
    line = demo.stdout.readline()
    assert "http://127.0.0.1:" in line, line
    assert len(list(place.glob("siamdetr-demo-*"))) == 1
    time.sleep(0.2)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(60) == 143
    assert list(place.glob("siamdetr-demo-*")) == []
    assert not (tmp_path / "of another").exists()
    assert tempfile.gettempdir()
