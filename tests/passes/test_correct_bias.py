"""correct_bias: biases make up for what rounded weights add on average."""

import copy

import pytest
import torch
from torch import nn

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.graph.normal import Normal
from fxquant.ops.spec import Clamp
from fxquant.passes.correct_bias import clipped_mean
from fxquant.pipeline import history

COARSE = QuantScheme(bits=3, narrow=True, per_channel=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)
        self.flatten = nn.Flatten()
        for bn in (self.bn_a, self.bn_b):
            nn.init.normal_(bn.weight)
            nn.init.normal_(bn.bias)

    def forward(self, x):
        a, b = torch.relu(self.bn_a(self.a(x))), nn.functional.relu6(self.bn_b(self.b(x)))
        return self.head(self.flatten(self.pool(torch.cat([a, b], 1))))


def settled_net():
    """Batch norms that tell the truth about N(0, 1) inputs."""
    torch.manual_seed(0)
    net = Net()
    for bn in (net.bn_a, net.bn_b):
        bn.momentum = None
    with torch.no_grad():
        net(torch.randn(64, 3, 16, 16))
    return net.eval()


def mean_error(prepared, net):
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (prepared.eval()(x) - net(x)).mean(0).abs().max()


def calibrated(net, **options):
    config = QuantConfig(weight=COARSE, batch_norm="fold", **options)
    prepared = fxquant.prepare_qat(net, torch.randn(2, 3, 16, 16), config)
    with torch.no_grad():
        prepared.train()(torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    return prepared.eval()


def test_without_data_the_mean_error_shrinks():
    net = settled_net()
    plain, corrected = calibrated(net), calibrated(net, correct_bias=True)
    changed = [entry.node for entry in history(corrected)[-1].changed]
    left = {entry.node: entry.text for entry in history(corrected)[-1].left_alone}
    assert changed == ["head"]
    assert left == dict.fromkeys(("a", "b"), "the mean of its input is not known")
    assert mean_error(corrected, net) < mean_error(plain, net) / 2


MEANS = {
    "(2, 3)": lambda y: y.mean((2, 3)),
    "keepdim": lambda y: torch.flatten(y.mean([-1, -2], keepdim=True), 1),
    "one after the other": lambda y: y.mean(-1).mean(2),
}


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_a_mean_over_space_is_an_average_pool(mean):
    class Means(Net):
        def forward(self, x):
            a, b = torch.relu(self.bn_a(self.a(x))), nn.functional.relu6(self.bn_b(self.b(x)))
            return self.head(mean(torch.cat([a, b], 1)))

    net = settled_net()
    ours = Means().eval()
    ours.load_state_dict(net.state_dict())
    pooled, meant = calibrated(net, correct_bias=True), calibrated(ours, correct_bias=True)
    assert [entry.node for entry in history(meant)[-1].changed] == ["head"]
    assert torch.equal(pooled.head.bias, meant.head.bias)


def test_a_mean_over_channels_has_no_known_mean():
    class Across(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)).relu().mean((1, 2)))

    model = Across(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(16, 2)).eval()
    left = {e.node: e.text for e in history(calibrated(model, correct_bias=True))[-1].left_alone}
    assert left["_2"] == "the mean of its input is not known"


def test_on_data_the_mean_error_shrinks_further():
    net = settled_net()
    plain, corrected = calibrated(net), calibrated(net)
    batches = [torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(3))]
    state = {name: value.clone() for name, value in corrected.state_dict().items()}
    fxquant.correct_bias(corrected, [(x, "labels") for x in batches])
    changed = {k for k, v in corrected.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {"a.bias", "b.bias", "head.bias"}
    assert mean_error(corrected, net) < mean_error(plain, net) / 4
    x = batches[0]
    assert torch.equal(fxquant.convert(corrected)(x), corrected(x))


def test_by_hand():
    """One linear layer of weight 0.4 beside 1 on three bits: 0.4 is rounded to 1/3, so inputs of
    mean 3 lose 0.2, which the bias gives back."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.4]])
    prepared = fxquant.prepare_qat(layer, torch.ones(1, 2), QuantConfig(weight=COARSE))
    x = torch.tensor([[0.0, 2.0], [6.0, 4.0]])
    prepared.train()(x)
    fxquant.correct_bias(prepared, [x])
    assert prepared.bias.item() == pytest.approx(3 * (0.4 - 1 / 3), abs=0.02)
    assert prepared.training


@pytest.mark.parametrize("clamp", [Clamp(0.0, float("inf")), Clamp(0.0, 6.0), Clamp(-1.0, 1.0)])
def test_the_mean_of_a_clipped_normal(clamp):
    mean, deviation = torch.tensor([0.0, -2.0, 3.0, 1.0]), torch.tensor([1.0, 0.5, 4.0, 0.0])
    divisor = torch.tensor([1.0, 0.5, 2.0, 1.0])
    x = mean + deviation * torch.randn(400_000, 4, generator=torch.Generator().manual_seed(0))
    expected = clamp(x, divisor).mean(0)
    got = clipped_mean(Normal(mean, deviation), clamp, divisor)
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)


def test_without_an_activation_the_mean_stays():
    normal = Normal(torch.randn(3), torch.rand(3))
    assert clipped_mean(normal, None) is normal.mean


def test_layers_with_a_live_batch_norm_stay():
    prepared = fxquant.prepare_qat(settled_net())
    prepared.train()(torch.randn(8, 3, 16, 16))
    before = copy.deepcopy(prepared.state_dict())
    fxquant.correct_bias(prepared, [torch.randn(8, 3, 16, 16)])
    changed = {k for k, v in prepared.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.bias"}


class Tail(nn.Module):
    """conv, batch norm, relu, and a layer that does not contract axis 1 once a place."""

    def __init__(self, kind, length):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)
        self.tail = {
            "linear": lambda: nn.Linear(length, 3),
            "transposed": lambda: nn.ConvTranspose1d(6, 4, 3, stride=2),
            "transposed, as many out": lambda: nn.ConvTranspose1d(6, 6, 3),
        }[kind]()

    def forward(self, x):
        return self.tail(torch.relu(self.bn(self.conv(x))))


TRANSPOSED = "it is transposed: how often it reads an input depends on the place"


@pytest.mark.parametrize("length", [6, 10])  # 6: as many as channels
@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("linear", "it may have more than two dimensions, and sum over another than the channels"),
        ("transposed", TRANSPOSED),
        ("transposed, as many out", TRANSPOSED),
    ],
)
def test_layers_whose_sum_is_another_stay(kind, reason, example, length):
    model, x = Tail(kind, length).eval(), torch.randn(2, 3, length)
    config = QuantConfig(weight=COARSE, batch_norm="fold", correct_bias=True)
    prepared = fxquant.prepare_qat(model, x if example else None, config)
    record = history(prepared)[-1]
    assert record.changed == ()
    assert {e.node: e.text for e in record.left_alone}["tail"] == reason
    assert torch.equal(prepared.tail.bias, model.tail.bias)
