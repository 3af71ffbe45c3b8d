"""onnxruntime, operator by operator, in the mode fp32_rne: the same integers out, all of them.

With scales that are powers of two ties are everywhere; with others float32 itself is tested.
What does not agree is in docs/rounding.md, with figures.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fxquant.intmath import accumulator_bound, carrier, centred, exact_integer
from fxquant.rounding import FP32_RNE
from fxquant.schemes import Channels, QParams
from tests.engines.onnx_runtime import MICROSOFT, run
from tests.engines.ours import (
    SCHEMES,
    Draw,
    all_pairs,
    differing,
    layer,
    operator,
    scale_of,
    zero_of,
)

SEEDS = range(4)
schemes = pytest.mark.parametrize("scheme", SCHEMES)
ties = pytest.mark.parametrize("ties", [True, False], ids=["ties", "any scales"])


def of(q: QParams) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scale and zero point as ONNX wants them."""
    kind = np.uint8 if str(q.scheme) == "uint8" else np.int8
    return np.array(scale_of(q)), np.array(zero_of(q), kind)


CONVS = {
    "plain": ((16, 8, 3, 3), {}),
    "pointwise": ((16, 8, 1, 1), {}),
    "strides and pads": ((16, 8, 3, 5), {"stride": (2, 1), "padding": (1, 2)}),
    "dilation": ((16, 8, 3, 3), {"dilation": (2, 2), "padding": (2, 2)}),
    "groups": ((16, 4, 3, 3), {"groups": 2}),
    "depthwise": ((8, 1, 3, 3), {"groups": 8, "padding": (1, 1)}),
    "depthwise, strides": ((8, 1, 5, 5), {"groups": 8, "padding": (2, 2), "stride": (2, 2)}),
}


@schemes
@ties
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("name", CONVS)
def test_qlinear_conv(scheme: str, ties: bool, per_channel: bool, name: str):
    shape, changes = CONVS[name]
    settings = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | changes
    for seed in SEEDS:
        draw = Draw(seed, SCHEMES[scheme], ties)
        x, y = draw.qparams(), draw.qparams()
        made, codes = draw.layer(x, y, shape, per_channel), draw.codes(4, 8, 18, 18)
        scales = made.scales if per_channel else made.scales[0]
        theirs = run(
            "QLinearConv", codes, *of(x), made.weight, scales, np.zeros_like(scales, np.int8),
            *of(y), made.bias, kernel_shape=shape[2:], strides=settings["stride"],
            pads=2 * settings["padding"], dilations=settings["dilation"], group=settings["groups"],
        )
        assert differing(layer("conv2d", FP32_RNE, x, y, made, codes, **settings), theirs) == 0


@schemes
@ties
def test_qlinear_matmul(scheme: str, ties: bool):
    for seed in SEEDS:
        draw = Draw(seed, SCHEMES[scheme], ties)
        a, b, y = draw.qparams(), draw.centred(), draw.centred(12.0)
        left, right = draw.codes(3, 64, 72), draw.codes(72, 48)
        theirs = run("QLinearMatMul", left, *of(a), right, *of(b), *of(y))
        assert differing(operator("matmul", FP32_RNE, (a, b), y, left, right), theirs) == 0


@schemes
@ties
def test_qlinear_add(scheme: str, ties: bool):
    """Every pair of codes."""
    for seed in range(8):
        draw = Draw(seed, SCHEMES[scheme], ties)
        a, b, y = draw.qparams(), draw.qparams(), draw.qparams(0.2)
        left, right = all_pairs(draw.scheme)
        theirs = run("QLinearAdd", left, *of(a), right, *of(b), *of(y), domain=MICROSOFT)
        assert differing(operator("add", FP32_RNE, (a, b), y, left, right), theirs) == 0


@schemes
@pytest.mark.parametrize(
    ("kernel", "padding", "include"), [(2, 0, False), (3, 1, False), (3, 1, True)]
)
def test_qlinear_average_pool(scheme: str, kernel: int, padding: int, include: bool):
    """Scales that are powers of two: it adds float32 values up, which others would round."""
    settings = {
        "kernel_size": kernel, "stride": 2, "padding": padding, "ceil_mode": False,
        "count_include_pad": include, "divisor_override": None,
    }
    for seed in SEEDS:
        draw = Draw(seed, SCHEMES[scheme], ties=True)
        x, codes = draw.qparams(), draw.codes(4, 8, 16, 16)
        theirs = run(
            "QLinearAveragePool", codes, *of(x), *of(x), domain=MICROSOFT, strides=[2, 2],
            kernel_shape=[kernel] * 2, pads=[padding] * 4, count_include_pad=int(include),
        )
        assert differing(operator("avg_pool2d", FP32_RNE, (x,), x, codes, **settings), theirs) == 0


@schemes
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (7, 7), (8, 8)])
def test_qlinear_global_average_pool(scheme: str, size: tuple[int, int]):
    """Scales that are powers of two: it divides by `count·s` in float32, which others round."""
    for seed in SEEDS:
        draw = Draw(seed, SCHEMES[scheme], ties=True)
        x, codes = draw.qparams(), draw.codes(64, 8, *size)
        theirs = run("QLinearGlobalAveragePool", codes, *of(x), *of(x), domain=MICROSOFT)
        ours = operator("adaptive_avg_pool2d", FP32_RNE, (x,), x, codes, output_size=1)
        assert differing(ours, theirs) == 0


@schemes
@ties
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (7, 7)])
def test_qlinear_global_average_pool_to_another_range(
    scheme: str, ties: bool, size: tuple[int, int]
):
    for seed in SEEDS:
        draw = Draw(seed, SCHEMES[scheme], ties)
        x, y = draw.centred(), draw.centred(0.2 / math.prod(size) ** 0.5)
        codes = draw.codes(64, 8, *size)
        theirs = run("QLinearGlobalAveragePool", codes, *of(x), *of(y), domain=MICROSOFT)
        ours = operator("adaptive_avg_pool2d", FP32_RNE, (x,), y, codes, output_size=1)
        assert differing(ours, theirs) == 0


@schemes
@ties
def test_qlinear_concat(scheme: str, ties: bool):
    """Every code of each operand."""
    for seed in range(16):
        draw = Draw(seed, SCHEMES[scheme], ties)
        a, b, y = draw.qparams(0.2), draw.qparams(), draw.qparams()
        left, right = (codes.reshape(256, 256) for codes in all_pairs(draw.scheme))
        theirs = run("QLinearConcat", *of(y), left, *of(a), right, *of(b), domain=MICROSOFT, axis=1)
        ours = operator("cat", FP32_RNE, (a, b), y, left, right, dim=1)
        assert differing(ours, theirs) == 0


@schemes
@ties
@pytest.mark.parametrize("name", ["Sigmoid", "LeakyRelu"])
def test_functions(scheme: str, ties: bool, name: str):
    """Every code; its table is made of float32 functions."""
    ours_of = {"Sigmoid": ("sigmoid", {}), "LeakyRelu": ("leaky_relu", {"negative_slope": 0.25})}
    operator_name, settings = ours_of[name]
    for seed in range(16):
        draw = Draw(seed, SCHEMES[scheme], ties)
        x, y = draw.qparams(), draw.qparams(1 / 256 if name == "Sigmoid" else 0.1)
        codes = np.unique(all_pairs(draw.scheme)[0]).reshape(1, 256)
        attributes = {"alpha": 0.25} if name == "LeakyRelu" else {}
        theirs = run(f"QLinear{name}", codes, *of(x), *of(y), domain=MICROSOFT, **attributes)
        ours = operator(operator_name, FP32_RNE, (x,), y, codes, **settings)
        assert differing(ours, theirs) == 0


@schemes
@ties
def test_quantize_linear(scheme: str, ties: bool):
    """What enters a network, also half way between two codes."""
    for seed in SEEDS:
        draw = Draw(seed, SCHEMES[scheme], ties)
        q = draw.qparams()
        halves = (np.arange(-700, 700, dtype=np.float32) / 2) * scale_of(q)
        x = np.concatenate([halves, draw.rng.normal(0, 20, 5000).astype(np.float32)])
        theirs = run("QuantizeLinear", x, *of(q))
        assert differing(FP32_RNE.quantize(torch.from_numpy(x), q).numpy(), theirs) == 0


# ------------------------------------------------------------------------ accumulators


@schemes
@pytest.mark.parametrize("name", CONVS)
def test_conv_integer(scheme: str, name: str):
    """The sums themselves, before anything is rounded."""
    shape, changes = CONVS[name]
    settings = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | changes
    draw = Draw(0, SCHEMES[scheme], ties=False)
    x = draw.qparams()
    weight, codes = draw.layer(x, x, shape, True).weight, draw.codes(2, 8, 18, 18)
    theirs = run(
        "ConvInteger", codes, weight, of(x)[1], strides=settings["stride"],
        kernel_shape=shape[2:], pads=2 * settings["padding"], dilations=settings["dilation"],
        group=settings["groups"],
    )
    w = torch.from_numpy(weight)
    kind = carrier(accumulator_bound(w.float(), Channels(), x))
    total = F.conv2d(centred(torch.from_numpy(codes), x.zero_point, kind), w.to(kind), **settings)
    assert differing(exact_integer(total).to(torch.int32).numpy(), theirs) == 0


@schemes
def test_matmul_integer(scheme: str):
    draw = Draw(0, SCHEMES[scheme], ties=False)
    a, b = draw.qparams(), draw.qparams()
    left, right = draw.codes(3, 64, 72), draw.codes(72, 48)
    theirs = run("MatMulInteger", left, right, of(a)[1], of(b)[1])
    factors = (
        centred(torch.from_numpy(codes), q.zero_point, torch.float64)
        for codes, q in ((left, a), (right, b))
    )
    assert differing(exact_integer(torch.matmul(*factors)).to(torch.int32).numpy(), theirs) == 0


# ------------------------------------------------------------------------ nearly


@schemes
def test_softmax_is_within_one_step_and_seldom_that(scheme: str):
    """Its exponentials are float32, ours have 20 bits: no two of them need round alike."""
    differ = codes = 0
    for seed in range(8):
        draw = Draw(seed, SCHEMES[scheme], ties=bool(seed % 2))
        x, columns = draw.qparams(), (3, 10, 64, 257)[seed // 2]
        y = x._replace(
            scale=torch.tensor(1 / 256), zero_point=torch.tensor(draw.scheme.qmin)
        )
        rows = draw.codes(512, columns)
        theirs = run("QLinearSoftmax", rows, *of(x), *of(y), domain=MICROSOFT, axis=-1, opset=13)
        ours = operator("softmax", FP32_RNE, (x,), y, rows, dim=1)
        far = np.abs(ours.astype(int) - theirs.astype(int))
        assert far.max() <= 1
        differ, codes = differ + int(far.sum()), codes + far.size
    assert differ <= codes * 1e-5
