"""Softmax in integers against the real one.

By hand, uint8, s = 1/2, s_y = 1/256, codes 130 and 128:

    e = 2²⁰, round(2²⁰·e⁻¹) = 1048576, 385750        Σ = 1434326
    ⌊256·e/Σ + 1/2⌋ = ⌊187.65⌋, ⌊69.35⌋ = 187, 69
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import AccumulatorError, UnsupportedOperatorError
from fxquant.ops import op_named
from fxquant.ops.softmax import MAX_COLUMNS
from fxquant.schemes import INT16, QuantScheme
from tests import laws, truth
from tests.ops.calls import all_codes, integers, qparams, real_call

SCALES = [2**-8, 0.0173, 0.11, 1.0, 30.0]
UNIT = qparams(1 / 255, 0)


def rounded(codes, x, y):
    """Softmax in float64 over the last dimension, rounded to codes."""
    real = torch.softmax((codes.double() - x.zero_point) * x.scale.double(), -1)
    steps = torch.floor(real / y.scale.double() + 0.5) + y.zero_point
    return steps.clamp(y.scheme.qmin, y.scheme.qmax)


def random_rows(rows, columns, seed=0):
    """Rows of codes of every spread, from nearly all alike to all of the range."""
    generator = torch.Generator().manual_seed(seed)
    spread = 2 ** (torch.rand(rows, 1, generator=generator) * 8)
    noise = torch.rand(rows, columns, generator=generator) * spread
    return (noise + torch.rand(rows, 1, generator=generator) * (256 - spread)).to(torch.uint8)


def test_by_hand():
    codes = torch.tensor([130, 128], dtype=torch.uint8)
    found = integers("softmax", (qparams(0.5, 128),), qparams(1 / 256, 0), codes, dim=0)
    assert found.tolist() == [187, 69]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_pair_of_codes(scale, bits):
    """1 / (1 + e^(x_2 - x_1)), which depends on the difference alone."""
    scheme = QuantScheme(bits=bits, signed=False, symmetric=False)
    x, y = qparams(scale, 1, scheme), qparams(1 / (2**bits - 1), 0, scheme)
    pairs = torch.cartesian_prod(all_codes(scheme), all_codes(scheme))
    differences = (pairs[:, 0].long() - pairs[:, 1]).tolist()
    expected = {
        d: truth.code(truth.sigmoid(d * truth.scale(x)), y) for d in sorted(set(differences))
    }
    found = integers("softmax", (x,), y, pairs, dim=1)[:, 0].tolist()
    wrong = [abs(q - expected[d]) for q, d in zip(found, differences, strict=True)]
    assert max(wrong) <= 1
    assert sum(w > 0 for w in wrong) <= len(wrong) / 1000


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("columns", [1, 3, 17, 256, 2048])
def test_random_rows_are_within_one_step(columns, scale):
    x, codes = qparams(scale, 131), random_rows(max(20_000 // columns, 10), columns)
    for y in (UNIT, qparams(0.0017, 3), qparams(1 / 127, 0, QuantScheme())):
        error = (integers("softmax", (x,), y, codes, dim=-1) - rounded(codes, x, y)).abs()
        assert error.max() <= 1
        assert (error > 0).double().mean() <= 1e-3


@pytest.mark.parametrize("scale", [130 / 2**16, 1e-5, 0.0005, 0.01, 20.0])
def test_codes_of_16_bits_are_within_one_step(scale):
    """As scores with a mask have: fine steps down to -128."""
    x = qparams(scale, 12345, INT16)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(2**15), 2**15, (50, 40), generator=generator).to(torch.int16)
    codes[:, ::3] = -(2**15)
    found = integers("softmax", (x,), UNIT, codes, dim=-1)
    assert (found - rounded(codes, x, UNIT)).abs().max() <= 1


def test_the_table_of_16_bits_ends_where_it_is_0():
    """s = 1/512: ln(2²¹)·512 = 7452.8, so that 7453 is the first distance without a share."""
    call = real_call((qparams(2**-9, 0, INT16),), UNIT, {"dim": 0})
    table = op_named("softmax").numbers(call).table
    assert len(table) < 7460
    assert (table[7452], table[7453], table[-1]) == (1, 0, 0)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_over_any_dimension(dim):
    x, codes = qparams(0.02, 90), random_rows(6, 35).reshape(6, 5, 7)
    found = integers("softmax", (x,), UNIT, codes, dim=dim)
    last = integers("softmax", (x,), UNIT, codes.movedim(dim, -1).contiguous(), dim=-1)
    assert torch.equal(found, last.movedim(-1, dim))


@pytest.mark.parametrize(("scale", "code"), [(2.0**-17, 1), (2.0**-24, 128), (0.9, 0), (3e38, 0)])
def test_many_columns_do_not_overflow(scale, code):
    """2¹⁷ equal ones give 2⁻¹⁷ each, whatever the shift of the multiplier."""
    codes = torch.full((1, MAX_COLUMNS), 255, dtype=torch.uint8)
    found = integers("softmax", (qparams(0.1, 0),), qparams(scale, 0), codes, dim=1)
    assert found.unique().tolist() == [code]


def test_more_columns_are_refused():
    codes = torch.zeros(1, MAX_COLUMNS + 1, dtype=torch.uint8)
    with pytest.raises(AccumulatorError, match=r"(?s)softmax over 131073 values.*What to do"):
        integers("softmax", (UNIT,), UNIT, codes, dim=1)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (4, 3, 5)])
def test_over_the_channels_of_an_image_with_or_without_a_batch(shape):
    x = torch.randn(shape)
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Softmax2d()))
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    assert (quantized(x) - x.softmax(-3)).abs().max() < 2 / 255


class Implicit(nn.Module):
    def forward(self, x):
        return F.softmax(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [(nn.Sequential(nn.Softmax()), "call_module 0"), (Implicit(), "call_function softmax")],
)
def test_without_a_dimension_it_has_no_integer_form(model, words):
    with pytest.raises(UnsupportedOperatorError, match=words):
        fxquant.prepare_qat(model)


def test_no_column_at_all():
    empty = torch.zeros(0, 3, dtype=torch.uint8)
    assert integers("softmax", (UNIT,), UNIT, empty, dim=1).shape == (0, 3)
