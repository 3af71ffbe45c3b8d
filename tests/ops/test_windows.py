"""The windows of pools: how many elements they hold, and that they hold any."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fxquant
from fxquant.errors import ShapeError
from fxquant.ops.adaptive_avg_pool import cell_sizes
from fxquant.ops.avg_pool import window_counts
from fxquant.ops.windows import require_elements, windows_of
from tests import laws


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


@st.composite
def pools(draw):
    """Settings of torch's max_pool1d, and how many elements it is given."""
    kernel = draw(st.integers(1, 4))
    settings = {
        "kernel_size": kernel,
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, kernel // 2)),
        "dilation": draw(st.integers(1, 5)),
        "ceil_mode": draw(st.booleans()),
    }
    reach = 1 + settings["dilation"] * (kernel - 1)
    return settings, draw(st.integers(max(reach - 2 * settings["padding"], 1), 24))


@given(pools())
def test_what_torch_finds_nothing_in_is_refused(pool):
    settings, length = pool
    found = F.max_pool1d(torch.zeros(1, 1, length), **settings)
    try:
        require_elements("max_pool1d", windows_of(settings, 1), (length,))
    except ShapeError:
        assert found.isneginf().any()
    else:
        assert found.isfinite().all()


def test_a_window_that_holds_no_element():
    x = torch.randn(2, 3, 8)
    net = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 1), torch.nn.MaxPool1d(2, 1, 1, dilation=3))
    prepared = fxquant.prepare_qat(net, x)
    laws.settle(prepared, x)
    quick, plain = fxquant.convert(prepared), fxquant.convert(prepared)
    fxquant.use_kernels(plain, "plain")
    for integer in (prepared, quick, plain):
        assert integer(x).isfinite().all()
        with pytest.raises(ShapeError, match=r"holds none .*2 places .* from -1 to 2"):
            integer(x[..., :2])
