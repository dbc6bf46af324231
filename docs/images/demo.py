"""Take the pictures of the demo that the README shows.

    python docs/images/demo.py runs/quickstart/finetuned runs/quickstart/scratch [--examples FOLDER] [--picture N]

Needs the extra `dev` and Debian's chromium. Writes docs/images/demo.jpg (attention of the first model's best box) and
demo-narrow.jpg (the same on a telephone, dark).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from playwright.sync_api import Browser, sync_playwright

from siamdetr.api import load
from siamdetr.serve.demo.answers import NamedModel
from siamdetr.serve.demo.app import build_demo, serve_demo
from siamdetr.serve.demo.example_images import find_examples

FOLDER = Path(__file__).parent


def take(browser: Browser, url: str, name: str, *, width: int, height: int, scheme: str, example: int) -> None:
    """One picture: an example is chosen, then the best box of the first model."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(url)
    page.wait_for_selector('.sd[data-ready="true"]')
    page.locator(".sd-examples button").nth(example).click()
    page.wait_for_selector(".sd:not([data-busy])")
    page.locator("tbody tr").first.click()
    page.wait_for_selector(".sd-head")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.wait_for_timeout(900)  # until transitions have ended
    page.screenshot(path=FOLDER / name, type="jpeg", quality=88)
    page.close()


def main() -> None:
    """The models of the command line, side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--examples", type=Path)
    parser.add_argument("--picture", type=int, default=3, help="which of the examples, from 1")
    asked = parser.parse_args()
    models = [NamedModel(path.stem, load(path)) for path in asked.models]
    served = serve_demo(build_demo(models, find_examples(asked.examples, asked.models[0])))
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        take(browser, served.url, "demo.jpg", width=1280, height=790, scheme="light", example=asked.picture - 1)
        take(browser, served.url, "demo-narrow.jpg", width=390, height=1000, scheme="dark", example=asked.picture - 1)
        browser.close()
    served.stop()


if __name__ == "__main__":
    main()
