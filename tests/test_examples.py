"""The examples run, as a user would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
ARGUMENTS = {"03_search": ["1"]}  # epochs


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path: Path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    command = [sys.executable, path, *ARGUMENTS.get(path.stem, ())]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "equal     True" in run.stdout
