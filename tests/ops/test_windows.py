"""How many elements pools divide by, counted by hand."""

import pytest

from fxquant.ops.adaptive_avg_pool import cell_sizes
from fxquant.ops.avg_pool import window_counts


@pytest.mark.parametrize(
    ("length", "windows", "with_padding", "without"),
    [
        (5, 3, [3, 3, 3], [2, 3, 2]),  # -1 … 1, 1 … 3, 3 … 5
        (4, 3, [3, 3, 2], [2, 3, 1]),  # the same, the last one cut off behind the padding
    ],
)
def test_windows_of_three_every_two_from_one_before(length, windows, with_padding, without):
    assert window_counts(length, windows, 3, 2, 1, True).tolist() == with_padding
    assert window_counts(length, windows, 3, 2, 1, False).tolist() == without


@pytest.mark.parametrize(
    ("length", "cells", "sizes"),
    [
        (4, 2, [2, 2]),
        (5, 3, [2, 3, 2]),  # 0 1, 1 2 3, 3 4
        (10, 4, [3, 3, 3, 3]),  # 0 … 2, 2 … 4, 5 … 7, 7 … 9
        (2, 3, [1, 2, 1]),  # 0, 0 1, 1
    ],
)
def test_cells_of_an_adaptive_pool(length, cells, sizes):
    assert cell_sizes(length, cells).tolist() == sizes
