"""docs/operators.md says what its tool measures today."""

import pytest

from tools import operator_errors


@pytest.mark.parametrize(
    "part",
    [operator_errors.functions, operator_errors.arithmetic, operator_errors.weighted_sums],
)
def test_the_page_is_current(part):
    assert part() in operator_errors.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("spread", [0.001, 1.0, 3.0])
def test_a_weighted_sum_is_rounded_once_which_a_chain_and_short_weights_are_not(spread):
    one_sum, chain, short_weights = operator_errors.sum_errors(spread, cases=10).values()
    assert one_sum.worst <= 1
    assert one_sum.wrong < 1e-3 * one_sum.codes
    assert one_sum.rms < short_weights.rms
    assert one_sum.rms < chain.rms


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "normalize"])
@pytest.mark.parametrize("columns", [8, 768])
def test_norms_differ_in_hardly_a_code(name, columns):
    errors = operator_errors.norm_errors(name, columns, count=2**16)
    assert errors.worst <= 1
    assert errors.wrong < 1e-4 * errors.codes


@pytest.mark.slow
def test_the_whole_page_is_current():
    assert operator_errors.page() == operator_errors.PAGE.read_text(encoding="utf-8")
