"""The examples run, as a user would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
SAYS = {"03_search": "Genotype(normal="}  # the others compare integers with what was trained


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path: Path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert SAYS.get(path.stem, "equal     True") in run.stdout
