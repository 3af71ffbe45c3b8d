"""bound_masks: what leaves columns of a softmax out is a finite number.

By hand: scores 1 and 3, the second left out. e^(3 - 128 - 1) = 2e-55 is 0 in float32: shares 1, 0.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import UnsupportedOperatorError
from fxquant.graph.trace import trace
from fxquant.passes import BoundMasks, Canonicalize
from fxquant.schemes import INT16, UINT8
from tests import laws
from tests.ops.calls import integers, qparams
from tests.passes.shapes import shape

INF = float("inf")
X = 3 * torch.randn(2, 4, 4)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        keep = torch.ones(4, 4).tril()
        self.register_buffer("mask", keep == 0)
        self.register_buffer("low", torch.zeros(4, 4).masked_fill(keep == 0, -INF))
        self.register_buffer("lowest", torch.tensor(-INF))
        self.bias = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.function(self, x)


def bound(function):
    net = Net(function)
    gm = trace(copy.deepcopy(net), (X,))
    Canonicalize().run(gm)
    record = BoundMasks().run(gm)
    torch.testing.assert_close(gm(X.clone()), net(X.clone()), rtol=1e-6, atol=0.0)
    return gm, record


def test_by_hand():
    net = Net(lambda m, x: F.softmax(x.masked_fill(m.mask, -INF), -1))
    gm = trace(copy.deepcopy(net))
    for step in (Canonicalize(), BoundMasks()):
        step.run(gm)
    assert gm(torch.tensor([[1.0, 3.0, 3.0, 3.0]] * 4))[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_what_is_left_out_far_above_the_rest_has_a_share():
    """The pass is exact for scores less than 24 apart: d above, a share is e^(d - 128)."""
    net = Net(lambda m, x: x.masked_fill(m.mask, -INF).softmax(-1))
    gm = trace(copy.deepcopy(net))
    for step in (Canonicalize(), BoundMasks()):
        step.run(gm)
    for d, share in ((24.0, 0.0), (100.0, 6.914e-13), (128.0, 0.5)):
        row = gm(torch.tensor([[0.0, d, -INF, -INF]] * 4))[0]
        assert row[1].item() == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.masked_fill(m.mask, -INF).softmax(-1),
        lambda m, x: torch.masked_fill(x, mask=m.mask, value=-1e9).softmax(-1),
        lambda m, x: x.masked_fill_(m.mask, m.lowest).softmax(-1),
        lambda m, x: torch.where(m.mask, -INF, x).softmax(-1),
        lambda m, x: torch.where(~m.mask, x, torch.finfo(x.dtype).min).softmax(-1),
        lambda m, x: torch.where(~m.mask, x, m.lowest).softmax(-1),
        lambda m, x: x.where(m.mask.logical_not(), m.lowest).softmax(-1),
        lambda m, x: (x + m.low).softmax(-1),
        lambda m, x: (x + 1e4 * m.low.clamp(-1.0)).softmax(-1),
        lambda m, x: (x + m.low).view(2, 1, 4, 4).transpose(-1, -2).mT.softmax(-1),
        lambda m, x: ((x + m.low) + m.bias).softmax(-1),
        lambda m, x: x.masked_fill(m.mask, -INF).masked_fill(m.mask.mT & m.mask, -INF).softmax(-1),
    ],
)
def test_rewrites(function):
    gm, record = bound(function)
    assert record.changed
    assert set(shape(gm).split()) == {"add", "softmax"}
    again = BoundMasks().run(gm)
    assert again.changed == ()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: x.masked_fill(m.mask, -5.0).softmax(-1), "columns with -5 may have a share"),
        (lambda m, x: x.masked_fill(x > 8, -INF).softmax(-1), "the input decides the mask 'gt'"),
        (lambda m, x: x.masked_fill(m.mask, -1e3).relu(), "something else than a softmax reads it"),
        (lambda m, x: (y := x.masked_fill(m.mask, -1e3)).softmax(-1) + y, "something else than a"),
        (lambda m, x: torch.where(m.mask, x, x + 1), None),
        (lambda m, x: (x + m.bias).softmax(-1), None),
        (lambda m, x: (x + m.low.clamp(-200.0)).relu(), None),  # its own affair
    ],
)
def test_leaves_alone(function, reason):
    _, record = bound(function)
    assert record.changed == ()
    assert [entry.text[: len(reason or "")] for entry in record.left_alone] == (
        [] if reason is None else [reason]
    )


ROW = torch.zeros(4, 4).bool().index_fill(0, torch.tensor([2]), True)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (x + m.low.new_full((4, 4), -INF)).softmax(-1),
        lambda m, x: (x + torch.where(m.row, -INF, 0.0)).softmax(-1),
        lambda m, x: x.masked_fill(m.row, -INF).softmax(-1),
        lambda m, x: x.masked_fill(m.row.T, -1e9).softmax(x.dim() - 2),
        lambda m, x: torch.where(m.row, -INF, x).reshape(-1, 4).softmax(1),
        lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=~m.row),
    ],
)
def test_a_row_of_which_nothing_is_left_is_refused(function):
    """NaN in float, or 0, or equal shares, as spelled; a sum would give the row its own."""
    net = Net(function)
    net.register_buffer("row", ROW)
    with pytest.raises(UnsupportedOperatorError, match="leaves nothing of a row"):
        fxquant.prepare_qat(net, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.masked_fill(m.row.T, -INF).softmax(-1),  # a column of padding
        lambda m, x: x.masked_fill(m.row, -INF).softmax(-2),
        lambda m, x: (x + torch.where(m.row.T, -INF, 0.0)[2]).softmax(-1),
    ],
)
def test_a_column_that_no_row_has_is_kept(function):
    net = Net(function)
    net.register_buffer("row", ROW)
    prepared = fxquant.prepare_qat(net, X)
    torch.testing.assert_close(prepared.eval()(X), net(X))
    laws.settle(prepared, X)
    laws.assert_equal(fxquant.convert(prepared)(X), prepared(X))


@pytest.mark.parametrize("low", [-INF, -1e9, -100.0, -20.0])
def test_scores_with_a_mask_have_16_bits(low):
    """With 8, a step of scores down to -100 would be 0.4; these are as good as without a mask."""
    torch.manual_seed(0)
    net = Net(lambda m, x: torch.softmax(x + low_mask(m, low), -1))
    prepared = fxquant.prepare_qat(net, X)
    assert prepared.fxquant.add.quantizer.scheme == INT16
    assert all(source.scheme == INT16 for source in prepared.fxquant.add.sources)
    laws.settle(prepared, X)
    quantized = fxquant.convert(prepared)
    with torch.no_grad():
        assert torch.equal(quantized(X), prepared(X))
        error = (quantized(X) - net(X)).abs().max()
        assert quantized(X)[net(X) == 0].eq(0).all()
    assert error < 0.02


def low_mask(m, low):
    return torch.where(m.mask, low, 0.0)


def test_sums_of_16_bits_are_within_one_step():
    """8-bit scores, a 16-bit mask: the sum as real numbers have it, rounded once."""
    scores, mask = qparams(0.07, 130), qparams(0.002, 2**15 - 1, INT16)
    total = qparams(0.0022, 28000, INT16)
    codes = torch.randint(0, 256, (50, 50)).to(torch.uint8)
    low = torch.randint(-(2**15), 2**15, (50,)).to(torch.int16)
    found = integers("add", (scores, mask), total, codes, low)
    real = (codes - 130.0).double() * 0.07 + (low.double() - (2**15 - 1)) * 0.002
    expected = torch.floor(real / 0.0022 + 0.5) + 28000
    assert (found - expected.clamp(-(2**15), 2**15 - 1)).abs().max() <= 1


def test_masks_that_others_read_have_8_bits():
    """Or sums that others read: nothing but a softmax makes 0 of what is so low."""
    prepared = fxquant.prepare_qat(Net(lambda m, x: x + m.low.clamp(-100.0)), X)
    assert prepared.fxquant.add.quantizer.scheme == UINT8
