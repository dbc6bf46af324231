"""`examples/js` runs a bundle in a browser from its manifest alone, and finds the checkpoint's boxes."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.same_boxes import assert_same_boxes
from helpers.tiny_models import tiny_model
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from siamdetr.images.preprocessing import PreprocessingSpec

RUNTIME = ROOT / "build" / "browser" / "node_modules"


@pytest.fixture
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    if not RUNTIME.is_dir():
        pytest.skip("ONNX Runtime Web is not installed: make browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], headless=True)
        yield browser.new_page()
        browser.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The example's folder behind a server, and its address."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "js", folder)
    (folder / "node_modules").symlink_to(RUNTIME)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("bundle", ["tiny_bundle", "letterbox_bundle"])
def test_the_browser_finds_the_checkpoint_s_boxes(
    page: Page, site: tuple[Path, str], bundle: str, request: pytest.FixtureRequest
) -> None:
    folder, address = site
    shutil.copytree(request.getfixturevalue(bundle), folder / "bundle")
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest | {"threshold": 0.0}))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((131, 97), Image.Resampling.BICUBIC)
    picture.save(folder / "picture.png")

    page.goto(f"{address}/index.html")
    page.get_by_text("Ready.").wait_for()
    found: list[dict[str, Any]] = page.evaluate("fetch('picture.png').then((a) => a.blob()).then(show)")
    page.screenshot(path=ROOT / "build" / "screenshots" / f"example-js-{bundle}.png")

    model = tiny_model(spec=PreprocessingSpec.model_validate(manifest["preprocessing"]))
    expected = model.predict(picture, 0.0)
    assert_same_boxes(found, expected, model.class_names)
