"""The demo's page in a real browser: what a person does, and what the server refuses.

Screenshots go to build/screenshots/.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.tiny_models import tiny_model
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

from playwright.sync_api import Browser, Page, expect, sync_playwright

from siamdetr.serve.demo.answers import NamedModel
from siamdetr.serve.demo.app import CONCURRENCY, HOST, QUEUE_SIZE, Served, build_demo, serve_demo
from siamdetr.serve.demo.example_images import Example, find_examples

# Gradio's queue asks pandas for an option that pandas has retired.
pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")

SCREENSHOTS = ROOT / "build" / "screenshots"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = []
    for name, variant in (("first", "conditional"), ("second", "deformable")):
        model = tiny_model(variant)
        model.detector.eval()
        models.append(NamedModel(name, model))
    examples: list[Example] = find_examples(None, tmp_path_factory.mktemp("nothing"))[:3]
    served = serve_demo(build_demo(models, examples))
    yield served
    served.stop()


class Visit:
    """A page, with its errors and the addresses that it fetched."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: message.type in ("error", "warning") and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        expect(page.locator('.sd[data-ready="true"]')).to_be_visible(timeout=60_000)

    def canvas(self, stage: int = 0) -> str:
        """What is painted over a stage's picture; "" when nothing is."""
        script = """i => { const c = document.querySelectorAll('.sd-frame canvas')[i], blank = c.cloneNode();
            return c.toDataURL() === blank.toDataURL() ? '' : c.toDataURL() }"""
        painted = self.page.evaluate(script, stage)
        assert isinstance(painted, str)
        return painted

    def wait_for_attention(self, stage: int = 0) -> str:
        """Wait for the heads below a stage's picture, then `canvas`."""
        expect(self.page.locator(".sd-stage").nth(stage).locator(".sd-head").first).to_be_visible()
        return self.canvas(stage)


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(30_000)
    visit = Visit(context.new_page(), served.url)
    yield visit
    assert visit.problems == []
    outside = [url for url in visit.requests if not url.startswith((served.url, "data:", "blob:"))]
    assert outside == [], "the page fetches from this server alone"
    context.close()


def slide(page: Page, slider: str, value: float) -> None:
    script = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }"
    page.locator(slider).evaluate(script, value)


def test_a_click_on_a_box_shows_attention_and_a_slider_needs_no_server(visit: Visit) -> None:
    page = visit.page
    expect(page.locator(".sd-stage")).to_have_count(2)
    slide(page, ".sd-threshold", 0)
    expect(page.locator(".sd-stage").nth(0).locator(".sd-box:visible")).to_have_count(15)
    before = len(visit.requests)
    slide(page, ".sd-most", 4)
    expect(page.locator(".sd-stage").nth(0).locator(".sd-box:visible")).to_have_count(4)
    expect(page.locator("tbody tr:visible")).to_have_count(4)
    slide(page, ".sd-threshold", 1)
    expect(page.locator(".sd-box:visible")).to_have_count(0)
    expect(page.locator("tbody tr:visible")).to_have_text("No box reaches the least score.")
    slide(page, ".sd-threshold", 0)
    assert len(visit.requests) == before
    assert visit.canvas() == ""
    page.locator("tbody tr").first.click()
    mean = visit.wait_for_attention()
    assert mean != ""
    page.get_by_role("radiogroup", name="Layer").get_by_role("radio", name="1").click()
    layer = visit.canvas()
    page.locator(".sd-stage").nth(0).get_by_role("button", name="Head 2").click()
    assert len({mean, layer, visit.canvas()}) == 3
    page.screenshot(path=SCREENSHOTS / "attention-1280.png")


def test_an_uploaded_picture_is_seen_by_both_models(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open picture").click()
    chooser.value.set_files(tmp_path / "mine.png")
    for name in ("first", "second"):
        expect(page.get_by_alt_text(f"your picture, as seen by {name}")).to_be_visible()
    slide(page, ".sd-threshold", 0)
    page.locator(".sd-stage").nth(1).locator(".sd-box:visible").last.click(force=True)
    heat = visit.wait_for_attention(1)
    page.get_by_role("radio", name="Dots").click()
    assert visit.canvas(1) != heat  # sampling points of the deformable one
    page.get_by_role("radiogroup", name="Model of the table").get_by_role("radio", name="first").click()
    page.screenshot(path=SCREENSHOTS / "upload-1280.png")


def test_what_is_no_image_is_refused_in_words_and_the_next_picture_works(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    (tmp_path / "page.png").write_text("<html>hello</html>")
    (tmp_path / "large.png").write_bytes(b"x" * (10 * 2**20 + 1))
    for name, words in (
        ("page", "not an image, or none of the formats"),
        ("large", "The file has 10 MB, at most 10 MB"),
    ):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Open picture").click()
        chooser.value.set_files(tmp_path / f"{name}.png")
        expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible()
    page.get_by_role("button", name="Example: drawn 2").click()
    expect(page.get_by_alt_text("drawn 2, as seen by first")).to_be_visible()
    expect(page.locator(".sd-notice")).to_be_hidden()


def test_a_point_shows_where_the_encoder_looked(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("radio", name="A point").click()
    page.locator(".sd-boxes").first.click(position={"x": 60, "y": 80})
    first = visit.wait_for_attention()
    assert visit.wait_for_attention(1) != ""
    page.keyboard.press("Tab")
    page.locator(".sd-boxes").first.focus()
    with page.expect_response("**/component_server/"):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert visit.canvas() != first


def test_keys_alone_reach_boxes_and_attention(visit: Visit) -> None:
    page = visit.page
    slide(page, ".sd-threshold", 0)
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className + document.activeElement.type"))
        if "sd-box" in reached[-1]:
            break
    assert any("sd-open" in name for name in reached)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert visit.wait_for_attention() != ""
    page.keyboard.press("Escape")
    expect(page.locator(".sd-head")).to_have_count(0)
    assert visit.canvas() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_and_follows_the_colour_scheme(browser: Browser, served: Served, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    visit = Visit(context.new_page(), served.url)
    visit.page.locator("tbody tr").first.click()
    visit.wait_for_attention()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) < 150) == (scheme == "dark")
    visit.page.screenshot(path=SCREENSHOTS / f"narrow-{scheme}.png", full_page=True)
    assert visit.problems == []
    context.close()


def test_three_models_side_by_side_keep_their_names(browser: Browser, tmp_path: Path) -> None:
    model = tiny_model("conditional")
    model.detector.eval()
    names = ["siamese-100-percent", "detreg-100-percent", "scratch-100-percent"]
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as free:  # Gradio, left to search, leaves a socket open at a port that is taken
        port = free.getsockname()[1]
    demo = build_demo([NamedModel(name, model) for name in names], find_examples(None, tmp_path)[:1])
    served = serve_demo(demo, port=port)
    try:
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        visit = Visit(context.new_page(), served.url)
        titles = visit.page.locator(".sd-stage h2")
        assert titles.all_inner_texts() == names
        assert titles.evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth).length") == 0
        assert visit.problems == []
        context.close()
    finally:
        served.stop()


def test_the_view_is_saved_as_a_png(visit: Visit, tmp_path: Path) -> None:
    visit.page.locator("tbody tr").first.click()
    visit.wait_for_attention()
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Save PNG").click()
    download.value.save_as(tmp_path / "view.png")
    assert download.value.suggested_filename == "siamdetr-drawn-1.png"
    with Image.open(tmp_path / "view.png") as saved:
        assert saved.width == 2 * 1200 + 24
        assert np.asarray(saved.convert("RGB")).std() > 10


def test_a_port_that_is_taken_is_named(served: Served) -> None:
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"--port {port}: Address already in use; choose another, or leave it out"):
        serve_demo(served.blocks, port=port)


def test_the_server_is_closed_off(served: Served) -> None:
    blocks = served.blocks
    assert blocks.server_name == HOST == "127.0.0.1"
    assert blocks.share is False
    assert blocks.allowed_paths == []
    assert blocks.show_error is False
    assert blocks.run_history is False
    assert blocks.analytics_enabled is False
    assert blocks.delete_cache == (3600, 3600)
    assert (blocks._queue.max_size, blocks._queue.default_concurrency_limit) == (16, 2) == (QUEUE_SIZE, CONCURRENCY)
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        for path in ("/etc/passwd", "..%2f..%2fetc%2fpasswd", "http://169.254.169.254/", str(Path(__file__).resolve())):
            assert client.get(f"/gradio_api/file={path}").status_code in (400, 403, 404), path
        large = client.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 10_500_000)})
        assert large.status_code == 413
