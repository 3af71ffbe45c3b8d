"""canonicalize: every spelling of an operator becomes one call site."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxquant.graph.place import example_of, place_of
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize
from fxquant.sites.flow import sites
from tests.passes.shapes import shape


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(2, 2, 1, 1)), nn.Parameter(torch.ones(2))
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.kernel = nn.ParameterList(torch.randn(2, 2, *[2] * d) for d in range(4))

    def forward(self, x):
        return self.function(self, x)


SPELLINGS = [
    ("conv2d", lambda m, x: F.conv2d(x, m.weight, m.bias, padding=1)),
    ("conv2d", lambda m, x: torch.conv2d(input=x, weight=m.weight)),
    ("conv2d", lambda m, x: F.conv2d(x, m.weight.exp(), m.bias.view(-1))),  # of parameters alone
    # what is not given is as torch has it; three dimensions read x as [C, D, H, W]
    ("conv1d", lambda m, x: F.conv1d(x[:, :, 0], m.kernel[1])),
    ("conv2d", lambda m, x: F.conv2d(x, m.kernel[2])),
    ("conv3d", lambda m, x: F.conv3d(x, m.kernel[3])),
    ("conv_transpose1d", lambda m, x: F.conv_transpose1d(x[:, :, 0], m.kernel[1])),
    ("conv_transpose2d", lambda m, x: F.conv_transpose2d(x, m.kernel[2])),
    ("conv_transpose3d", lambda m, x: F.conv_transpose3d(x, m.kernel[3])),
    ("max_pool1d", lambda m, x: F.max_pool1d(x[0], 3)),
    ("max_pool2d", lambda m, x: F.max_pool2d(x, 3)),
    ("max_pool3d", lambda m, x: F.max_pool3d(x[None], (1, 3, 3))),
    ("avg_pool1d", lambda m, x: F.avg_pool1d(x[0], 3)),
    ("avg_pool1d", lambda m, x: F.avg_pool1d(x[0], 3, padding=1)),
    ("avg_pool2d", lambda m, x: F.avg_pool2d(x, 3)),
    ("avg_pool2d", lambda m, x: F.avg_pool2d(x, 3, padding=1)),
    ("avg_pool2d", lambda m, x: F.avg_pool2d(x, (2,), divisor_override=4)),
    ("avg_pool3d", lambda m, x: F.avg_pool3d(x[None], (1, 3, 3))),
    ("avg_pool3d", lambda m, x: F.avg_pool3d(x[None], (1, 3, 3), padding=(0, 1, 1))),
    ("linear", lambda m, x: F.linear(x, m.matrix)),
    ("relu", lambda m, x: F.relu(x, inplace=True)),
    ("relu", lambda m, x: x.relu()),
    ("relu", lambda m, x: torch.relu_(x)),
    ("relu6", lambda m, x: F.relu6(x)),
    ("hardtanh", lambda m, x: F.hardtanh(x)),
    ("hardtanh", lambda m, x: F.hardtanh(x, max_val=2.0)),
    ("clamp", lambda m, x: torch.clamp(x, -1, 1)),
    ("clamp", lambda m, x: x.clamp(min=0)),
    ("clamp", lambda m, x: torch.clamp(input=x, min=0)),
    ("hardtanh", lambda m, x: F.hardtanh(x, -2.0)),
    ("relu6", lambda m, x: F.relu6(input=x, inplace=True)),
    ("clamp", lambda m, x: x.clip(max=2.5)),
    ("add", lambda m, x: x + x),
    ("add", lambda m, x: operator.iadd(x, x)),
    ("add", lambda m, x: torch.add(x, other=x)),
    ("add", lambda m, x: x.add(x)),
    ("add", lambda m, x: torch.add(x, x, alpha=1)),
    ("add", lambda m, x: sum([x, x])),
    ("cat", lambda m, x: torch.cat((x, x), 1)),
    ("cat", lambda m, x: torch.cat(tensors=[x, x], dim=-1)),
    ("cat", lambda m, x: torch.concat([x, x], axis=2)),
    ("cat", lambda m, x: torch.cat([x, x])),
    ("max_pool2d", lambda m, x: F.max_pool2d(x, 2)),
    ("max_pool2d", lambda m, x: F.max_pool2d(x, 2, 1, ceil_mode=True, return_indices=False)),
    ("avg_pool2d", lambda m, x: F.avg_pool2d(x, 2, count_include_pad=False)),
    ("adaptive_avg_pool2d", lambda m, x: F.adaptive_avg_pool2d(x, (1, 1))),
    ("mean", lambda m, x: x.mean([2, 3])),
    ("sum", lambda m, x: x.sum()),
    ("sum", lambda m, x: torch.sum(x, dim=(1, -1), keepdim=True)),
    ("mean", lambda m, x: torch.mean(x, dim=(2, 3), keepdim=True)),
    ("zero", lambda m, x: x.mul(0.0)),
    ("zero", lambda m, x: 0 * x),
    ("pad", lambda m, x: F.pad(x, (1, 1))),
    ("pad_value", lambda m, x: F.pad(x, (1, 1), value=2.0)),
    ("exp", lambda m, x: x.exp()),
    ("exp", lambda m, x: torch.exp(x)),
    ("sigmoid", lambda m, x: torch.sigmoid(x)),
    ("sigmoid", lambda m, x: x.sigmoid()),
    ("sigmoid", lambda m, x: x.sigmoid_()),
    ("sigmoid", lambda m, x: F.sigmoid(x)),
    ("sigmoid", lambda m, x: torch.special.expit(x)),
    ("tanh", lambda m, x: torch.tanh(x)),
    ("tanh", lambda m, x: torch.tanh_(x)),
    ("tanh", lambda m, x: x.tanh()),
    ("tanh", lambda m, x: F.tanh(x)),
    ("silu", lambda m, x: F.silu(x)),
    ("silu", lambda m, x: F.silu(x, inplace=True)),
    ("gelu", lambda m, x: F.gelu(x)),
    ("gelu", lambda m, x: F.gelu(x, approximate="tanh")),
    ("hardsigmoid", lambda m, x: F.hardsigmoid(input=x)),
    ("hardswish", lambda m, x: F.hardswish(x, True)),
    ("elu", lambda m, x: F.elu(x)),
    ("elu", lambda m, x: F.elu(x, 0.5, True)),
    ("leaky_relu", lambda m, x: F.leaky_relu(x, negative_slope=0.3)),
    ("leaky_relu", lambda m, x: F.leaky_relu(x, inplace=True)),
    ("softmax", lambda m, x: F.softmax(x, dim=1)),
    ("softmax", lambda m, x: F.softmax(x, -1)),
    ("softmax", lambda m, x: torch.softmax(x, 1)),
    ("softmax", lambda m, x: x.softmax(dim=-2)),
    ("mul", lambda m, x: x * x),
    ("mul", lambda m, x: x * m.bias.view(2, 1, 1)),
    ("mul", lambda m, x: torch.mul(x, other=x)),
    ("mul", lambda m, x: x.mul(x)),
    ("mul", lambda m, x: x.clone().mul_(x)),
    ("sub", lambda m, x: x - m.bias[:, None, None]),
    ("sub", lambda m, x: torch.sub(input=x, other=x)),
    ("sub", lambda m, x: torch.subtract(x, x, alpha=1)),
    ("sub", lambda m, x: x.sub(x)),
    ("sub", lambda m, x: operator.isub(x.clone(), x)),
    ("add_number", lambda m, x: x + 1.5),
    ("add_number", lambda m, x: 1 + x),
    ("add_number", lambda m, x: torch.add(x, 2, alpha=1)),
    ("add_number", lambda m, x: x.add(other=2)),
    ("sub_number", lambda m, x: x - 0.5),
    ("sub_number", lambda m, x: 2 - x),
    ("sub_number", lambda m, x: x.sub(3)),
    ("sub_number", lambda m, x: torch.sub(x, 3.0)),
    ("mul_number", lambda m, x: x * 2.0),
    ("mul_number", lambda m, x: -3 * x),
    ("mul_number", lambda m, x: torch.mul(input=x, other=0.1)),
    ("mul_number", lambda m, x: x.mul(0.1)),
    ("div_number", lambda m, x: x / 3),
    ("div_number", lambda m, x: x.div(3)),
    ("div_number", lambda m, x: torch.true_divide(x, 3)),
    ("div_number", lambda m, x: torch.div(x, 3, rounding_mode=None)),
    ("neg", lambda m, x: -x),
    ("neg", lambda m, x: torch.neg(x)),
    ("neg", lambda m, x: x.negative()),
    ("div", lambda m, x: x / x),
    ("div", lambda m, x: torch.div(x, other=x)),
    ("div", lambda m, x: x.div(x, rounding_mode=None)),
    ("div", lambda m, x: x.clone().div_(x)),
    ("matmul", lambda m, x: x @ x),
    ("matmul", lambda m, x: torch.matmul(x, other=x)),
    ("matmul", lambda m, x: x.matmul(m.weight[:, :, 0, 0].repeat(2, 2))),
    ("matmul", lambda m, x: torch.bmm(x[0], x[1])),
    ("matmul", lambda m, x: x[0].bmm(x[1])),
    ("matmul", lambda m, x: torch.mm(x[0, 0], x[0, 1])),
    ("", lambda m, x: x * 1),
    ("", lambda m, x: x.add(0)),
    ("", lambda m, x: x / 1.0 - 0),
    ("", lambda m, x: F.dropout(x, 0.5, training=False)),
]


@pytest.mark.parametrize(("name", "call"), SPELLINGS)
def test_rewrites(name, call):
    gm = trace(Call(call))
    x = 5 * torch.randn(2, 2, 4, 4)  # beyond every limit
    expected = Call(call)
    expected.load_state_dict(gm.state_dict())
    Canonicalize().run(gm)
    assert shape(gm) == name
    torch.testing.assert_close(gm(x.clone()), expected(x.clone()))


LEFT_ALONE = [
    lambda m, x: x.new_zeros((2, 2), dtype=torch.float64),  # not of the dtype of x
    lambda m, x: x.new_zeros((2, 2), requires_grad=False),
    lambda m, x: x + x.size(0),  # numbers that only the graph knows
    lambda m, x: x * x.shape[1],
    lambda m, x: x.shape[1] - x,
    lambda m, x: x / (x.size(0) + 1),
    lambda m, x: x * math.inf,
    lambda m, x: x / 0,
    lambda m, x: 1 / x,
    lambda m, x: torch.div(x, 3, rounding_mode="floor"),
    lambda m, x: torch.div(x, x, rounding_mode="trunc"),
    lambda m, x: torch.sub(x, x, alpha=2),
    lambda m, x: torch.add(x, 1, alpha=2),
    lambda m, x: x + 1j,
    lambda m, x: torch.add(x, x, alpha=2),
    lambda m, x: x.sum(1, dtype=torch.float64),
    lambda m, x: F.conv2d(x, x[:, :, :1, :1]),  # a weight that the input decides
    lambda m, x: F.max_pool2d(x, 2, return_indices=True),
    lambda m, x: x.clamp(min=x),
    lambda m, x: x.clamp(min=1.0),  # leaves the range that it would have to keep
    lambda m, x: F.avg_pool2d(x, 2, divisor_override=1),
    lambda m, x: F.avg_pool2d(x, (2,), divisor_override=3),  # less than the 4 of its window
    lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    lambda m, x: F.prelu(x, x[0, :, 0, 0]),  # slopes that the network computes
    lambda m, x: F.batch_norm(x, None, None, training=True),
    lambda m, x: F.adaptive_max_pool2d(x, 2, return_indices=True),
    lambda m, x: F.leaky_relu(x, x.size(0) / 10),  # a slope that only the graph knows
    lambda m, x: torch.sin(x),
    lambda m, x: torch.softmax(x, 1, torch.float64),
    lambda m, x: torch.log_softmax(x, 1),
    lambda m, x: F.pad(x, (1, 1), value=float("inf")),
    lambda m, x: x.clamp(max=-1.0),
    lambda m, x: x.mean(2, dtype=torch.float64),
]


@pytest.mark.parametrize("call", LEFT_ALONE)
def test_leaves_alone(call):
    """And goes on behind it."""
    gm = trace(Call(lambda m, x: (call(m, x), torch.relu(x))))
    record = Canonicalize().run(gm)
    assert shape(gm) == "relu"
    assert [entry.text for entry in record.changed] == ["written as relu"]


@pytest.mark.parametrize(("value", "name"), [(0.0, "pad"), (1.0, "pad_value"), (-2, "pad_value")])
def test_padding_with_zeros_is_an_operator_of_its_own(value, name):
    called = Call(lambda m, x: F.pad(x, (1, 1), value=value))
    for model in (nn.Sequential(nn.ConstantPad2d(1, value)), called):
        gm = trace(model)
        Canonicalize().run(gm)
        assert shape(gm) == name


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [(-1.0, 0.0, "hardtanh"), (0.0, 1.0, "hardtanh"), (-2.0, -1.0, ""), (1.0, 2.0, "")],
)
def test_limits_must_hold_0(low, high, name):
    called = Call(lambda m, x: F.hardtanh(x, low, high))
    for model in (nn.Sequential(nn.Hardtanh(low, high)), called):
        gm = trace(model)
        Canonicalize().run(gm)
        assert shape(gm) == name


def test_the_0_that_a_sum_starts_with_disappears():
    gm = trace(Call(lambda m, x: sum([x, x])))
    Canonicalize().run(gm)
    assert [node.op for node in gm.graph.nodes] == ["placeholder", "call_module", "output"]


def test_modules_without_an_integer_form_are_left_alone():
    gm = trace(
        nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bicubic"),
            nn.AdaptiveMaxPool2d(2, return_indices=True),
            nn.BatchNorm2d(2, track_running_stats=False),
            nn.MaxPool2d(2, return_indices=True),
            nn.LogSoftmax(1),
            nn.ConstantPad2d(1, -math.inf),
        )
    )
    Canonicalize().run(gm)
    assert shape(gm) == ""


def test_a_site_knows_its_place_and_an_example_of_its_value():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 1)))
    gm = trace(model, (torch.zeros(1, 2, 4, 4),))
    Canonicalize().run(gm)
    ((node, _),) = sites(gm)
    assert place_of(node).module == "0.0"
    assert place_of(node.kwargs["weight"]).module == "0.0"
    assert example_of(node).shape == (1, 3, 4, 4)


def test_a_layer_called_twice_is_two_sites_with_one_weight():
    conv = nn.Conv2d(2, 2, 1)
    gm = trace(nn.Sequential(conv, conv))
    Canonicalize().run(gm)
    assert shape(gm) == "conv2d conv2d"
    assert sum("weight" in name for name in gm.state_dict()) == 2  # one tensor, the user's names
    assert len({id(p) for p in gm.parameters()}) == 2


def test_numbers_are_not_taken_for_tensors():
    class Net(nn.Module):
        def forward(self, x):
            return x.view(x.size(0), x.shape[1] + x.shape[1] - x.size(1), -1)

    gm = trace(Net())
    Canonicalize().run(gm)
    assert shape(gm) == ""
    assert gm(torch.ones(2, 3, 4)).shape == (2, 3, 4)
