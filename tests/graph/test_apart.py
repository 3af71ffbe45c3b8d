"""How two graphs are laid side by side."""

from hypothesis import given
from hypothesis import strategies as st

from fxquant.graph.apart import _matching

words = st.text("abc", max_size=8)


@given(words, words)
def test_blocks_are_equal_and_in_order(left, right):
    i = j = 0
    for a, b, size in _matching(list(left), list(right)):
        assert a >= i
        assert b >= j
        assert left[a : a + size] == right[b : b + size]
        i, j = a + size, b + size
    assert (i, j) == (len(left), len(right))


@given(words, words, words)
def test_what_is_inserted_is_all_that_is_not_matched(head, inserted, tail):
    blocks = list(_matching(list(head + tail), list(head + inserted + tail)))
    assert sum(size for _, _, size in blocks) == len(head + tail)


def test_the_middle_is_aligned_too():
    """`b` and `d` have gone, `x` has come, between equal ends; a and e are of the ends."""
    assert list(_matching(list("abcde"), list("axce"))) == [(0, 0, 1), (2, 2, 1), (4, 3, 1)]
