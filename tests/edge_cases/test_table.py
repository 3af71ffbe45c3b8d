"""docs/edge_cases.md is made from the tests beside this file, and says all that they say."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("edge_cases_tool", ROOT / "tools/edge_cases.py")
tool = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tool)


def test_the_committed_table_is_current():
    message = "run: python tools/edge_cases.py"
    assert tool.TABLE.read_text(encoding="utf-8") == tool.table(), message


def test_every_case_is_listed_once():
    numbers = re.findall(r"^\| (\d+) \|", tool.TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, tool.COUNT + 1))


def test_every_file_of_cases_is_listed():
    files = {path.name for path in tool.TESTS.glob("test_*.py")}
    files -= {"test_table.py", "test_networks.py", "test_peers_page.py"}  # not of cases
    assert files == set(tool.SECTIONS)
