"""Matrix products: sums against Python's integers, and the proof that 32 bits hold them.

By hand, uint8, s_a = 1/2, z_a = 3, s_b = 1/4, z_b = 10, s_y = 1, z_y = 20:

    A = [4 7], B = [12 9]ᵀ        Σ = 1·2 - 4·1 = -2        ⌊-2/8 + 1/2⌋ = 0        q_y = 20
"""

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import AccumulatorError
from fxquant.ops.matmul import MATMUL, limits_of
from fxquant.schemes import UINT8, QuantScheme
from tests import laws, truth
from tests.ops.calls import integers, qparams, real_call

A, B, Y = qparams(0.5, 3), qparams(0.25, 10), qparams(1.0, 20)
SIGNED = QuantScheme(symmetric=False)
SHAPES = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)),
          ((5, 2, 3), (5, 3, 4)), ((2, 1, 4, 7), (3, 7, 2)), ((2, 300), (300, 2)), ((2, 0), (0, 2))]


def codes_of(shape, scheme, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(scheme.qmin, scheme.qmax + 1, shape, generator=generator)
    return codes.to(scheme.dtype)


def test_by_hand():
    a, b = torch.tensor([[4, 7]], dtype=torch.uint8), torch.tensor([[12], [9]], dtype=torch.uint8)
    assert integers("matmul", (A, B), Y, a, b).tolist() == [[20]]


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("a", [A, qparams(0.011, -3, SIGNED)])
def test_every_sum_is_exact_and_rounded_once(left, right, a):
    x, y = codes_of(left, a.scheme, 0), codes_of(right, B.scheme, 1)
    exact = torch.matmul(x.long() - a.zero_point, y.long() - B.zero_point)  # torch sums int64
    for out in (Y, qparams(0.3, 100), qparams(25.0, -5, SIGNED)):
        unit = truth.scale(a) * truth.scale(B)
        expected = [truth.code(total * unit, out) for total in exact.flatten().tolist()]
        assert integers("matmul", (a, B), out, x, y).flatten().tolist() == expected


def test_sums_beyond_float32_are_exact():
    """20,000 products up to 127·255, as many of the other sign, and 1 + 2 + 3: a small sum after
    a large one. float32 would be wrong by several units; a unit is a step here.
    """
    terms = 20_000
    once = codes_of((4, terms), UINT8, 0)
    a = torch.cat([once, once, torch.ones(4, 3, dtype=torch.uint8)], 1)
    b = torch.tensor([255] * terms + [1] * terms + [129, 130, 131])
    found = integers(
        "matmul", (qparams(1.0, 0), qparams(1.0, 128)), qparams(1.0, 7), a, b.to(torch.uint8)
    )
    assert found.tolist() == [7 + 6] * 4


def test_the_bound_is_that_of_the_scheme_and_its_zero_point():
    four = QuantScheme(bits=4, signed=False, symmetric=False)
    numbers = MATMUL.numbers(real_call((qparams(1.0, 12, four), qparams(1.0, -28, SIGNED)), Y, {}))
    assert int(numbers.bound) == 12 * 155


def test_more_products_than_32_bits_hold_are_refused():
    numbers = MATMUL.numbers(real_call((qparams(1.0, 0), qparams(1.0, 0)), Y, {}))
    limits_of(numbers).prove_fits(33_025, "it")  # 33,025·255² = 2,147,450,625 < 2³¹
    with pytest.raises(AccumulatorError, match=r"(?s)it sums 33026 products.*What to do"):
        limits_of(numbers).prove_fits(33_026, "it")


class Outer(nn.Module):
    def forward(self, x):
        return x @ x.transpose(0, 1)


@pytest.mark.parametrize("known", [True, False])
def test_convert_refuses_what_the_example_inputs_show_and_a_call_what_only_it_shows(known):
    x = torch.rand(2, 40_000)
    prepared = fxquant.prepare_qat(Outer(), x if known else None)
    laws.settle(prepared, x)
    if known:
        with pytest.raises(AccumulatorError, match="node 'matmul'.*sums 40000 products"):
            fxquant.convert(prepared)
    else:
        quantized = fxquant.convert(prepared)
        laws.assert_equal(quantized(x[:, :50]), prepared(x[:, :50]))
        for network in (quantized, prepared):
            with pytest.raises(AccumulatorError, match="a matrix product sums 40000 products"):
                network(x)
