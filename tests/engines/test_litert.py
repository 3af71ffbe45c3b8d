"""LiteRT, operator by operator, in its three kernel sets: the same integers out, all of them.

    reference    BUILTIN_REF                          gemmlowp; fully connected: half_away
    optimized    BUILTIN_WITHOUT_DEFAULT_DELEGATES    ruy; products of two tensors: gemmlowp
    xnnpack      AUTO                                 fp32_rne; sums: half_up

With scales that are powers of two ties are everywhere. What does not agree is in docs/rounding.md,
with figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fxquant.rounding import FP32_RNE, GEMMLOWP, HALF_AWAY, HALF_UP, RUY, Rounding
from fxquant.schemes import QParams
from tests.engines.litert import RESOLVERS, Value, options, run, schema
from tests.engines.ours import (
    INT8,
    Draw,
    all_pairs,
    differing,
    layer,
    operator,
    scale_of,
    zero_of,
)

SEEDS = range(4)
PADDING = {False: schema.Padding.VALID, True: schema.Padding.SAME}
ties = pytest.mark.parametrize("ties", [True, False], ids=["ties", "any scales"])
per_channel = pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
every_resolver = pytest.mark.parametrize("resolver", RESOLVERS)
LAYERS = pytest.mark.parametrize(
    ("resolver", "rounding"),
    [("reference", GEMMLOWP), ("optimized", RUY), ("xnnpack", FP32_RNE)],
    ids=RESOLVERS,
)


def channels_last(x: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def value(q: QParams, shape: Sequence[int], kind: Any = np.int8) -> Value:
    return Value(tuple(shape), kind, [scale_of(q)], zero_of(q))


def constant(data: NDArray[Any], scales: Any = (), axis: int = 0) -> Value:
    return Value(data.shape, data.dtype, scales, 0, data, axis)


# ------------------------------------------------------------------------ layers


@LAYERS
@ties
@per_channel
@pytest.mark.parametrize(
    ("kernel", "same", "stride"), [((3, 3), False, 1), ((1, 1), False, 1), ((3, 5), True, 2)]
)
def test_conv_2d(
    resolver: str, rounding: Rounding, ties: bool, per_channel: bool, kernel: tuple[int, int],
    same: bool, stride: int,
):
    """SAME at a stride of 2 over 17: as many rows are added before as behind."""
    for seed in SEEDS:
        draw = Draw(seed, INT8, ties)
        x, y = draw.qparams(), draw.qparams()
        made, codes = draw.layer(x, y, (16, 8, *kernel), per_channel), draw.codes(2, 8, 17, 17)
        padding = tuple(k // 2 for k in kernel) if same else (0, 0)
        ours = layer(
            "conv2d", rounding, x, y, made, codes, stride=stride, padding=padding, dilation=1,
            groups=1,
        )
        scales = made.scales if per_channel else made.scales[:1]
        given, expected = channels_last(codes), channels_last(ours)
        theirs = run(
            "CONV_2D",
            options("Conv2D", strideH=stride, strideW=stride, padding=PADDING[same],
                    dilationHFactor=1, dilationWFactor=1),
            [value(x, given.shape), constant(channels_last(made.weight), scales),
             constant(made.bias, scales * scale_of(x))],
            value(y, expected.shape), resolver, given,
        )
        assert differing(expected, theirs) == 0


@LAYERS
@ties
@per_channel
@pytest.mark.parametrize(("kernel", "same", "stride"), [(3, False, 1), (3, True, 2), (5, True, 1)])
def test_depthwise_conv_2d(
    resolver: str, rounding: Rounding, ties: bool, per_channel: bool, kernel: int, same: bool,
    stride: int,
):
    for seed in SEEDS:
        draw = Draw(seed, INT8, ties)
        x, y = draw.qparams(), draw.qparams()
        made = draw.layer(x, y, (16, 1, kernel, kernel), per_channel)
        codes = draw.codes(2, 16, 17, 17)
        ours = layer(
            "conv2d", rounding, x, y, made, codes, stride=stride,
            padding=kernel // 2 if same else 0, dilation=1, groups=16,
        )
        scales = made.scales if per_channel else made.scales[:1]
        given, expected = channels_last(codes), channels_last(ours)
        theirs = run(
            "DEPTHWISE_CONV_2D",
            options("DepthwiseConv2D", strideH=stride, strideW=stride, padding=PADDING[same],
                    depthMultiplier=1, dilationHFactor=1, dilationWFactor=1),
            [value(x, given.shape), constant(np.moveaxis(made.weight, 0, -1), scales, axis=3),
             constant(made.bias, scales * scale_of(x))],
            value(y, expected.shape), resolver, given,
        )
        assert differing(expected, theirs) == 0


@pytest.mark.parametrize(
    ("resolver", "rounding"),
    [("reference", HALF_AWAY), ("optimized", RUY), ("xnnpack", FP32_RNE)],
    ids=RESOLVERS,
)
@ties
def test_fully_connected(resolver: str, rounding: Rounding, ties: bool):
    """The reference has no fixed-point multiplier: it rounds a real product half away from 0."""
    for seed in range(8):
        draw = Draw(seed, INT8, ties)
        x, y = draw.qparams(), draw.qparams()
        made, codes = draw.layer(x, y, (64, 72), False), draw.codes(128, 72)
        ours = layer("linear", rounding, x, y, made, codes)
        theirs = run(
            "FULLY_CONNECTED", options("FullyConnected"),
            [value(x, codes.shape), constant(made.weight, made.scales[:1]),
             constant(made.bias, made.scales[:1] * scale_of(x))],
            value(y, ours.shape), resolver, codes,
        )
        assert differing(ours, theirs) == 0


# ------------------------------------------------------------------------ two tensors


def pairs_differ(
    operator_name: str, kind: str, rounding: Rounding, resolver: str, draw: Draw, size: float
) -> int:
    """How many of all pairs of codes differ."""
    a, b, y = draw.qparams(), draw.qparams(), draw.centred(size)
    left, right = all_pairs(INT8)
    theirs = run(
        kind.upper(), options(kind), [value(a, left.shape), value(b, right.shape)],
        value(y, left.shape), resolver, left, right,
    )
    return differing(operator(operator_name, rounding, (a, b), y, left, right), theirs)


@pytest.mark.parametrize("resolver", ["reference", "optimized"])
@pytest.mark.parametrize("rounding", [GEMMLOWP, RUY], ids=repr)
@ties
def test_add(resolver: str, rounding: Rounding, ties: bool):
    """Both kernel sets round three times, to 20 bits more and then as gemmlowp does."""
    for seed in range(8):
        assert pairs_differ("add", "Add", rounding, resolver, Draw(seed, INT8, ties), 0.2) == 0


def test_add_of_xnnpack():
    """Our default, 21 bits and half-up. Of other scales it rounds the ratios to float32 first."""
    for seed in range(8):
        draw = Draw(seed, INT8, ties=True)
        assert pairs_differ("add", "Add", HALF_UP, "xnnpack", draw, 0.2) == 0


@pytest.mark.parametrize(
    ("resolver", "rounding"),
    [("reference", GEMMLOWP), ("optimized", GEMMLOWP), ("xnnpack", FP32_RNE)],
    ids=RESOLVERS,
)
@ties
def test_mul(resolver: str, rounding: Rounding, ties: bool):
    for seed in range(8):
        assert pairs_differ("mul", "Mul", rounding, resolver, Draw(seed, INT8, ties), 1.0) == 0


@pytest.mark.parametrize("resolver", ["reference", "optimized"])
@ties
def test_sub(resolver: str, ties: bool):
    for seed in range(8):
        assert pairs_differ("sub", "Sub", GEMMLOWP, resolver, Draw(seed, INT8, ties), 0.2) == 0


# ------------------------------------------------------------------------ means


@every_resolver
@ties
@pytest.mark.parametrize("rounding", [HALF_AWAY, GEMMLOWP, RUY], ids=repr)
@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1)])
def test_average_pool_2d(
    resolver: str, ties: bool, rounding: Rounding, kernel: int, padding: int
):
    """One division, half away from the code 0; XNNPACK leaves it to the optimized kernels."""
    settings = {
        "kernel_size": kernel, "stride": 2, "padding": padding, "ceil_mode": False,
        "count_include_pad": False, "divisor_override": None,
    }
    for seed in SEEDS:
        draw = Draw(seed, INT8, ties)
        x, codes = draw.qparams(), draw.codes(2, 8, 16 + padding, 16 + padding)
        ours = channels_last(operator("avg_pool2d", rounding, (x,), x, codes, **settings))
        given = channels_last(codes)
        theirs = run(
            "AVERAGE_POOL_2D",
            options("Pool2D", padding=PADDING[padding > 0], strideH=2, strideW=2,
                    filterHeight=kernel, filterWidth=kernel),
            [value(x, given.shape)], value(x, ours.shape), resolver, given,
        )
        assert differing(ours, theirs) == 0


@ties
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (4, 6), (7, 7), (5, 7)])
@pytest.mark.parametrize(("name", "steps"), [("mean", None), ("mean", 0.3), ("sum", 8.0)])
def test_reductions_of_xnnpack(ties: bool, size: tuple[int, int], name: str, steps: float | None):
    """To the same range, and to one of its own: rounded with the zero point."""
    for seed in SEEDS:
        draw = Draw(seed, INT8, ties)
        x, codes = draw.centred(), draw.codes(256, 8, *size)
        y = x if steps is None else draw.centred(0.1 * steps)
        ours = operator(name, FP32_RNE, (x,), y, codes, dim=(2, 3), keepdim=False)
        theirs = run(
            name.upper(), options("Reducer", keepDims=False),
            [value(x, channels_last(codes).shape), constant(np.array([1, 2], np.int32))],
            value(y, ours.shape), "xnnpack", channels_last(codes),
        )
        assert differing(ours, theirs) == 0


@pytest.mark.parametrize(
    ("resolver", "rounding", "size", "align_corners"),
    [("reference", GEMMLOWP, (16, 32), False), ("reference", GEMMLOWP, (15, 29), True),
     ("optimized", RUY, (16, 32), False), ("optimized", RUY, (15, 29), True),
     *(("xnnpack", HALF_UP, size, corners)
       for size in ((16, 32), (13, 11), (5, 29)) for corners in (False, True))],
)
def test_resize_bilinear(
    resolver: str, rounding: Rounding, size: tuple[int, int], align_corners: bool
):
    """XNNPACK's weights have 11 bits, as ours; those of the others 10, which is enough for factors
    that are powers of two.
    """
    for seed in SEEDS:
        draw = Draw(seed, INT8, ties=True)
        x, codes = draw.qparams(), draw.codes(2, 8, 8, 8)
        ours = channels_last(operator(
            "interpolate_linear", rounding, (x,), x, codes, size=size,
            scale_factor=None, mode="bilinear", align_corners=align_corners,
            recompute_scale_factor=None,
        ))
        given = channels_last(codes)
        theirs = run(
            "RESIZE_BILINEAR",
            options("ResizeBilinear", alignCorners=align_corners,
                    halfPixelCenters=not align_corners),
            [value(x, given.shape), constant(np.array(size, np.int32))],
            value(x, ours.shape), resolver, given,
        )
        assert differing(ours, theirs) == 0


# ------------------------------------------------------------------------ functions


@every_resolver
@ties
@pytest.mark.parametrize("rounding", [GEMMLOWP, RUY, FP32_RNE], ids=repr)
@pytest.mark.parametrize("name", ["LOGISTIC", "TANH"])
def test_functions(resolver: str, ties: bool, rounding: Rounding, name: str):
    """Every code, at 16 scales; the scale of the output is fixed."""
    of = {"LOGISTIC": ("sigmoid", 1 / 256, -128), "TANH": ("tanh", 1 / 128, 0)}
    operator_name, scale, zero = of[name]
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, 256)
    for seed in range(16):
        x = Draw(seed, INT8, ties).qparams()
        y = QParams(torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), INT8)
        given = [value(x, codes.shape)]
        theirs = run(name, None, given, value(y, codes.shape), resolver, codes)
        assert differing(operator(operator_name, rounding, (x,), y, codes), theirs) == 0


@every_resolver
@pytest.mark.parametrize("rounding", [GEMMLOWP, RUY, FP32_RNE], ids=repr)
def test_softmax_is_within_one_step_and_seldom_that(resolver: str, rounding: Rounding):
    """Its exponentials are float32, ours have 20 bits: no two of them need round alike."""
    y = QParams(torch.tensor(1 / 256), torch.tensor(-128, dtype=torch.int32), INT8)
    differ = codes = 0
    for seed in range(8):
        draw = Draw(seed, INT8, ties=bool(seed % 2))
        x, rows = draw.qparams(), draw.codes(512, (3, 10, 64, 257)[seed // 2])
        theirs = run(
            "SOFTMAX", options("Softmax", beta=1.0), [value(x, rows.shape)],
            value(y, rows.shape), resolver, rows,
        )
        ours = operator("softmax", rounding, (x,), y, rows, dim=1)
        far = np.abs(ours.astype(int) - theirs.astype(int))
        assert far.max() <= 1
        differ, codes = differ + int(far.sum()), codes + far.size
    assert differ <= codes * 1e-5


# ------------------------------------------------------------------------ the way in


@pytest.mark.parametrize(
    ("resolver", "rounding", "ties"),
    [("reference", GEMMLOWP, True), ("reference", GEMMLOWP, False), ("optimized", RUY, True),
     ("xnnpack", FP32_RNE, True)],
)
def test_quantize(resolver: str, rounding: Rounding, ties: bool):
    """float32 to codes, half way between two codes too.

    All but the reference multiply by 1/s, which is exact where s is a power of two.
    """
    for seed in SEEDS:
        draw = Draw(seed, INT8, ties)
        q = draw.qparams()
        halves = (np.arange(-700, 700, dtype=np.float32) / 2) * scale_of(q)
        x = np.concatenate([halves, draw.rng.normal(0, 20, 5000).astype(np.float32)])
        theirs = run(
            "QUANTIZE", options("Quantize"), [Value(x.shape, np.float32)], value(q, x.shape),
            resolver, x,
        )
        assert differing(rounding.quantize(torch.from_numpy(x), q).numpy(), theirs) == 0
