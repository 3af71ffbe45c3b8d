"""Resizing: every code of nearest is torch's, every code of linear within a step of the fraction.

By hand, two codes 10 and 20 made four, z = 4: places 0, 1/4, 3/4, 1 between them

    6·(1 - λ) + 16·λ = 6, 8.5, 13.5, 16      rounded half-up 6, 9, 14, 16      q_y = 10, 13, 18, 20
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import UnsupportedOperatorError
from fxquant.ops import op_named
from fxquant.ops.accumulator import IntegerCall, Operand
from fxquant.ops.interpolate import taps
from fxquant.schemes import INT16, UINT8
from tests import laws, truth
from tests.ops.calls import integers, qparams, real_call

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def linear(codes, q, **options):
    given = {"size": None, "scale_factor": None, "align_corners": None} | options
    given |= {"recompute_scale_factor": options.get("recompute_scale_factor")}
    return integers("interpolate_linear", (q,), q, codes, mode=MODES[codes.dim() - 2], **given)


def random_codes(shape, scheme=UINT8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(scheme.qmin, scheme.qmax + 1, shape, generator=generator).to(scheme.dtype)


def test_by_hand():
    codes = torch.tensor([[[10, 20]]], dtype=torch.uint8)
    assert linear(codes, qparams(1.0, 4), size=4).tolist() == [[[10, 13, 18, 20]]]


SIZES = [(1, 3), (2, 9), (7, 12), (7, 14), (16, 5), (9, 1), (6, 6)]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("corners", [False, True])
def test_within_a_step_of_the_fraction_and_mostly_its_rounding(dims, old, new, corners):
    codes, q = random_codes((1, 2, *(old,) * dims)), qparams(0.1, 77)
    sizes = (new, *(3,) * (dims - 1))
    real = truth.resized(codes.numpy(), sizes, corners)
    ours = linear(codes, q, size=sizes, align_corners=corners).numpy()
    distance = np.abs(ours.astype(object) - real).astype(float)
    assert distance.max() <= 0.5 + dims * 255 / 2**12
    assert (ours != truth.nearest_integers(real)).mean() <= 0.1


def test_codes_of_16_bits_have_longer_weights():
    codes, q = random_codes((1, 1, 7, 5), INT16), qparams(0.1, -3, INT16)
    real = truth.resized(codes.numpy(), (12, 12))
    distance = np.abs(linear(codes, q, size=(12, 12)).numpy().astype(object) - real)
    assert distance.max() <= 0.5 + 2 * 65535 / 2**16


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("old", [1, 2, 5, 31, 32, 100])
def test_weights_of_a_place_add_up_and_stay_between_the_neighbours(old, corners):
    for new in (1, 2, 7, 31, 77):
        step = truth.Fraction(old, new)
        first, second, weight = taps(old, new, step, corners, 11)
        assert all(0 <= i <= j < old and j - i <= 1 for i, j in zip(first, second, strict=True))
        assert all(0 <= w <= 2**11 for w in weight)


FACTORS = [{"scale_factor": 1.7}, {"scale_factor": (0.4, 2.6)}, {"size": (5, 13)},
           {"scale_factor": 1.7, "recompute_scale_factor": True}, {"size": 9}]


@pytest.mark.parametrize("options", FACTORS)
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "nearest-exact"])
def test_places_are_those_of_torch(mode, options):
    """Sizes and factors alike; a factor that is given says how far apart places lie."""
    codes = random_codes((2, 3, 7, 10))
    expected = F.interpolate(codes.double(), mode=mode, **options)
    name = "interpolate_linear" if mode == "bilinear" else "interpolate_nearest"
    given = {"size": None, "scale_factor": None, "align_corners": None,
             "recompute_scale_factor": None} | options
    ours = integers(name, (qparams(1.0, 9),), qparams(1.0, 9), codes, mode=mode, **given)
    assert ours.dtype is torch.uint8
    assert (ours.double() - expected).abs().max() <= (0.63 if mode == "bilinear" else 0)


@pytest.mark.parametrize(
    "module",
    [nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(size=9), nn.UpsamplingBilinear2d((5, 9)),
     nn.Upsample(scale_factor=2.5, mode="bilinear", align_corners=True)],
    ids=str,
)
def test_modules(module):
    x = torch.randn(2, 3, 6, 4)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), module)
    prepared = fxquant.prepare_qat(model, x)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    assert quantized(x).shape == model(x).shape


def test_a_size_that_a_shape_says():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x):
            return F.interpolate(self.conv(x), size=x.shape[-2:], mode="bilinear")

    x = torch.randn(2, 3, 9, 8)
    for example in (x, None):
        prepared = fxquant.prepare_qat(Decoder(), example)
        laws.settle(prepared, x)
        quantized = fxquant.convert(prepared)
        for other in (x, torch.randn(1, 3, 12, 7)):
            laws.assert_equal(quantized(other), prepared(other))


@pytest.mark.parametrize(
    ("shape", "bits"), [((1, 1, 4), 32), ((1, 1, 4, 4), 32), ((1, 1, 2, 2, 2), 64)]
)
def test_sums_fit_32_bits_in_two_dimensions(shape, bits):
    q = qparams(1.0, 0)
    op = op_named("interpolate_linear")
    numbers = op.numbers(real_call((q,), q, {}))
    found = op.accumulator(IntegerCall(numbers, (Operand(UINT8, shape),), {}, 32))
    dims = len(shape) - 2
    assert found.worst == ((255 << 11 * dims) + (1 << 11 * dims - 1),)
    assert (found.bits, found.terms, found.proved) == (bits, 2**dims, True)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"mode": "bicubic"}, "bicubic weights are negative too"),
     ({"mode": "bilinear", "antialias": True}, "antialiasing is a filter"),
     ({"mode": "area"}, "mode='area' is none of nearest")],
)
def test_what_has_no_integer_form_says_why(options, why):
    class Resize(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=2, **options)

    with pytest.raises(UnsupportedOperatorError, match=rf"node 'interpolate'.*: {why}"):
        fxquant.prepare_qat(nn.Sequential(nn.Conv2d(3, 3, 1), Resize()))


def test_a_module_says_why_too():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Upsample(scale_factor=2, mode="bicubic"))
    with pytest.raises(UnsupportedOperatorError, match="'1'.*: bicubic weights are negative too"):
        fxquant.prepare_qat(model)
