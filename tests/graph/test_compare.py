"""Two modules are compared by what they give."""

import math

import pytest
import torch
from torch import nn

from fxquant.graph.compare import largest_differences


class Gives(nn.Module):
    def __init__(self, *outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self):
        return self.outputs


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ([1.0, 4.0], [1.0, 4.0], 0.0),
        ([1.0, 3.0], [1.0, 4.0], 0.25),
        ([0.0, NAN], [0.0, NAN], 0.0),
        ([0.0, 1.0], [NAN, 1.0], INF),  # not a number is not 0
        ([INF, 1.0], [INF, 1.0], 0.0),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_the_largest_difference(ours, theirs, difference):
    pair = Gives(torch.tensor(ours)), Gives(torch.tensor(theirs))
    assert list(largest_differences(*pair, (), (False, True))) == [difference, difference]


def test_what_is_no_tensor_must_be_equal():
    x = torch.ones(2)
    assert list(largest_differences(Gives(x, None, 3), Gives(x, None, 3), (), (False,))) == [0.0]
    assert list(largest_differences(Gives(x, None, 3), Gives(x, None, 4), (), (False,))) == [INF]
    assert list(largest_differences(Gives(x, None), Gives(x), (), (False,))) == [INF]
