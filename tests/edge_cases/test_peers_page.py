"""docs/peers.md is what benchmarks/peers/run.py makes of the results that lie beside it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "peers" / "run.py"


@pytest.fixture
def run(monkeypatch):
    spec = importlib.util.spec_from_file_location("run_peers", RUN)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_peers", module)
    spec.loader.exec_module(module)
    return module


def result(kind, **more):
    record = {"number": 8, "network": "net", "way": "fold", "result": kind} | more
    return {"date": "2026-01-01", "versions": {"x": "1"}, "ways": ["fold"], "records": [record]}


def test_the_page_is_up_to_date(run):
    there = [peer for peer in run.PEERS if peer.results.exists()]
    found = {peer: json.loads(peer.results.read_text()) for peer in there}
    assert run.PAGE.read_text() == run.page(found)


def test_each_tool_has_a_script(run):
    assert {peer.script for peer in run.PEERS} == set(RUN.parent.glob("peer_*.py"))


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (result("kept", error=1e-7), "| 8 | net | · |"),
        (result("changed", error=0.512), "| 8 | net | **0.51** |"),
        (result("changed", error="nan"), "| 8 | net | **nan** |"),
        (result("crashed", line="KeyError: `a`"), "| 8 | net | crash |"),
        (result("refused", line="No: b"), "| 8 | net | refused |"),
    ],
)
def test_cells(run, record, row):
    page = run.page({run.PEERS[0]: record})
    assert row in page
    assert f"| {run.PEERS[1].title} | not installed |" in page


def test_errors_are_listed_with_the_ways_that_gave_them(run):
    page = run.page({run.PEERS[0]: result("crashed", line="KeyError: `a`")})
    assert "- 8 net (everywhere): `KeyError: 'a'`" in page
