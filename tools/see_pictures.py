"""Photograph the pages of docs/guides/see.md in a real browser, after a real training.

    pip install -e '.[test]' && python tools/see_pictures.py

Needs a Chromium: `chromium` on PATH, or a path in FXQUANT_CHROMIUM. Takes about two minutes.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from playwright.sync_api import Page, sync_playwright
from torch import fx

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.demo import Digits, load_digits, train

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SIZE = {"width": 1200, "height": 840}
TALL = {"width": 1200, "height": 1180}  # of the report: histograms are seen to their end
DAMAGED = "cells_2_preprocess1_op_1"  # whose weights one picture doubles


def main() -> None:
    """Train, write the pages, photograph them."""
    chromium = os.environ.get("FXQUANT_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit("There is no chromium on PATH. What to do: install it, or set FXQUANT_CHROMIUM.")
    torch.manual_seed(0)
    training, held_out = load_digits(600)
    network = NetworkCIFAR(8, 10, 5, DARTS_V2, in_channels=1)
    train(network, training, 3, 3e-3, told("float"))
    x = held_out.images[:64]
    with TemporaryDirectory() as folder, fxquant.watch_passes() as passes:
        pages = Path(folder)
        prepared = fxquant.prepare_qat(network, x[:1])
        train_logged(prepared, training)
        fxquant.convert(prepared)
        passes.save(pages / "passes.html")
        fxquant.visualize(prepared, pages / "graph.html")
        fxquant.report(prepared, x, pages / "report.html")
        reference = fxquant.as_float(prepared)
        damage(prepared)
        fxquant.report(prepared, x, pages / "damaged.html", reference)
        print(str(fxquant.compare(reference, prepared, x)).splitlines()[-1])
        photograph(chromium, pages)


def train_logged(prepared: fx.GraphModule, digits: Digits) -> None:
    """Two epochs with fake-quants, and the plot of what they did."""
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=1e-4)
    tell, steps = told("fake-quants"), 2 * len(digits.labels) // 32
    with fxquant.TrainingLog(prepared, every=1) as log:
        for step in range(steps):
            batch = torch.randperm(len(digits.labels))[:32]
            loss = F.cross_entropy(prepared.train()(digits.images[batch]), digits.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.step(step, loss=loss.item())
            tell(step + 1, steps)
    log.plot(PICTURES / "see_training.png")


def damage(prepared: fx.GraphModule) -> None:
    """Double the weights of one layer, as a broken checkpoint might."""
    node = next(node for node in prepared.graph.nodes if node.name == DAMAGED)
    with torch.no_grad():
        prepared.get_parameter(str(node.kwargs["weight"].target)).mul_(2)


def photograph(chromium: str, pages: Path) -> None:
    """Each page, with something opened and chosen, as a picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def page(name: str, scheme: str = "light") -> Page:
            size = SIZE if name in ("graph.html", "passes.html") else TALL
            opened = browser.new_page(viewport=size, color_scheme=scheme)
            opened.goto((pages / name).as_uri())
            opened.wait_for_selector("html[data-ready=yes]")
            return opened

        def shoot(opened: Page, name: str) -> None:
            opened.mouse.move(0, 0)
            opened.screenshot(path=PICTURES / name)

        report = page("report.html")
        report.click("text=worst by itself >> xpath=.. >> button")
        shoot(report, "see_report.png")
        layers = page("report.html", "dark")
        layers.click("#tab-Layers")
        layers.click("#panel-Layers th >> text=alone dB")
        layers.click("#panel-Layers tbody tr >> nth=0")
        shoot(layers, "see_layers.png")
        damaged = page("damaged.html")
        damaged.click("text=first bad operator >> xpath=.. >> button")
        shoot(damaged, "see_damage.png")
        graph = page("graph.html")
        graph.click('[data-group="cells.1"]')
        graph.click('[data-id="cells_1_preprocess1_op_1"]')
        shoot(graph, "see_graph.png")
        passes = page("passes.html")
        while "fuse_conv_bn_relu" not in passes.inner_text(".steps strong"):
            passes.click("text=Next →")
        passes.click('.pair > :first-child [data-group="cells.0"]')
        passes.click('.pair > :first-child [data-group="cells.0._ops.2"]')
        shoot(passes, "see_passes.png")
        browser.close()


def told(what: str) -> Callable[[int, int], None]:
    """Progress on one line."""

    def tell(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rtraining, {what}: {done} of {total}", end=end, flush=True)

    return tell


if __name__ == "__main__":
    main()
