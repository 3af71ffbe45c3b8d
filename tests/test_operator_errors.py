"""docs/operators.md says what its tool measures today."""

import pytest

from tools import operator_errors


@pytest.mark.parametrize("part", [operator_errors.functions, operator_errors.arithmetic])
def test_the_page_is_current(part):
    assert part() in operator_errors.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_whole_page_is_current():
    assert operator_errors.page() == operator_errors.PAGE.read_text(encoding="utf-8")
