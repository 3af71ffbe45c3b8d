"""torch.compile of a prepared network in train(): one graph, the same values and gradients."""

import copy

import pytest
import torch
from torch import nn

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


def transformer():
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.Sequential(layer, nn.Linear(16, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler, in torch 2.13
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (convolutions, (4, 3, 12, 12)),
        (transformer, (2, 5, 16)),
        pytest.param(
            lambda: NetworkCIFAR(4, 10, 3, DARTS_V2), (2, 3, 16, 16), marks=pytest.mark.slow
        ),
    ],
)
def test_training_compiles_to_one_graph(make, shape):
    """Nothing waits for a number, so nothing ends the graph."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = make(), torch.randn(shape)
    prepared = fxquant.prepare_qat(net, x).train()
    prepared(x)
    twin = copy.deepcopy(prepared)
    torch._dynamo.reset()
    compiled = torch.compile(prepared, fullgraph=True, backend="eager")
    outputs = [model(0.5 * x) for model in (compiled, twin)]
    a, b = (y if isinstance(y, torch.Tensor) else y[0] for y in outputs)
    assert torch.equal(a, b)
    for y in (a, b):
        y.square().sum().backward()
    for one, other in zip(prepared.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
