"""docs/seeds.md names a test in every row, and each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/seeds.md").read_text())
    assert len(named) > 20
    missing = [pair for pair in named if f"def {pair[1]}(" not in (ROOT / pair[0]).read_text()]
    assert not missing


def test_every_row_names_one():
    lines = (ROOT / "docs/seeds.md").read_text().splitlines()
    heads = ("| asked for |", "| --- |")
    rows = [line for line in lines if line.startswith("|") and not line.startswith(heads)]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row.split("|")[3]] == []
