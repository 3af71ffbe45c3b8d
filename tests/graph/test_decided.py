"""What parameters and shapes decide, and what is written into parts of it."""

import copy
import math

import pytest
import torch
from torch import nn

from fxquant.errors import CaptureError, ShapeError
from fxquant.graph.decided import decided, decided_values
from fxquant.graph.trace import trace
from tests import laws

X = torch.randn(2, 4, 4)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(6))
        self.register_buffer("table", torch.randn(4, 4))

    def forward(self, x):
        return self.function(self, x)


def captured(function, example=X):
    net = Net(function)
    gm = trace(copy.deepcopy(net), None if example is None else (example,))
    laws.assert_equal(gm(X.clone()), net(X.clone()))
    return gm


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda m, x: x + x.shape[1], "getattr_1 getitem"),
        (lambda m, x: x + torch.arange(x.size(2)), "size arange"),
        (lambda m, x: x + x.new_ones(4, x.size(1)).tril(), "size new_ones tril"),
        (lambda m, x: x + torch.zeros_like(x).cos(), "zeros_like cos"),
        (lambda m, x: x * m.weight[: x.size(1)], "size weight getitem"),
        (lambda m, x: x + torch.full((x.size(1), 4), 2.0, device=x.device), "size getattr_1 full"),
        (lambda m, x: x + x.new_full((), 0.5), "new_full"),
        (lambda m, x: x + x.mean(), ""),
        (lambda m, x: x + torch.ones_like(x) * x, "ones_like"),
    ],
)
def test_decided(function, names):
    gm = captured(function)
    found = decided(gm.graph)
    assert {node.name for node in gm.graph.nodes if node in found} == set(names.split())


def test_random_numbers_are_not_decided():
    gm = trace(Net(lambda m, x: x + 0.0 * torch.rand_like(x[0]) + torch.zeros_like(x).bernoulli()))
    found = {node.name for node in decided(gm.graph)}
    assert found == {"zeros_like"}


def test_values_are_those_for_the_example():
    gm = captured(lambda m, x: x + x.new_ones(4, x.size(1)).tril() * torch.eye(x.size(1)))
    values = decided_values(gm, decided(gm.graph), torch.device("cpu"))
    by_name = {node.name: value for node, value in values.items()}
    assert by_name["size"] == 4
    assert torch.equal(by_name["mul"], torch.eye(4))


def written(m, x):
    mask = x.new_zeros((x.shape[1], x.shape[2]))
    mask[:2, 1:] = 3
    mask[1:, : x.shape[1] - 1] = 5
    return x + mask


def cleared(m, x):
    weight = m.weight.clone()
    weight[2:4].zero_()
    weight[0] = 9.0
    return x * weight[:4]


def of_a_part(m, x):
    mask = torch.zeros(x.size(1), 4)
    mask[1].add_(2.0)
    first = mask[1] + 0.0
    mask[1].fill_(1.0)
    return x + mask + first


def on_the_diagonal(m, x):
    mask = torch.ones(4, x.size(1))
    mask.fill_diagonal_(7.0)
    return x + mask


@pytest.mark.parametrize("function", [written, cleared, of_a_part, on_the_diagonal])
def test_parts_of_masks_are_written(function):
    gm = captured(function)
    assert not any(str(node.target).endswith("_") for node in gm.graph.nodes)
    before = gm(X)
    assert torch.equal(gm(X), before)  # nothing that the network holds was written


def test_readers_before_see_what_was_before():
    def function(m, x):
        mask = x.new_zeros(4, 4)
        y = x + mask
        mask[0] = 1.0
        return y, x + mask

    a, b = captured(function)(X)
    assert torch.equal(a, X)
    assert torch.equal(b[:, 0], X[:, 0] + 1.0)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda m, x: write(x * 2, 1.0), "writes into a part of a tensor"),
        (lambda m, x: write(x.new_zeros(4, 4), x[0, 0]), "writes into a part of a tensor"),
        (lambda m, x: write(m.table, 1.0) + x, "writes to 'table', which the model holds"),
    ],
)
def test_parts_of_values_are_not(function, words):
    with pytest.raises(CaptureError, match=f"(?s){words}.*What to do"):
        trace(Net(function), (X,))


def write(tensor, value):
    tensor[0] = value
    return tensor


def test_a_view_that_is_read_later_is_refused():
    def function(m, x):
        mask = torch.zeros(x.size(1), 4)
        view = mask.view(-1)
        mask[0] = 1.0
        return x + mask + view.view(4, 4)

    with pytest.raises(CaptureError, match=r"(?s)overwrites memory that 'view' shares.*What to do"):
        trace(Net(function), (X,))


def test_a_size_is_a_number_where_only_a_number_will_do():
    """And asserted, since the loop would be another for other sizes."""
    gm = captured(lambda m, x: sum(x[:, i] for i in range(x.shape[1])))
    with pytest.raises(ShapeError, match="a number in '' was captured for other shapes"):
        gm(torch.randn(2, 3, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.reshape(-1, int(x.shape[1] ** 0.5), 2, 4),
        lambda m, x: x.reshape(-1, int(math.sqrt(x.shape[1])), 2, 4),
        lambda m, x: x.reshape(int(x.shape[1] * x.shape[2] / 2 / 2), -1),
        lambda m, x: x * float(x.shape[1] / 3),
        lambda m, x: x * int(x.shape[1] > 3),
    ],
)
def test_a_number_of_any_kind_is_asserted(function):
    """The sides of so many patches, windows in a batch: `int` has to give a plain number."""
    gm = captured(function)
    with pytest.raises(ShapeError, match="a number in '' was captured for other shapes"):
        gm(torch.randn(2, 1, 4))


@pytest.mark.parametrize("kind", [int, float])
def test_a_value_is_no_number(kind):
    with pytest.raises(CaptureError, match=r"(?s)mean.' is no .* that shapes decide.*What to do"):
        trace(Net(lambda m, x: x * kind(x.mean())), (X,))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.reshape(len(x), -1),
        lambda m, x: sum(x.unbind()),
        lambda m, x: sum(torch.unbind(x, dim=0)),
        lambda m, x: sum(part.sum(0) for part in x.split(2)),
        lambda m, x: x * len(torch.split(x, 1)),
    ],
)
def test_a_length_is_asserted(function):
    """`len` has to give a plain number, which would mix samples in batches of another size."""
    gm = captured(function)
    with pytest.raises(ShapeError, match="captured for other shapes"):
        gm(torch.randn(4, 4, 4))


def test_lengths_that_no_batch_changes_are_not_asserted():
    def function(m, x):
        parts = (*x.unbind(1), *x.split(3, -1)[0].split([1, 2], -1), *m.weight.split(2))
        return x * (len(parts) + len(m.weight) + len(x.shape) + len(x[0])), *x.chunk(2, 1)

    captured(function)(torch.randn(5, 4, 4))


def test_a_size_that_nobody_knows_is_no_number():
    with pytest.raises(CaptureError, match=r"(?s)test_decided.py:\d+.*pass example_inputs"):
        captured(lambda m, x: sum(x[:, i] for i in range(x.shape[1])), None)


def test_what_is_drawn_for_a_size_is_refused_in_eval():
    with pytest.raises(CaptureError, match=r"(?s)torch.rand of a size that is traced.*What to do"):
        trace(Net(lambda m, x: x * torch.rand(x.shape[0], 1, 1)), (X,))


def test_a_tensor_that_the_forward_makes_is_one_constant_in_both_modes():
    gm = captured(lambda m, x: (x + torch.ones(4).sqrt() + torch.ones(4)) * torch.ones(4).cumsum(0))
    assert not [node for node in gm.graph.nodes if node.op == "call_module"]  # no Switch
    assert {name for name in gm.state_dict() if "constant" in name} == {
        "_tensor_constant0",
        "_tensor_constant1",
    }
