"""Products, differences and plain numbers: every pair of codes against exact fractions.

By hand, mul, uint8, s_a = 1/2, z_a = 3, s_b = 1/4, z_b = 10, s_y = 1, z_y = 20, codes 6 and 11:

    (6 - 3)/2 · (11 - 10)/4 = 3/8        ⌊3/8 + 1/2⌋ = 0        q_y = 20
"""

from fractions import Fraction

import pytest
import torch

from fxquant.intmath import Target
from fxquant.ops import op_named
from fxquant.schemes import INT16, QuantScheme
from tests import truth
from tests.ops.calls import all_codes, integers, pairs, qparams, real_call

SIGNED = QuantScheme(symmetric=False)
A = [qparams(0.5, 3), qparams(0.0173, 128), qparams(0.4, -100, SIGNED)]
B = [qparams(0.25, 10), qparams(1 / 255, 0), qparams(3.1, 17, SIGNED)]


def found(name, a, b, y):
    return integers(name, (a, b), y, *pairs(a, b)).numpy()


@pytest.mark.parametrize("y", [qparams(1.0, 20), qparams(0.037, 131), qparams(2.3, -7, SIGNED)])
@pytest.mark.parametrize("b", B)
@pytest.mark.parametrize("a", A)
def test_every_product_is_rounded_correctly(a, b, y):
    assert (found("mul", a, b, y) == truth.product(a, b, y)).all()


@pytest.mark.parametrize("y", [qparams(1.0, 20), qparams(0.037, 131), qparams(2.3, -7, SIGNED)])
@pytest.mark.parametrize("b", B)
@pytest.mark.parametrize("a", A)
def test_every_quotient_is_rounded_correctly(a, b, y):
    assert (found("div", a, b, y) == truth.quotient(a, b, y)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 255), (3, 250)])
def test_what_is_divided_by_zero_is_an_end_of_the_range(low, high):
    """Also where an activation has moved the ends; 0/0 is the code of 0, limited to them."""
    a, b, y = qparams(0.1, 128), qparams(0.1, 7), qparams(0.1, 2)
    call = real_call((a, b), y, {})
    call = call._replace(target=Target(y, torch.tensor(low), torch.tensor(high)))
    div = op_named("div")
    above = torch.tensor([0, 127, 128, 129, 255], dtype=torch.uint8)
    ours = div.kernel(div.numbers(call), torch.uint8, above, torch.full_like(above, 7))
    assert ours.tolist() == [low, low, max(low, 2), high, high]


def test_an_end_of_16_bits_is_as_far_as_it_is():
    a, b, y = qparams(0.1, 128), qparams(0.1, 7), qparams(1e-4, -32768, INT16)
    above, below = (torch.tensor(codes, dtype=torch.uint8) for codes in ([127, 128, 129], [7] * 3))
    assert integers("div", (a, b), y, above, below).tolist() == [-32768, -32768, 32767]


@pytest.mark.parametrize("y", [qparams(0.7123, 20), qparams(0.037, 131), qparams(2.17, -7, SIGNED)])
@pytest.mark.parametrize("b", B)
@pytest.mark.parametrize("a", A)
def test_differences_are_within_one_step_and_mostly_correct(a, b, y):
    """Their multipliers have 21 bits, so that the sum fits 32."""
    wrong = abs(found("sub", a, b, y) - truth.difference(a, b, y))
    assert wrong.max() <= 1
    assert wrong.mean() <= 2e-4


@pytest.mark.parametrize("n", [2, 8])
def test_sums_of_shares_are_within_one_step_and_mostly_correct(n):
    """Shares of 16 bits have factors of 2^-16 or so; their multipliers keep 19 to 21 bits."""
    generator = torch.Generator().manual_seed(n)
    x = [qparams(0.02 + 0.01 * i, 20 * i) for i in range(n)]
    share, y = qparams(1 / 65535, -32768, INT16), qparams(0.03, 100)
    codes = torch.randint(256, (n, 20000), generator=generator, dtype=torch.uint8)
    real = torch.softmax(torch.randn(n, 20000, generator=generator), 0)
    shares = ((real * 65535).round() - 32768).to(torch.int16)
    ours = integers("sum_of_products", (*x, *(share,) * n), y, *codes, *shares).numpy()
    expected = truth.sum_of_products(x, [share] * n, codes.numpy(), shares.numpy(), y)
    wrong = abs(ours.astype(int) - expected)
    assert wrong.max() <= 1
    assert wrong.mean() <= 1e-4


def test_by_hand():
    codes = (torch.tensor([q], dtype=torch.uint8) for q in (6, 11))
    assert integers("mul", (A[0], B[0]), qparams(1.0, 20), *codes).tolist() == [20]


NUMBERS = [(1.0, 1.5), (-1.0, 0.0), (2.0, 0.0), (1 / 3, 0.0), (-0.7, 12.25), (1e-9, 0.1),
           (1e9, -1.0), (1.0, 1e30), (1.0, -1e30), (1e-300, 0.0), (1e300, 0.0)]


@pytest.mark.parametrize(("factor", "offset"), NUMBERS)
@pytest.mark.parametrize("x", A)
def test_plain_numbers_are_rounded_correctly(x, factor, offset):
    codes = all_codes(x.scheme)
    for y in (qparams(0.11, 77), qparams(0.003, 0, QuantScheme(bits=4))):
        ours = integers("mul_number", (x,), y, codes, factor=factor, offset=offset).tolist()
        real = [truth.value(int(q), x) * Fraction(factor) + Fraction(offset) for q in codes]
        assert ours == [truth.code(v, y) for v in real]


def test_negation_rounds_upwards_on_both_sides():
    """-3/2, -1/2, 1/2 of a step become -1, 0, 1, as 3/2, 1/2, -1/2 do 2, 1, 0."""
    x, y = qparams(0.5, 128), qparams(1.0, 128)
    codes = torch.tensor([131, 129, 127], dtype=torch.uint8)
    ours = integers("neg", (x,), y, codes, factor=-1.0, offset=0.0)
    assert ours.tolist() == [127, 128, 129]


