"""Mutation testing knows, for every file that it mutates, which tests concern it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_file_has_its_tests():
    tree = ast.parse((ROOT / "tools/mutants.py").read_text())
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TESTS"
    )
    assert isinstance(table, ast.Dict)
    listed = {ast.literal_eval(key) for key in table.keys}
    files = {
        *(f"fxquant/forms/{path.name}" for path in (ROOT / "fxquant/forms").glob("[!_]*.py")),
        *(f"fxquant/ops/{path.name}" for path in (ROOT / "fxquant/ops").glob("*.py")),
        *(f"fxquant/sites/{path.name}" for path in (ROOT / "fxquant/sites").glob("[!_]*.py")),
        *(f"passes/{path.name}" for path in (ROOT / "passes").glob("[!_]*.py")),
        *("fxquant/schemes.py", "fxquant/rounding.py", "fxquant/intmath.py"),
    }
    assert listed == files
