"""Which values get 16 bits, what keeps others at 8, and what it gains."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.observers import Fixed
from fxquant.sites.call_site import InputQuantizer
from fxquant.sites.flow import sites
from tests import laws


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.call = forward
        self.norm, self.long = nn.LayerNorm(8), nn.LayerNorm((512, 8, 9))
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return self.call(self, x)


def wide(forward, x, **config):
    """The names of the operators whose results have 16 bits, and of what enters with 16."""
    prepared = fxquant.prepare_qat(Net(forward), x, fxquant.QuantConfig(**config))
    names = []
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(node.target) if node.op == "call_module" else None
        output = getattr(module, "output", None)
        if getattr(getattr(output, "scheme", None), "bits", 8) == 16:
            names.append("input" if isinstance(module, InputQuantizer) else module.op.name)
    laws.settle(prepared, x)
    laws.assert_equal(fxquant.convert(prepared)(x), prepared(x))
    return " ".join(names)


X = torch.randn(2, 5, 8)
CASES = {
    "what a norm reads": (lambda m, x: m.norm(m.a(x)), "linear"),
    "behind moves and what keeps its range": (
        lambda m, x: m.norm(F.relu6(m.a(x).clamp(min=-9).transpose(0, 1))[1:]), "linear",
    ),
    "a stream": (
        lambda m, x: m.norm(m.a(x) + m.b(m.norm(y := m.a(x) + m.table)) + y),
        "linear linear input add linear add",
    ),
    "a class token": (
        lambda m, x: m.norm(torch.cat([m.table[None, :1].expand(2, -1, -1), m.a(x)], 1)),
        "input linear cat",
    ),
    "scores": (lambda m, x: torch.matmul(x, x.transpose(1, 2)).softmax(-1), "matmul"),
    "shares that weigh": (lambda m, x: m.a(x).softmax(-1) * x, "linear softmax"),
    "not shares that a product of matrices reads": (
        lambda m, x: torch.matmul(m.a(x[..., :8]).softmax(-1), x.transpose(1, 2)), "linear",
    ),
    "not what a layer reads, too": (lambda m, x: (m.norm(y := m.a(x)), m.b(y)), ""),
    "nor what a product reads, too": (lambda m, x: m.norm(y := m.a(x)) * y, ""),
    "nor what goes into such a sum": (lambda m, x: m.norm(y := m.a(x) + x) + m.b(y), ""),
    "what is an output, too": (lambda m, x: (m.norm(y := m.a(x)), y), "linear"),
    "not what only outputs read": (lambda m, x: m.a(x), ""),
}


@pytest.mark.parametrize(("forward", "names"), CASES.values(), ids=CASES)
def test_which(forward, names):
    assert wide(forward, X) == names
    assert wide(forward, X, widen=False) == ""


def test_not_rows_that_are_too_long():
    """512·8·9 = 36,864 codes of 16 bits could leave the 64 bits of a norm's sums."""
    x = torch.randn(1, 512, 8, 9)
    assert wide(lambda m, x: m.long(x), x) == ""
    assert wide(lambda m, x: F.layer_norm(x, x.shape[1:]), x) == ""
    assert wide(lambda m, x: F.normalize(x, dim=(1, 2, 3)), x) == ""
    assert wide(lambda m, x: F.normalize(x, dim=(1, 2)), x) == "input"


@pytest.mark.parametrize("examples", [X, None], ids=["examples", "none"])
@pytest.mark.parametrize(
    "rows", [lambda x: x.shape[-1:], lambda x: x.size()[1:], lambda x: (x.shape[-1],)]
)
def test_rows_whose_length_the_graph_asks_for(rows, examples):
    forward = lambda m, x: F.layer_norm(y := m.a(x), rows(y))  # noqa: E731
    prepared = fxquant.prepare_qat(Net(forward), examples)
    (scheme,) = (site.output.scheme for _, site in sites(prepared) if site.op.name == "linear")
    assert scheme.bits == 16
    laws.settle(prepared, X)
    laws.assert_equal(fxquant.convert(prepared)(X), prepared(X))


def test_rows_of_very_different_sizes_survive():
    """One row is a hundredth of the others: at 8 bits a norm would blow its rounding up."""
    x = torch.randn(16, 5, 8) * torch.tensor([1, 1, 0.01, 1, 1]).reshape(1, 5, 1)
    net, error = Net(lambda m, x: m.norm(x)), {}
    for widen in (False, True):
        prepared = fxquant.prepare_qat(net, x, fxquant.QuantConfig(widen=widen))
        laws.settle(prepared, x)
        error[widen] = (prepared(x) - net(x)).square().mean().sqrt().item()
    assert error[True] < error[False] / 10


def test_attention_is_observed_and_other_shares_are_known():
    prepared = fxquant.prepare_qat(
        Net(lambda m, x: (torch.matmul(x.softmax(1), m.a(x).transpose(1, 2)), x.softmax(-1))), X
    )
    known = [
        isinstance(site.output.observer.calibrator, Fixed)
        for _, site in sites(prepared)
        if site.op.name == "softmax"
    ]
    assert known == [False, True]
