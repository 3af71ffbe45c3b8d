"""The planted bugs still apply, and each is found by a test."""

import subprocess
import sys

import pytest

from tests.planted_bugs import BUGS, ROOT, Bug, planted


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_applies_to_the_present_tree(bug: Bug):
    source = (ROOT / bug.file).read_text()
    assert planted(bug, source) != source


def test_every_bug_has_its_own_name():
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_whose_place_has_changed_is_an_error():
    with pytest.raises(ValueError, match="stands 0 times"):
        planted(BUGS[0], "")
    with pytest.raises(ValueError, match="stands 2 times"):
        planted(BUGS[0], BUGS[0].old * 2)


@pytest.mark.slow
def test_no_bug_survives():
    script = ROOT / "tests" / "planted_bugs.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
