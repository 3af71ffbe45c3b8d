"""One-byte functions: every code of several scales is the correctly rounded real value.

By hand, sigmoid, uint8, s = 1/32, z = 128, s_y = 1/256, z_y = 0, q = 160:

    x = (160 - 128)/32 = 1        1/(1 + e⁻¹) = 0.731059        ·256 = 187.151        q_y = 187
"""

import pytest
import torch

from fxquant.schemes import UINT8, QuantScheme
from tests import truth
from tests.ops.calls import all_codes, integers, qparams

SCHEMES = {
    "uint8": (UINT8, 117),
    "int8": (QuantScheme(symmetric=False), -21),
    "symmetric, narrow": (QuantScheme(narrow=True), 0),
    "int4": (QuantScheme(bits=4, symmetric=False), 2),
    "uint2": (QuantScheme(bits=2, signed=False, symmetric=False), 1),
}
SCALES = [2**-5, 0.0473, 0.31, 1e-4, 3e38 / 255]


def output_of(values, scheme):
    """Parameters that hold all but the largest values, which shall be clamped."""
    finite = [float(abs(v)) for v in values]
    step = min(max(sorted(finite)[len(finite) * 9 // 10], 1e-30), 1e38) / 2 ** (scheme.bits - 1)
    return qparams(step, (scheme.qmin + scheme.qmax + 1) // 2, scheme)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", truth.FUNCTIONS)
def test_every_code_is_rounded_correctly(name, scheme, scale):
    op, options, function = truth.FUNCTIONS[name]
    x = qparams(scale, SCHEMES[scheme][1], SCHEMES[scheme][0])
    values = [function(truth.value(int(q), x)) for q in all_codes(x.scheme)]
    for y in (output_of(values, x.scheme), output_of(values, UINT8)):
        expected = [truth.code(v, y) for v in values]
        codes = integers(op, (x,), y, all_codes(x.scheme), **options)
        assert codes.dtype is y.scheme.dtype
        assert codes.tolist() == expected


def test_sigmoid_by_hand():
    codes = integers("sigmoid", (qparams(1 / 32, 128),), qparams(1 / 256, 0), all_codes())
    assert int(codes[160]) == 187


def test_ties_go_upwards():
    """Leaky ReLU of slope 1/2 in equal steps: -3, -2, -1, 0 become -3/2, -1, -1/2, 0."""
    q = qparams(0.3, 128)
    codes = integers("leaky_relu", (q,), q, all_codes(), negative_slope=0.5)
    assert codes[125:129].tolist() == [127, 127, 128, 128]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4, 5)])
def test_any_shape(shape):
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    x, y = qparams(0.1, 128), qparams(0.1, 128)
    found = integers("silu", (x,), y, codes)
    assert found.shape == shape
    assert torch.equal(found, integers("silu", (x,), y, all_codes())[codes.long()])
    turned = codes.mT if codes.dim() > 1 else codes
    assert torch.equal(integers("silu", (x,), y, turned), found.mT if codes.dim() > 1 else found)
