"""Pages in a real browser: they show themselves, quickly, and load nothing.

Needs playwright and a Chromium: `chromium` or `chromium-headless-shell` on PATH, or a path in
FXQUANT_CHROMIUM.
"""

import os
import shutil
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.darts import DARTS_V2, NetworkCIFAR
from tests import laws
from tests.strategies import chain

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("FXQUANT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH")

SECONDS = 3.0  # of a page's own thread until it stands


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def clock(page):
    """Tells the seconds that the page's thread has computed, whatever else the machine does."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds():
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    return seconds


@contextmanager
def opened(browser, path, **options):
    """The page, once it stands; it must neither complain nor ask for anything."""
    page = browser.new_page(**options)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.busy = clock(page)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    assert said == []
    assert asked == [path.as_uri()]
    page.close()


def boxes(page):
    """The names of the operators and of the groups that are drawn."""
    return page.eval_on_selector_all(
        "[data-id], [data-group]", "all => all.map(b => b.dataset.id ?? b.dataset.group)"
    )


def prepared_darts(channels, layers, size):
    torch.manual_seed(0)
    model = NetworkCIFAR(channels, 10, layers, DARTS_V2)
    prepared = fxquant.prepare_qat(model, torch.randn(1, 3, size, size))
    laws.settle(prepared, torch.randn(2, 3, size, size))
    return prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All three pages of a DARTS network of 3 cells."""
    out = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    with fxquant.watch_passes() as passes:
        prepared = fxquant.prepare_qat(
            NetworkCIFAR(2, 4, 3, DARTS_V2), x, QuantConfig(batch_norm="fold")
        )
        laws.settle(prepared, x)
        fxquant.convert(prepared)
    passes.save(out / "passes.html")
    fxquant.visualize(prepared, out / "graph.html")
    fxquant.report(prepared, x, out / "report.html")
    return out


def test_groups_open_and_close(browser, folder):
    with opened(browser, folder / "graph.html") as page:
        before = boxes(page)
        assert {"cells.0", "cells.1", "cells.2", "stem_0", "x"} <= set(before)
        page.click('[data-group="cells.1"]')
        during = boxes(page)
        assert {"cells.1", "cells_1_preprocess1_op_1"} <= set(during)
        assert page.get_attribute('[data-group="cells.1"]', "aria-expanded") == "true"
        page.click('[data-group="cells.1"]')
        assert boxes(page) == before
        page.click("text=Open all")
        assert len(boxes(page)) > 100
        page.click("text=Close all")
        assert boxes(page) == before


def test_an_operator_shows_its_facts(browser, folder):
    with opened(browser, folder / "graph.html") as page:
        page.click('[data-id="stem_0"]')
        text = page.inner_text("aside")
        assert "conv2d" in text
        assert "uint8" in text
        assert "stem.0" in text


def test_an_operator_is_found(browser, folder):
    with opened(browser, folder / "graph.html") as page:
        chosen = "document.querySelector('.chosen').dataset.id"
        page.fill("[aria-label='Find an operator']", "cells.1._ops")
        found = []
        for _ in range(3):
            page.keyboard.press("Enter")
            found.append(page.evaluate(chosen))
            assert "cells.1._ops" in page.inner_text("aside")
        assert len(set(found)) == 3
        assert page.inner_text(".finder [role=status]").startswith("3 of ")
        page.fill("[aria-label='Find an operator']", "nowhere")
        page.keyboard.press("Enter")
        assert page.inner_text(".finder [role=status]") == "none"


def test_tab_stops_once_wherever_the_arrows_went(browser, folder):
    with opened(browser, folder / "graph.html") as page:
        page.focus('[data-id="x"]')
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
            page.keyboard.press(key)
            assert page.locator(".graph svg [tabindex='0']").count() == 1


class Named(nn.Module):
    """Blocks of these names, and an input of the first one's."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
        self.constructor = nn.Conv2d(1, 1, 1)

    def forward(self, stem):
        for name in self.names:
            stem = self.get_submodule(name)(stem)
        return self.constructor(stem)


def test_names_that_are_others_too(browser, tmp_path):
    """An input called as a module is, and names that a script could take for its own."""
    names = ("stem", "from x", "to y", "<a>", "a|b", "toString", "blöck")
    fxquant.visualize(Named(names), tmp_path / "graph.html", torch.zeros(1, 1, 4, 4))
    with opened(browser, tmp_path / "graph.html") as page:
        assert {"stem", "stem_0", "constructor", *names} <= set(boxes(page))
        assert boxes(page).count("stem") == 2
        page.click('[data-group="stem"]')
        assert page.get_attribute('[data-group="stem"]', "aria-expanded") == "false"
        assert "stem_0" not in boxes(page)


def test_edges_say_what_they_carry(browser, folder):
    with opened(browser, folder / "graph.html") as page:
        edge = page.locator(".edge.uint[data-scale]").first
        assert edge.get_attribute("data-dtype") == "uint8"
        assert "→" in edge.locator("title").text_content()


def test_the_keyboard_is_enough(browser, folder):
    with opened(browser, folder / "graph.html") as page:
        page.focus('[data-id="x"]')
        for _ in range(3):
            page.keyboard.press("ArrowDown")
        focused = "document.activeElement.dataset.group ?? document.activeElement.dataset.id"
        assert page.evaluate(focused).startswith("cells.")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"


def test_the_report_searches_sorts_and_chooses(browser, folder):
    with opened(browser, folder / "report.html") as page:
        page.click("[role=tab] >> text=Layers")
        rows = page.locator("#panel-Layers tbody tr")
        every = rows.count()
        page.fill("#panel-Layers input", "cells_1__ops_1")
        assert 0 < rows.count() < every
        names = page.eval_on_selector_all("tr[data-row]", "all => all.map(r => r.dataset.row)")
        assert all("cells_1__ops_1" in name for name in names)
        page.fill("#panel-Layers input", "")
        for ascending in (True, False):
            page.click("#panel-Layers th >> text=alone dB")
            shown = page.eval_on_selector_all(
                "#panel-Layers tbody tr", "r => r.map(x => x.children[3].textContent)"
            )
            values = [float("inf") if text == "equal" else float(text) for text in shown]
            assert values == sorted(values, reverse=not ascending)
        assert page.locator("th[aria-sort=descending]").count() == 1
        rows.nth(every - 1).click()
        assert page.locator("aside .histogram").count() >= 1
        assert page.locator("#panel-Layers tr.chosen").count() == 1
        page.click("[role=tab] >> text=Graph")
        assert page.locator("#panel-Graph .chosen").count() == 1


def test_tabs_by_keyboard(browser, folder):
    with opened(browser, folder / "report.html") as page:
        page.focus("#tab-Graph")
        for name in ("Layers", "Passes", "Audit", "Graph"):
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.id") == f"tab-{name}"
            assert page.is_visible(f"#panel-{name}")


def test_every_pass_can_be_stepped_to(browser, folder):
    with opened(browser, folder / "passes.html") as page:
        slider = page.locator("input[type=range]")
        slider.focus()
        page.keyboard.press("Home")
        seen = [page.inner_text(".steps strong")]
        while page.is_enabled("text=Next →"):
            page.click("text=Next →")
            seen.append(page.inner_text(".steps strong"))
        assert seen[0] == "1. fix_shapes"
        assert seen[-1].endswith("lower_to_integer")
        assert len(seen) == int(slider.get_attribute("max"))
        page.evaluate("document.querySelector('input[type=range]').value = 10")
        slider.dispatch_event("input")
        while "fuse_conv_bn_relu" not in page.inner_text(".steps strong"):
            page.click("text=← Back")
        assert "also read by" in page.inner_text("main")  # a reason of a refusal
        page.click('.pair > :first-child [data-group="cells.1"]')
        opened_too = page.locator('.pair > :last-child [data-group="cells.1"]')
        assert opened_too.get_attribute("aria-expanded") == "true"


def test_light_and_dark(browser, folder):
    for scheme, dark in (("light", False), ("dark", True)):
        with opened(browser, folder / "report.html", color_scheme=scheme) as page:
            paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
            assert (page.evaluate(paper) < 128) == dark
            page.click("text=Light / dark")
            assert (page.evaluate(paper) < 128) != dark


def test_what_is_said_to_screen_readers(browser, folder):
    """Every control has a name, and every picture a text."""
    for name in ("graph", "passes", "report"):
        with opened(browser, folder / f"{name}.html") as page:
            nameless = page.evaluate(
                "[...document.querySelectorAll('button, input, select, [role=button], [role=img]')]"
                ".filter(e => !(e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"
            )
            assert nameless == []
            assert page.locator("main").count() == 1
            assert page.locator("h1").count() == 1


def test_odd_names_and_values_are_shown_as_they_are(browser, tmp_path):
    spec = chain("conv", "sigmoid", head=True)
    prepared = fxquant.prepare_qat(spec.build(), spec.inputs())
    laws.settle(prepared)
    with torch.no_grad():
        prepared.get_parameter("classifier.bias").fill_(float("inf"))
    type(prepared).__name__ = "<b>Odd</b>"
    fxquant.report(prepared, spec.inputs(), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as page:
        assert page.inner_text("h1") == "<b>Odd</b>"
        page.click("[role=tab] >> text=Layers")
        page.click("#panel-Layers tr[data-row=classifier]")
        assert "classifier" in page.inner_text("aside")


@pytest.mark.slow
def test_darts_v2_of_20_cells_stands_in_three_seconds(browser, tmp_path):
    prepared = prepared_darts(36, 20, 32)
    x = torch.randn(2, 3, 32, 32)
    fxquant.visualize(prepared, tmp_path / "graph.html")
    fxquant.report(prepared, x, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 5e6
    for name in ("graph", "report"):
        with opened(browser, tmp_path / f"{name}.html") as page:
            stands = page.busy()
            assert 0 < stands < SECONDS
            assert {f"cells.{i}" for i in range(20)} <= set(boxes(page))
            page.click('[data-group="cells.7"]')
            assert "cells_7_preprocess1_op_1" in boxes(page)
            opens = page.busy()
            assert opens - stands < 1.0
            page.click("text=Open all")
            assert len(boxes(page)) > 900
            assert page.busy() - opens < 2 * SECONDS
            page.fill("[aria-label='Find an operator']", "cells.13._ops")
            page.keyboard.press("Enter")
            assert page.locator(".graph .chosen").count() == 1
