"""Operators at scales that are powers of two, where ties are everywhere, in all six roundings.

By hand, cat, s_x = 1/2 to s_y = 1, z_x = 0, z_y = 10, code 5: 5/2 = 2½, so 10 and

    half_up 3    half_even 2    half_away 3    gemmlowp 3    ruy 3    fp32_rne 2

A factor of 1/2 shifts by 31, LiteRT's first rounding alone, which is half-up.
"""

from __future__ import annotations

import copy
import io
import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.intmath import sum_of_mean
from fxquant.rounding import FP32_RNE, GEMMLOWP, HALF_EVEN, ROUNDINGS, RUY, Rounding
from fxquant.schemes import QParams
from fxquant.sites.integer import IntegerOp, Quantize
from tests import laws
from tests.ops.calls import all_codes, integers, pairs, qparams
from tests.test_rounding import NEAREST, REAL, litert_add, multiplied, quantized_multiplier

SIGNED = QuantScheme(symmetric=False)
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.name)


def rescaled(acc: int, factor: Fraction, rounding: Rounding) -> int:
    """An accumulator times a factor that float32 holds."""
    if rounding is FP32_RNE:
        return NEAREST["fp32_rne"](acc * factor)
    return multiplied(acc, *quantized_multiplier(factor), rounding)


def clamped(steps: list[int], y: QParams) -> list[int]:
    zero = int(y.zero_point)
    return [min(max(step + zero, y.scheme.qmin), y.scheme.qmax) for step in steps]


@every_rounding
def test_by_hand(rounding: Rounding):
    x, y = qparams(0.5, 0), qparams(1.0, 10)
    code = torch.tensor([5], dtype=torch.uint8)
    found = integers("cat", (x,), y, code, rounding=rounding, dim=0)
    assert found.tolist() == [10 + (2 if rounding in (HALF_EVEN, FP32_RNE) else 3)]


@every_rounding
@pytest.mark.parametrize("exponent", [0, 1, 2, 5])
@pytest.mark.parametrize(("zero", "scheme"), [(100, fxquant.schemes.UINT8), (-7, SIGNED)])
def test_concats(rounding: Rounding, exponent: int, zero: int, scheme: QuantScheme):
    x, y = qparams(0.25, zero, scheme), qparams(0.25 * 2**exponent, zero + 13, scheme)
    found = integers("cat", (x,), y, all_codes(scheme), rounding=rounding, dim=0)
    steps = [q - zero for q in all_codes(scheme).tolist()]
    factor = Fraction(1, 2**exponent)
    assert found.tolist() == clamped([rescaled(s, factor, rounding) for s in steps], y)


@every_rounding
@pytest.mark.parametrize("exponent", [3, 7, 9])
def test_products(rounding: Rounding, exponent: int):
    a, b, y = qparams(0.5, 3), qparams(2.0, 131), qparams(2.0**exponent, 77)
    codes = [c[::7] for c in pairs(a, b)]
    found = integers("mul", (a, b), y, *codes, rounding=rounding)
    products = [(p - 3) * (q - 131) for p, q in zip(*(c.tolist() for c in codes), strict=True)]
    factor = Fraction(1, 2**exponent)
    assert found.tolist() == clamped([rescaled(p, factor, rounding) for p in products], y)


@every_rounding
@pytest.mark.parametrize(("sizes", "sign"), [((0.5, 0.25, 1.0), 1), ((0.25, 2.0, 4.0), -1)])
def test_sums_and_differences(rounding: Rounding, sizes: tuple[float, ...], sign: int):
    """All factors are powers of two, so that the sum of two is exact, but for LiteRT's steps.

    onnxruntime adds the output's zero point, 78 or 77, before it rounds to the even code.
    """
    a, b = qparams(sizes[0], 3), qparams(sizes[1], 131)
    codes = [c[::11] for c in pairs(a, b)]
    rows = [*zip(*(c.tolist() for c in codes), strict=True)]
    factors = [Fraction(sizes[0] / sizes[2]), sign * Fraction(sizes[1] / sizes[2])]
    for zero in (77, 78):
        y = qparams(sizes[2], zero)
        name = "add" if sign > 0 else "sub"
        found = integers(name, (a, b), y, *codes, rounding=rounding).tolist()
        if rounding in (GEMMLOWP, RUY):
            steps = [litert_add([p, q], [3, 131], factors, 20) for p, q in rows]
        else:
            first = zero if rounding is FP32_RNE else 0
            real = [(p - 3) * factors[0] + (q - 131) * factors[1] + first for p, q in rows]
            steps = [NEAREST[rounding.name](r) - first for r in real]
        assert found == clamped(steps, y)


@every_rounding
@pytest.mark.parametrize("zero", [0, 3, 128])
@pytest.mark.parametrize("name", ["avg_pool2d", "mean", "adaptive_avg_pool2d"])
def test_means(rounding: Rounding, zero: int, name: str):
    """Of codes, but for an adaptive pool, which rounds before it adds the zero point."""
    settings = {
        "avg_pool2d": {
            "kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False,
            "count_include_pad": True, "divisor_override": None,
        },
        "mean": {"dim": (2, 3), "keepdim": True},
        "adaptive_avg_pool2d": {"output_size": 1},
    }[name]
    x = qparams(0.5, zero)
    codes = torch.tensor([*itertools.product(range(0, 256, 51), range(4), [0, 7], [0, 250])])
    images = codes.to(torch.uint8).reshape(-1, 1, 2, 2)
    found = integers(name, (x,), x, images, rounding=rounding, **settings).flatten().tolist()
    inside = zero if name == "adaptive_avg_pool2d" else 0
    nearest = NEAREST[rounding.name]
    assert found == [
        inside + nearest(Fraction(sum(row) - 4 * inside, 4)) for row in codes.tolist()
    ]


@every_rounding
@pytest.mark.parametrize("zero", [77, 78])
@pytest.mark.parametrize("name", ["mean", "sum", "adaptive_avg_pool1d"])
def test_reductions_to_another_range(rounding: Rounding, zero: int, name: str):
    """A pair of steps of 1/2 at steps of 1, or of 2 for a sum: a fourth of it either way."""
    options = {"output_size": 1} if name == "adaptive_avg_pool1d" else {"dim": 2, "keepdim": True}
    x, y = qparams(0.5, 100), qparams(2.0 if name == "sum" else 1.0, zero)
    codes = torch.tensor([*itertools.product(range(0, 256, 5), range(0, 256, 3))])
    pairs_of = codes.to(torch.uint8).reshape(-1, 1, 2)
    found = integers(name, (x,), y, pairs_of, rounding=rounding, **options).flatten().tolist()
    first = 0 if name == "adaptive_avg_pool1d" else zero
    nearest = NEAREST[rounding.name]
    steps = [nearest(first + Fraction(sum(pair) - 200, 4)) - first for pair in codes.tolist()]
    assert found == clamped(steps, y)


@every_rounding
@pytest.mark.parametrize(("zero", "scheme"), [(3, fxquant.schemes.UINT8), (-7, SIGNED)])
def test_resizes(rounding: Rounding, zero: int, scheme: QuantScheme):
    """Twice as long: fourths of neighbours, of codes, as LiteRT has them."""
    x = qparams(0.5, zero, scheme)
    codes = torch.cartesian_prod(all_codes(scheme)[::7].long(), all_codes(scheme)[::3].long())
    found = integers(
        "interpolate_linear", (x,), x, codes.to(scheme.dtype).reshape(1, -1, 2), rounding=rounding,
        size=4, scale_factor=None, mode="linear", align_corners=False, recompute_scale_factor=None,
    )
    nearest = NEAREST[rounding.name]
    assert found[0].tolist() == [
        [a, nearest(Fraction(3 * a + b, 4)), nearest(Fraction(a + 3 * b, 4)), b]
        for a, b in codes.tolist()
    ]


@every_rounding
@pytest.mark.parametrize("slope", [Fraction(1, 8), Fraction(-1, 2)])
def test_slopes(rounding: Rounding, slope: Fraction):
    """Half of a step above zero, and a slope of that below."""
    x, y = qparams(0.5, 131), qparams(1.0, 77)
    weight = torch.tensor([float(slope)])
    found = integers("prelu", (x,), y, all_codes(), rounding=rounding, weight=weight).tolist()
    half = Fraction(1, 2)
    assert found == clamped(
        [
            rescaled(step, half if step > 0 else half * slope, rounding)
            for step in (code - 131 for code in all_codes().tolist())
        ],
        y,
    )


@every_rounding
def test_several_factors(rounding: Rounding):
    """A half, and a fourth of the other sign."""
    x, factors = qparams(0.5, 131), [Fraction(1, 2), Fraction(-1, 4)]
    found = integers(
        "scale", (x,), x, all_codes().reshape(-1, 1), rounding=rounding,
        factors=torch.tensor([float(f) for f in factors]),
    )
    for column, factor in enumerate(factors):
        steps = [rescaled(code - 131, factor, rounding) for code in all_codes().tolist()]
        assert found[:, column].tolist() == clamped(steps, x)


@every_rounding
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms(rounding: Rounding, name: str):
    """Rows that are ±1 exactly, times 1/2, 3/2, … The last shift is beyond 31."""
    weight = torch.arange(-8, 8) + 0.5
    codes = (10 + 2 * (-1) ** torch.arange(16)).to(torch.uint8)[None]
    bias = {"bias": None} if name == "layer_norm" else {}
    found = integers(
        name, (qparams(0.5, 10),), qparams(1.0, 128), codes, rounding=rounding,
        normalized_shape=(16,), weight=weight, eps=0.0, **bias,
    )
    nearest = NEAREST["half_up" if rounding is RUY else rounding.name]
    signs = itertools.cycle([1, -1])
    halves = [Fraction(w) * sign for w, sign in zip(weight.tolist(), signs, strict=False)]
    assert found[0].tolist() == [128 + nearest(half) for half in halves]


@every_rounding
def test_fixed_batch_norms(rounding: Rounding):
    """x/8 + 1/4 again, see `test_plain_numbers`."""
    x, one = qparams(1.0, 100), torch.ones(1)
    found = integers(
        "fixed_batch_norm", (x,), x, all_codes().reshape(-1, 1), rounding=rounding,
        running_mean=0 * one, running_var=one, weight=one / 8, bias=one / 4, eps=0.0,
    ).flatten().tolist()
    steps = [rescaled(code - 100 + 2, Fraction(1, 8), rounding) for code in all_codes().tolist()]
    assert found == clamped(steps, x)


@every_rounding
def test_padding_counts_as_zero_points(rounding: Rounding):
    """A corner of 2 by 2 over one code and three zero points, 5: (8 + 3·5)/4 = 5¾, 6."""
    settings = {
        "kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": None,
    }
    x, image = qparams(0.5, 5), torch.full((1, 1, 1, 1), 8, dtype=torch.uint8)
    found = integers("avg_pool2d", (x,), x, image, rounding=rounding, **settings)
    assert found.flatten().tolist() == [6]


@every_rounding
def test_entries_of_a_table(rounding: Rounding):
    """hardsigmoid(x) = x/6 + 1/2 at s_x = 6/2^9 and s_y = 1/256: halves at every other code."""
    x, y = qparams(6 / 512, 128), qparams(1 / 256, 0)
    found = integers("hardsigmoid", (x,), y, all_codes(), rounding=rounding).tolist()
    scale = Fraction(float(x.scale))
    for code, result in zip(all_codes().tolist(), found, strict=True):
        real = float(scale * (code - 128)) / 6 + 0.5
        assert result == min(max(REAL[rounding.name](Fraction(real * 256)), 0), 255)


@every_rounding
def test_quotients(rounding: Rounding):
    a, b, y = qparams(0.5, 100), qparams(0.25, 0), qparams(1.0, 128)
    codes = [c[1::3] for c in pairs(a, b)]
    found = integers("div", (a, b), y, *codes, rounding=rounding).tolist()
    rows = zip(*(c.tolist() for c in codes), strict=True)
    nearest = NEAREST[rounding.name]
    steps = [
        nearest(Fraction(2 * (p - 100), q)) if q else 1000 * ((p > 100) - (p < 100))
        for p, q in rows
    ]
    assert found == clamped(steps, y)


@every_rounding
def test_softmax_halves(rounding: Rounding):
    """Two equal columns are 1/2 each: 127½ steps of 1/255."""
    y = qparams(1 / 255, 0)
    y = y._replace(scale=torch.tensor(1 / 255, dtype=torch.float64))
    codes = torch.full((1, 2), 9, dtype=torch.uint8)
    found = integers("softmax", (qparams(0.1, 0),), y, codes, rounding=rounding, dim=1)
    assert found.tolist() == [[NEAREST[rounding.name](Fraction(255, 2))] * 2]


@every_rounding
def test_plain_numbers(rounding: Rounding):
    """x/8 + 1/4 at equal scales: an exact sum and one shift, of S = 33 for LiteRT's two steps."""
    x = qparams(1.0, 100)
    found = integers(
        "add_number", (x,), x, all_codes(), rounding=rounding, factor=0.125, offset=0.25
    ).tolist()
    for code, result in zip(all_codes().tolist(), found, strict=True):
        eighths = code - 100 + 2
        steps = rescaled(eighths, Fraction(1, 8), rounding)
        assert result == min(max(100 + steps, 0), 255)


def test_the_total_of_a_mean_is_exact():
    mean = torch.tensor(-104.0, dtype=torch.float64) / 23
    assert int(sum_of_mean(mean, torch.tensor(23))) == -104


# ------------------------------------------------------------------------ networks


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1))


def converted(rounding: str) -> tuple[nn.Module, nn.Module, Tensor]:
    x = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    prepared = fxquant.prepare_qat(net(), x, QuantConfig(rounding=rounding))
    laws.settle(prepared, x)
    return prepared, fxquant.convert(prepared), x


@every_rounding
def test_copies_and_pickles_of_networks_keep_the_rounding(rounding: Rounding):
    prepared, quantized, x = converted(rounding.name)
    for network in (prepared, quantized):
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for again in (loaded, copy.deepcopy(network)):
            laws.assert_equal(again(x), network(x))
            found = {m.rounding for m in again.modules() if hasattr(m, "rounding")}
            assert found == {rounding}
    assert {m.numbers.rounding for m in quantized.modules() if isinstance(m, IntegerOp)} == {
        rounding
    }


@every_rounding
def test_a_checkpoint_goes_into_a_network_of_the_same_config(rounding: Rounding):
    prepared, quantized, x = converted(rounding.name)
    other, _, _ = converted(rounding.name)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(prepared.state_dict())
    laws.assert_equal(other.eval()(x), prepared.eval()(x))
    laws.assert_equal(fxquant.convert(other)(x), quantized(x))


def test_only_factors_of_fp32_rne_are_floats():
    for rounding in ROUNDINGS:
        _, quantized, _ = converted(rounding.name)
        floats = {
            name
            for module in quantized.modules()
            if isinstance(module, IntegerOp)
            for name, buffer in module.named_buffers()
            if buffer.is_floating_point()
        }
        assert floats == ({"multiplier"} if rounding is FP32_RNE else set())


def test_roundings_differ_on_a_network():
    """Else no test of networks would say anything of them. Float32 seldom takes a code away."""
    results = {}
    for rounding in ROUNDINGS:
        _, quantized, _ = converted(rounding.name)
        entrance = next(m for m in quantized.modules() if isinstance(m, Quantize))
        generator = torch.Generator().manual_seed(0)
        steps = torch.randint(-100, 100, (64, 3, 10, 10), generator=generator) + 0.5
        results[rounding.name] = quantized(steps * entrance.scale)
    pairs = itertools.combinations(results, 2)
    alike = {pair for pair in pairs if torch.equal(*(results[name] for name in pair))}
    assert alike <= {("half_even", "fp32_rne")}
