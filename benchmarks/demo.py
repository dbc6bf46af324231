"""Response times of the demo in a browser: moving the threshold, and clicking a box of a seen picture.

    python benchmarks/demo.py [--variant conditional] [--clicks 20]

Random weights, ResNet-50, six layers, shorter side 800 pixels; the page at 1280 × 860 in Debian's chromium, on this
machine. A click is timed from the event to the painted attention, a threshold from the event to the next frame but one.
"""

from __future__ import annotations

import argparse
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from siamdetr.api import SiamDETR
from siamdetr.data.synthetic.shapes import draw_image
from siamdetr.serve.demo.answers import NamedModel
from siamdetr.serve.demo.app import build_demo, serve_demo
from siamdetr.serve.demo.example_images import Example

SLIDE = """async ([value]) => {
  const slider = document.querySelector('.sd-threshold'), start = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event('input'));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""
CLICK = """async ([row]) => {
  const stage = document.querySelector('.sd-stage'), start = performance.now();
  document.querySelectorAll('tbody tr')[row].click();
  await new Promise((done) => new MutationObserver(() => stage.hasAttribute('data-pending') || done())
    .observe(stage, { attributeFilter: ['data-pending'] }));
  await new Promise((done) => requestAnimationFrame(done));
  return performance.now() - start;
}"""


def times(page: Page, script: str, values: list[float]) -> list[float]:
    """Milliseconds of each value; the first is a warm-up."""
    return [float(page.evaluate(script, [value])) for value in values][1:]


def main() -> None:
    """Print medians and worst cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="conditional")
    parser.add_argument("--clicks", type=int, default=20)
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = SiamDETR(asked.variant, num_classes=80, num_queries=100)
    picture = Image.fromarray(draw_image(np.random.default_rng(0), 640)[0])
    served = serve_demo(build_demo([NamedModel("model", model)], [Example("drawn", picture)]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(served.url)
        page.wait_for_selector('.sd[data-ready="true"]', timeout=120_000)
        page.locator(".sd-most").evaluate("e => { e.value = 100; e.dispatchEvent(new Event('input')) }")
        best = float(page.evaluate("Number(document.querySelector('.sd-threshold').value)"))
        moved = times(page, SLIDE, [best * i / asked.clicks for i in range(asked.clicks + 1)])
        page.locator(".sd-threshold").evaluate("e => { e.value = 0; e.dispatchEvent(new Event('input')) }")
        clicked = times(page, CLICK, list(range(asked.clicks + 1)))
        browser.close()
    served.stop()
    for what, found in (("threshold move", moved), ("attention click", clicked)):
        print(
            f"{asked.variant:12} {what:16} median {np.median(found):6.0f} ms   worst {max(found):6.0f} ms   ({len(found)} times)"
        )


if __name__ == "__main__":
    main()
