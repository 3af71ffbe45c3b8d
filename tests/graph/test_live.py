"""Numbers that a training script sets later stay live in what only training does."""

import copy

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import CaptureError
from fxquant.graph.compare import largest_differences
from fxquant.graph.trace import trace
from tests import laws

X = torch.randn(4, 3, 6, 6)


def opaque_drop_path(x, prob):
    """As published code writes it: allocates, asks for the device, overwrites what it is given."""
    if prob > 0.0:
        keep = 1.0 - prob
        mask = torch.FloatTensor(x.size(0), 1, 1, 1).bernoulli_(keep)
        x.div_(keep)
        x.mul_(mask)
    return x


def traced_drop_path(x, prob):
    keep = 1.0 - prob
    return x / keep * torch.empty_like(x[:, :1, :1, :1]).bernoulli_(p=0.5)


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.p = kind, 0.25
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x, prob):
        a, b = torch.relu(self.a(x)), self.b(x)
        if self.kind == "inside":
            return (opaque_drop_path(a, prob) if self.training else a) + b
        if self.kind == "own":
            prob = self.p
        if self.training and prob > 0.0:
            a = traced_drop_path(a, prob) if self.kind == "traced" else opaque_drop_path(a, prob)
        elif self.training and self.kind == "else":
            b = b * 2.0
        return a + b


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells = nn.ModuleList([Cell(kind), Cell(kind)])
        self.drop_path_prob, self.scale = 0.0, 2.0

    def forward(self, x):
        for cell in self.cells:
            x = cell(x, self.drop_path_prob)
        if self.training and self.scale >= 2.0:
            x = x * self.scale
        return x


KINDS = ("opaque", "traced", "inside", "else", "own")


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_follows_the_numbers(kind, start, examples):
    model = Net(kind)
    model.drop_path_prob = start
    gm = trace(copy.deepcopy(model), (X,) if examples else None)
    for network in (gm, copy.deepcopy(gm)):
        for prob, scale, own in ((0.0, 2.0, 0.25), (0.5, 1.0, 0.0), (0.2, 3.0, 0.7)):
            for one in (model, network):
                one.drop_path_prob, one.scale, one.cells[1].p = prob, scale, own
            assert list(largest_differences(network, model, (X,), (False, True))) == [0.0, 0.0]


@pytest.mark.parametrize(
    "number", [lambda p: -p, lambda p: +p, lambda p: abs(p - 1.0), lambda p: 3.5 // p + 2.0 % p]
)
def test_what_is_computed_from_a_number_follows_it(number):
    class Scaled(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 3, 1)
            self.p = 0.75

        def forward(self, x):
            return super().forward(x) * number(self.p) if self.training else super().forward(x)

    model = Scaled()
    gm = trace(copy.deepcopy(model))
    for p in (0.75, 0.5):
        model.p = gm.p = p
        assert list(largest_differences(gm, model, (X,), (False, True))) == [0.0, 0.0]


def test_prepared_and_converted():
    model = Net("opaque")
    prepared = fxquant.prepare_qat(model, X)
    laws.settle(prepared, X)
    prepared.train()
    torch.manual_seed(0)
    without = prepared(X)
    prepared.drop_path_prob = 0.5
    assert not torch.equal(prepared(X), without)
    prepared(X).sum().backward()
    assert prepared.cells[0].a.weight.grad is not None
    prepared.eval()
    quantized = fxquant.convert(prepared)
    assert torch.equal(quantized(X), prepared(X))
    assert "drop_path_prob" not in quantized.code


def test_a_number_that_is_set_too_late_is_named():
    model = Net("opaque")
    del model.drop_path_prob
    with pytest.raises(CaptureError, match=r"(?s)'drop_path_prob'.*set that attribute before"):
        fxquant.prepare_qat(model, X)


def test_ways_that_only_raise_are_no_obstacle():
    class Checked(nn.Conv2d):
        limit = 1.0

        def __init__(self):
            super().__init__(3, 3, 1)
            self.limit = 1.0

        def forward(self, x):
            if self.limit < 0.5:
                raise ValueError("too small")
            return super().forward(x)

    prepared = fxquant.prepare_qat(nn.Sequential(Checked()), X)
    assert [name for name, _ in prepared.fxquant.named_children()] == ["conv2d", "quantize_input_1"]


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_a_comparison_inside_another_is_refused(a, b):
    """What runs where both hold would else run where neither, or just one, is asked."""

    class Nested(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 3, 1)
            self.a, self.b = a, b

        def forward(self, x):
            x = super().forward(x)
            if self.training and self.a > 0.0:
                x = x * 2.0
                if self.b > 0.0:
                    x = x + 1.0
            return x

    with pytest.raises(CaptureError, match=r"(?s)asks gt\(b, 0.0\).*What to do: make one"):
        fxquant.prepare_qat(Nested())


def test_a_comparison_inside_itself_is_none():
    class Twice(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 3, 1)
            self.p = 0.5

        def forward(self, x):
            x = super().forward(x)
            return self.scaled(x) if self.training and self.p > 0.0 else x

        def scaled(self, x):
            return x * self.p if self.p > 0.0 else x

    model = Twice()
    gm = trace(copy.deepcopy(model))
    for model.p in (0.5, 0.0, 0.25):
        gm.p = model.p
        assert list(largest_differences(gm, model, (X,), (False, True))) == [0.0, 0.0]


class Numbers(nn.Module):
    """Two numbers, and a training that asks for them as `function` does."""

    def __init__(self, function):
        super().__init__()
        self.function, self.conv, self.last = function, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.p, self.r = 0.0, 0.0

    def forward(self, x):
        y = self.conv(x)
        return self.last(self.function(self, y) if self.training else y)

    def method(self, y):
        return y * torch.empty(y.shape[0], 1, 1, 1).bernoulli_(0.5)


def in_a_row(m, y):
    if m.p > 0.0:
        y = y * 3.0
    if m.r > 0.0:
        y = y + 1.0
    return y


def nested(m, y):
    if m.p > 0.0:
        y = y * 3.0 if m.r > 0.5 else y * 2.0
    return y


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (in_a_row, "decided by two comparisons of numbers"),
        (nested, "only where another comparison holds"),
        (lambda m, y: m.method(y) if m.p > 0.0 else y, "cannot capture .* in train"),
    ],
)
def test_what_cannot_follow_is_refused(function, message):
    with pytest.raises(CaptureError, match=rf"(?s){message}.*What to do"):
        fxquant.prepare_qat(Numbers(function), X)


def test_a_temperature_of_alphas_is_live_in_both_modes():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.alphas, self.tau = nn.Conv2d(3, 3, 1), torch.randn(2), 1.0

        def forward(self, x):
            w = torch.softmax(self.alphas / self.tau, -1)
            return w[0] * x + w[1] * self.conv(x)

    model = Tempered()
    prepared = fxquant.prepare_qat(model, X)
    for one in (model, prepared):
        one.tau = 0.1
    torch.testing.assert_close(prepared.eval()(X), model(X))
    laws.settle(prepared, X)
    quantized = fxquant.convert(prepared)
    assert torch.equal(quantized(X), prepared(X))
    prepared.tau = 9.0
    assert not torch.equal(quantized(X), prepared(X))


@pytest.mark.parametrize("write", ["new", "count", "kept"])
def test_a_forward_that_sets_attributes_is_refused(write):
    class Writes(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 3, 1)
            self.count, self.kept = 1000, None

        def forward(self, x):
            y = super().forward(x)
            setattr(self, write, self.count + 1 if write == "count" else y)
            return y

    with pytest.raises(CaptureError, match=f"sets its attribute '{write}'"):
        fxquant.prepare_qat(nn.Sequential(Writes()), X)


def test_floats_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = numpy.float64(0.5)

        def forward(self, x):
            return x * self.scale

    assert torch.equal(fxquant.prepare_qat(Scaled(), X).eval()(X), X * 0.5)
