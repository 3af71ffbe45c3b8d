"""PReLU: two multipliers, one rounding, exact in every code.

By hand, s_x = 1/2, z_x = 3, s_y = 1, z_y = 20, slope -1/2, codes 6, 3 and 0:

    3/2, 0, 3/4        rounded half-up 2, 0, 1        q_y = 22, 20, 21
"""

from fractions import Fraction

import pytest
import torch

from fxquant.schemes import QuantScheme
from tests import truth
from tests.ops.calls import all_codes, integers, qparams

SIGNED = QuantScheme(symmetric=False)


def test_by_hand():
    codes = torch.tensor([6, 3, 0], dtype=torch.uint8)
    slope = torch.tensor([-0.5])
    ours = integers("prelu", (qparams(0.5, 3),), qparams(1.0, 20), codes, weight=slope)
    assert ours.tolist() == [22, 20, 21]


@pytest.mark.parametrize("y", [qparams(1.0, 20), qparams(0.037, 131), qparams(0.3, -7, SIGNED)])
@pytest.mark.parametrize("x", [qparams(0.0173, 128), qparams(0.4, -100, SIGNED)])
def test_every_code_of_every_channel_is_rounded_correctly(x, y):
    slopes = torch.tensor([0.25, -0.7, 0.0, 1.0, 3.3])
    codes = all_codes(x.scheme)
    ours = integers("prelu", (x,), y, codes.expand(2, 5, -1), weight=slopes)
    for c, slope in enumerate(slopes.tolist()):
        factors = {True: Fraction(1), False: Fraction(slope)}
        real = [truth.value(int(q), x) for q in codes]
        expected = [truth.code(v * factors[v > 0], y) for v in real]
        assert ours[0, c].tolist() == ours[1, c].tolist() == expected


def test_one_slope_serves_any_shape():
    x, y, slope = qparams(0.1, 128), qparams(0.05, 100), torch.tensor([0.2])
    codes = torch.randint(256, (60,)).to(torch.uint8)
    flat = integers("prelu", (x,), y, codes, weight=slope)
    shaped = integers("prelu", (x,), y, codes.reshape(3, 4, 5), weight=slope)
    assert flat.tolist() == shaped.flatten().tolist()
