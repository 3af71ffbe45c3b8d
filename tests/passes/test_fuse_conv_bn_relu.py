"""fuse_conv_bn_relu: layer, batch norm and activation in one site."""

import copy

import pytest
import torch
from torch import nn

from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, FuseConvBnRelu
from tests.passes.shapes import shape
from tests.strategies import chain


def fuse(model):
    gm = trace(copy.deepcopy(model))
    Canonicalize().run(gm)
    return gm, FuseConvBnRelu().run(gm)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("conv bn relu", "conv2d+bn+relu"),
        ("conv bn", "conv2d+bn"),
        ("conv relu6", "conv2d+relu6"),
        ("conv clamp", "conv2d+clamp(-0.5, 1.5)"),
        ("conv relu bn", "conv2d+relu batch_norm"),
        ("conv relu relu6", "conv2d+relu relu6"),  # one activation a site
        ("bn relu", "batch_norm+relu"),
        ("max_pool relu", "max_pool2d relu"),  # a pool has no range of its own to clamp
        ("conv conv bn relu", "conv2d conv2d+bn+relu"),
    ],
)
def test_rewrites(before, after):
    gm, _ = fuse(chain(*before.split()).build())
    assert shape(gm) == after


def test_a_sum_takes_its_relu_in():
    class Net(nn.Module):
        def forward(self, x, y):
            return torch.relu(x + y)

    assert shape(fuse(Net())[0]) == "add+relu"


class Readers(nn.Module):
    """One conv, read by two activations."""

    def __init__(self, first, second):
        super().__init__()
        self.conv, self.functions = nn.Conv2d(2, 2, 1), (first, second)

    def forward(self, x):
        y = self.conv(x)
        return tuple(function(y) for function in self.functions)


def test_activations_that_are_all_the_same_become_one():
    model = Readers(torch.relu, lambda y: y.clamp(min=0) * 0.0)
    gm, record = fuse(model)
    assert shape(gm) == "conv2d+relu zero"
    assert [entry.text for entry in record.changed] == ["took in 'relu', 'clamp'"]
    x = torch.randn(1, 2, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(gm(x), model(x), strict=True))


def test_activations_that_differ_are_left_alone():
    gm, record = fuse(Readers(torch.relu, nn.functional.relu6))
    assert shape(gm) == "conv2d relu relu6"
    assert [entry.text for entry in record.left_alone] == [
        "'conv' is also read by 'relu6'",
        "'conv' is also read by 'relu'",
    ]


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        return torch.relu(z), y, z


def test_leaves_alone():
    gm, record = fuse(Fork())
    assert [entry.text for entry in record.left_alone] == [
        "'conv' is also read by 'output'",
        "'bn' is also read by 'output'",
    ]
    assert shape(gm) == "conv2d batch_norm relu"


def test_the_batch_norm_stays_live():
    model = chain("conv", "bn", "relu").build()
    gm, _ = fuse(model)
    x = torch.randn(4, 4, 8, 8)
    gm.train()(x)
    model.train()(x)
    for name in ("steps.1.running_mean", "steps.1.running_var", "steps.1.num_batches_tracked"):
        assert torch.equal(gm.state_dict()[name], model.state_dict()[name])
