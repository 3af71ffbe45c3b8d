"""Write docs/edge_cases.md from the tests of edge cases: `python tools/edge_cases.py`.

    def test_case_19_one_conv_two_norms():
        \"\"\"Left alone: neither of two batch norms may have the conv that both read.\"\"\"

becomes a row: the number and the case from the name, the outcome from the docstring. The tests
are read, not run, and the table says nothing that is not in them; cases without a test stand below.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "edge_cases"
TABLE = ROOT / "docs" / "edge_cases.md"
COUNT = 69
OUTCOMES = ("Kept: ", "Kept, and left alone where ", "Kept, and refused where ")
OUTCOMES += ("Left alone: ", "Refused: ")

# file -> (heading, first case, last case)
SECTIONS = {
    "test_capture.py": ("Capture", 1, 12),
    "test_batch_norm.py": ("Batch norm", 13, 32),
    "test_equalization.py": ("Cross-layer equalization", 33, 48),
    "test_ranges.py": ("Ranges, observers, fake-quants", 49, 59),
    "test_convert.py": ("Integers", 60, 69),
}

# A case leaves this list when it gets its test: the tool insists.
WITHOUT_TEST: dict[int, tuple[str, str]] = {}

HEAD = """\
# Edge cases

What fxquant does with networks that are easy to quantize wrongly.

- *Kept*: the function after every pass, and then integers that equal `p.eval()(x)` bit for bit,
  in every recipe.
- *Left alone*: the same, and `explain` says at which node nothing was done, and why.
- *Refused*: an error that names the place in your code, and a way out.

Every line is a test. This page is made from their names and docstrings, by
`python tools/edge_cases.py`, and a test checks that it is up to date. To run one case:
`pytest tests/edge_cases -k case_18`.
"""


class Case(NamedTuple):
    """One row: `name` is that of a test, or empty."""

    number: int
    title: str
    outcome: str
    name: str


def main() -> None:
    """Write the table."""
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(), encoding="utf-8")


def table() -> str:
    """The whole page, as the tests stand now."""
    parts = [HEAD]
    for file, (heading, first, last) in SECTIONS.items():
        rows = cases(TESTS / file)
        misplaced = [case.name for case in rows if not first <= case.number <= last]
        if misplaced:
            raise SystemExit(f"{file} is for cases {first} to {last}, not {misplaced[0]}")
        tested = {case.number for case in rows}
        for number in range(first, last + 1):
            if (number in tested) is (number in WITHOUT_TEST):
                what = "is listed as without a test, and has one" if number in tested else "is lost"
                raise SystemExit(f"case {number} {what}: see WITHOUT_TEST")
            if number in WITHOUT_TEST:
                rows.append(Case(number, *WITHOUT_TEST[number], ""))
        rows.sort(key=lambda case: case.number)
        link = f"[tests/edge_cases/{file}](../tests/edge_cases/{file})"
        parts.append(f"## {heading}\n\n{link}\n\n" + "\n".join(_markdown(rows)) + "\n")
    return "\n".join(parts)


def cases(path: Path) -> list[Case]:
    """The tests of a file, in its order."""
    found = []
    for function in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        match = re.fullmatch(r"test_case_(\d\d)_(\w+)", function.name)
        if match is None:
            if function.name.startswith("test_"):
                raise SystemExit(f"{path.name}: {function.name} is not called test_case_NN_…")
            continue
        outcome = ast.get_docstring(function) or ""
        if not outcome.startswith(OUTCOMES) or "\n" in outcome or not outcome.endswith("."):
            raise SystemExit(
                f"{path.name}: the docstring of {function.name} is not one sentence that starts "
                f"with its outcome ({', '.join(o.strip() for o in OUTCOMES)})"
            )
        title = match[2].replace("_", " ")
        found.append(Case(int(match[1]), title, outcome, function.name))
    return found


def _markdown(rows: list[Case]) -> list[str]:
    lines = ["| | case | outcome | test |", "| ---: | --- | --- | --- |"]
    last = 0
    for case in rows:
        number = str(case.number) if case.number != last else ""  # once a case
        last = case.number
        test = f"`{case.name}`" if case.name else ""
        outcome = case.outcome.replace("|", "\\|")
        lines.append(f"| {number} | {case.title} | {outcome} | {test} |")
    return lines


if __name__ == "__main__":
    main()
