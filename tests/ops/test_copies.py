"""Padding with copies: by hand, codes 1 2 3 4, two before and one behind.

    reflect  3 2 | 1 2 3 4 | 3      replicate  1 1 | 1 2 3 4 | 4      circular  3 4 | 1 2 3 4 | 1
"""

import pytest
import torch
from torch import nn

import fxquant
from tests import laws
from tests.ops.calls import integers, qparams

ROW = torch.tensor([[[1, 2, 3, 4]]], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("reflect", [3, 2, 1, 2, 3, 4, 3]), ("replicate", [1, 1, 1, 2, 3, 4, 4]),
     ("circular", [3, 4, 1, 2, 3, 4, 1])],
)
def test_by_hand(mode, expected):
    q = qparams(0.5, 2)
    found = integers("pad_copies", (q,), q, ROW, pad=(2, 1), mode=mode)
    assert found.tolist() == [[expected]]
    assert found.dtype is torch.uint8


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same", "valid"])
def test_a_convolution_is_the_one_behind_such_padding(mode, padding):
    """Even kernels and dilation, so that "same" has an odd element behind."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (4, 3), padding=padding, dilation=(1, 2), padding_mode=mode)
    x = torch.randn(2, 3, 8, 9)
    prepared = fxquant.prepare_qat(nn.Sequential(conv), x).eval()
    torch.testing.assert_close(prepared(x), conv(x))
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    assert (quantized(x) - conv(x)).abs().max() < 0.1


@pytest.mark.parametrize(("size", "expected"), [(2, [2, 4]), (3, [2, 3, 4]), (None, [1, 2, 3, 4])])
def test_the_largest_of_each_cell(size, expected):
    """Of 4 elements in 3 cells: 0 1, 1 2, 2 3."""
    q, name = qparams(0.5, 2), "adaptive_max_pool2d"
    found = integers(name, (q,), q, ROW[None], output_size=(1, size))
    assert found.tolist() == [[[expected]]]
