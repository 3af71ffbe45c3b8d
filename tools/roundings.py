"""Measure how often roundings differ from one another, and from engines: docs/rounding.md.

    python -m tools.roundings          write the page, in a minute; needs the extra `engines`

The first table needs no engine, and a test compares it with the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxquant.rounding import FP32_RNE, GEMMLOWP, HALF_UP, ROUNDINGS, RUY, Rounding

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rounding.md"
ACCUMULATORS = 2**18
FACTORS = {
    "π/10⁵": math.pi / 1e5, "π/10⁴": math.pi / 1e4, "π/10³": math.pi / 1e3, "π/10²": math.pi / 1e2,
    "π/10": math.pi / 10, "2⁻¹⁰": 2**-10, "2⁻⁵": 2**-5, "2⁻²": 2**-2,
}
CASES = 64  # of one figure for an engine

HEAD = """\
# How engines round

Made by `python -m tools.roundings`. Integer engines agree on sums, and not on how to bring a sum to
the scale of the output: a code may come out one step off, and a deep network carries that on. So
the rounding is part of what is simulated:

```python
import fxquant
from torch import nn

config = fxquant.QuantConfig(rounding="gemmlowp")
prepared = fxquant.prepare_qat(nn.Linear(4, 2), config=config)
```

eval() of the prepared network and the integers that `convert` makes of it round that way. Training
does not ask: its fake-quants round half-up, and differ at ties alone.

## The six

`p = acc·m`, with `m·2^-S = s_x·s_w/s_y`, for a layer, a matrix product, a product of two tensors,
a concat, a padding, a PReLU and several factors of parameters.

| rounding | formula | engine |
|---|---|---|
| `half_up` | `(p + 2^(S-1)) >> S`, the default | TFLITE_SINGLE_ROUNDING; sums of XNNPACK |
| `half_even` | `p / 2^S`, ties to the even integer | HAWQ-V3 |
| `half_away` | `p / 2^S`, ties away from 0 | LiteRT's reference FULLY_CONNECTED |
| `gemmlowp` | `half_up(p / 2^31)`, then half-away by the rest of S | LiteRT's reference; CMSIS-NN |
| `ruy` | `half_up(p / 2^31)`, then half-up by the rest of S | LiteRT's optimized kernels |
| `fp32_rne` | `rint(float32(acc)·float32(s_x·s_w/s_y))` | onnxruntime; XNNPACK |

Of TFLITE_SINGLE_ROUNDING, HAWQ-V3 and CMSIS-NN only the source was read. The zero point is added
after rounding. In `fp32_rne` the factor is a float32 buffer of the integer network, the only one;
scales are multiplied and divided in float32, as engines do.

| what rounds | `half_*` | `gemmlowp`, `ruy` | `fp32_rne` |
|---|---|---|---|
| sums, differences, weighted sums | one shift for all terms, multipliers of 21 bits | each term to \
20 bits more, then the sum, all as `gemmlowp` | float32 fused multiply-adds; zero point, then to even |
| average pools, means, sums over dimensions, linear resizes: of codes | one division | away from \
the code 0 | to even |
| adaptive pools, softmax, quotients | one division | away from 0 | to even |
| batch norms, plain numbers, sums of products, norms of rows | one shift | the two shifts | one \
shift, to even |
| the way in, tables of functions | as their name says | away from 0; `ruy` to even | to even |

A slope of a PReLU is a factor as that of a layer is: above zero `s_x/s_y`, below `a·s_x/s_y`.

The mode governs the rounding that gives codes, one an operator, and those of an engine's sums. It
does not govern what comes before, which is finer than codes: the integer root and the units `u/√V`
of a norm (cut off, and half-up), the exponentials of a softmax, the weights of a resize and the
multipliers. Nor weights, biases and the limits of clamps: they are numbers that an engine is
handed, rounded half-up in every mode.
"""  # noqa: E501  rows of tables
ENGINES = """\
## Which engine, operator by operator

`tests/engines/` builds one model an operator, feeds the same integers to the engine and to our
kernel, and counts the codes that differ: 0 in every line here. Scales are powers of two, which make
ties everywhere, and any others, where the second column does not say powers of two. onnxruntime
1.31.1, ai-edge-litert 2.3.0, x86 with AVX-512.

| operator | scales | rounding |
|---|---|---|
| onnxruntime QLinearConv: per tensor or channel, depthwise, groups, strides, pads, dilation | any | `fp32_rne` |
| onnxruntime QLinearMatMul | any | `fp32_rne` |
| onnxruntime QLinearAdd (every pair of codes) | any | `fp32_rne` |
| onnxruntime QLinearConcat, QLinearSigmoid, QLinearLeakyRelu, QuantizeLinear | any | `fp32_rne` |
| onnxruntime QLinearAveragePool, QLinearGlobalAveragePool | powers of two | `fp32_rne` |
| onnxruntime QLinearGlobalAveragePool, to another range | any | `fp32_rne` |
| onnxruntime ConvInteger, MatMulInteger | – | the sums themselves |
| LiteRT CONV_2D, DEPTHWISE_CONV_2D: reference | any | `gemmlowp` |
| LiteRT CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: optimized | any | `ruy` |
| LiteRT CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: XNNPACK | any | `fp32_rne` |
| LiteRT FULLY_CONNECTED: reference | any | `half_away` |
| LiteRT ADD, SUB: reference, optimized (every pair) | any | `gemmlowp`, `ruy` |
| LiteRT ADD: XNNPACK (every pair) | powers of two | `half_up` |
| LiteRT MUL: reference, optimized (every pair) | any | `gemmlowp` |
| LiteRT MUL: XNNPACK (every pair) | any | `fp32_rne` |
| LiteRT AVERAGE_POOL_2D: all three | any | `gemmlowp`, `ruy`, `half_away` |
| LiteRT MEAN, SUM: XNNPACK, also to another range | any | `fp32_rne` |
| LiteRT RESIZE_BILINEAR by powers of two: reference, optimized | any | `gemmlowp`, `ruy` |
| LiteRT RESIZE_BILINEAR by any factor: XNNPACK | any | `half_up` |
| LiteRT LOGISTIC, TANH: all three (every code) | any | `gemmlowp`, `ruy`, `fp32_rne` |
| LiteRT QUANTIZE: reference | any | `gemmlowp` |
| LiteRT QUANTIZE: optimized, XNNPACK | powers of two | `ruy`, `fp32_rne` |
"""  # noqa: E501  rows of tables
GAPS = """\
## Where an engine and we part

Measured on the same models. *n of N* codes differ, always by one step: with scales that are powers
of two, and with others.
"""
Count = tuple[int, int]  # codes that differ, of how many


def modes() -> str:
    """The share of codes that differ from half_up's, by factor; and of ruy's from gemmlowp's."""
    found = {r.name: [_codes(r, factor) for factor in FACTORS.values()] for r in ROUNDINGS}
    rows = [(r.name, r.name, "half_up") for r in ROUNDINGS[1:]]
    rows.append(("ruy, from gemmlowp", "ruy", "gemmlowp"))
    lines = [
        "## How often they differ\n",
        f"Shares of {ACCUMULATORS:,} random accumulators whose code is not half_up's, by the",
        "factor that brings them to the output's scale. Only powers of two make ties; elsewhere",
        "the first of two roundings shows, and what a float32 product leaves out.\n",
        "| rounding | " + " | ".join(FACTORS) + " |",
        "|---" * (len(FACTORS) + 1) + "|",
    ]
    for title, name, other in rows:
        shares = [
            float((a != b).double().mean()) for a, b in zip(found[name], found[other], strict=True)
        ]
        cells = " | ".join(f"{share:.1e}" if share else "0" for share in shares)
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines) + "\n"


def _codes(rounding: Rounding, factor: float) -> Tensor:
    """The steps of random accumulators that reach 128 of them either way, at most 2^31."""
    most = min(int(128 / factor), 2**31 - 1)
    generator = torch.Generator().manual_seed(0)
    acc = torch.randint(-most, most + 1, (ACCUMULATORS,), generator=generator)
    real = torch.tensor([factor], dtype=torch.float64)
    return rounding.multiply(acc, rounding.rescale(real.to(rounding.reals)))


def gaps() -> str:
    """What tests/engines/ leaves out, with figures."""
    lines = ["| engine, operator | rounding | powers of two | others | why |", "|---" * 5 + "|"]
    for title, rounding, why, count in _gaps():
        figures = [" of ".join(f"{n:,}" for n in count(ties)) for ties in (True, False)]
        lines.append(f"| {title} | `{rounding.name}` | {figures[0]} | {figures[1]} | {why} |")
    return "\n".join(lines) + "\n"


def _gaps() -> list[tuple[str, Rounding, str, Callable[[bool], Count]]]:
    from tests.engines import litert, onnx_runtime, ours
    from tests.engines.test_litert import channels_last, constant, value
    from tests.engines.test_onnxruntime import of

    microsoft = onnx_runtime.MICROSOFT

    def counted(case: Callable[[Any], Any]) -> Callable[[bool], Count]:
        def count(ties: bool) -> Count:
            differ = codes = 0
            for seed in range(CASES):
                mine, theirs = case(ours.Draw(seed, ours.INT8, ties))
                assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= 1
                differ, codes = differ + int((mine != theirs).sum()), codes + mine.size
            return differ, codes

        return count

    def two(name: str, kind: str, rounding: Rounding, resolver: str, size: float) -> Any:
        def case(draw: Any) -> Any:
            a, b, y = draw.qparams(), draw.qparams(), draw.centred(size)
            left, right = ours.all_pairs(ours.INT8)
            given = [value(a, left.shape), value(b, left.shape)]
            theirs = litert.run(
                kind.upper(), litert.options(kind), given, value(y, left.shape), resolver,
                left, right,
            )
            return ours.operator(name, rounding, (a, b), y, left, right), theirs

        return counted(case)

    def qlinear_mul(draw: Any) -> Any:
        a, b, y = draw.qparams(), draw.qparams(), draw.centred(1.0)
        left, right = ours.all_pairs(ours.INT8)
        theirs = onnx_runtime.run(
            "QLinearMul", left, *of(a), right, *of(b), *of(y), domain=microsoft
        )
        return ours.operator("mul", FP32_RNE, (a, b), y, left, right), theirs

    def qlinear_average_pool(draw: Any) -> Any:
        x, codes = draw.qparams(), draw.codes(4, 8, 16, 16)
        theirs = onnx_runtime.run(
            "QLinearAveragePool", codes, *of(x), *of(x), domain=microsoft, strides=[2, 2],
            kernel_shape=[2, 2],
        )
        settings = {
            "kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False,
            "count_include_pad": True, "divisor_override": None,
        }
        return ours.operator("avg_pool2d", FP32_RNE, (x,), x, codes, **settings), theirs

    def global_average_pool(draw: Any) -> Any:
        x, codes = draw.qparams(), draw.codes(64, 8, 4, 6)
        theirs = onnx_runtime.run(
            "QLinearGlobalAveragePool", codes, *of(x), *of(x), domain=microsoft
        )
        return ours.operator("adaptive_avg_pool2d", FP32_RNE, (x,), x, codes, output_size=1), theirs

    def mean(draw: Any) -> Any:
        x, codes = draw.qparams(), draw.codes(64, 8, 4, 6)
        given = [value(x, channels_last(codes).shape), constant(np.array([1, 2], np.int32))]
        mine = ours.operator("mean", GEMMLOWP, (x,), x, codes, dim=(2, 3), keepdim=False)
        theirs = litert.run(
            "MEAN", litert.options("Reducer", keepDims=False), given, value(x, mine.shape),
            "reference", channels_last(codes),
        )
        return mine, theirs

    def way_in(draw: Any) -> Any:
        q = draw.qparams()
        halves = (np.arange(-700, 700, dtype=np.float32) / 2) * ours.scale_of(q)
        x = np.concatenate([halves, draw.rng.normal(0, 20, 5000).astype(np.float32)])
        theirs = litert.run(
            "QUANTIZE", litert.options("Quantize"), [litert.Value(x.shape, np.float32)],
            value(q, x.shape), "xnnpack", x,
        )
        return FP32_RNE.quantize(torch.from_numpy(x), q).numpy(), theirs

    def softmax(rounding: Rounding, theirs_of: Callable[..., NDArray[Any]]) -> Any:
        def case(draw: Any) -> Any:
            x, rows = draw.qparams(), draw.codes(512, int(draw.rng.choice([3, 10, 64, 257])))
            y = x._replace(
                scale=torch.tensor(1 / 256), zero_point=torch.tensor(-128, dtype=torch.int32)
            )
            mine = ours.operator("softmax", rounding, (x,), y, rows, dim=1)
            return mine, theirs_of(x, y, rows)

        return counted(case)

    def of_litert(x: Any, y: Any, rows: NDArray[Any]) -> NDArray[Any]:
        return litert.run(
            "SOFTMAX", litert.options("Softmax", beta=1.0), [value(x, rows.shape)],
            value(y, rows.shape), "reference", rows,
        )

    def of_onnxruntime(x: Any, y: Any, rows: NDArray[Any]) -> NDArray[Any]:
        return onnx_runtime.run(
            "QLinearSoftmax", rows, *of(x), *of(y), domain=microsoft, axis=-1, opset=13
        )

    return [
        ("LiteRT MUL, optimized", RUY, "it rounds as gemmlowp does: 0 there",
         two("mul", "Mul", RUY, "optimized", 1.0)),
        ("LiteRT ADD, XNNPACK", HALF_UP, "it rounds the ratios of scales to float32 first",
         two("add", "Add", HALF_UP, "xnnpack", 0.2)),
        ("LiteRT ADD, XNNPACK", FP32_RNE, "it adds integers, half-up: see `half_up`",
         two("add", "Add", FP32_RNE, "xnnpack", 0.2)),
        ("LiteRT MEAN, reference", GEMMLOWP, "it multiplies by 1/count, twice rounded; we divide",
         counted(mean)),
        ("LiteRT QUANTIZE, XNNPACK and optimized", FP32_RNE, "it multiplies by 1/s; we divide",
         counted(way_in)),
        ("LiteRT SOFTMAX, reference", GEMMLOWP, "its exponentials are float32, ours have 20 bits",
         softmax(GEMMLOWP, of_litert)),
        ("onnxruntime QLinearSoftmax", FP32_RNE, "the same", softmax(FP32_RNE, of_onnxruntime)),
        ("onnxruntime QLinearMul", FP32_RNE, "it adds the zero point before rounding",
         counted(qlinear_mul)),
        ("onnxruntime QLinearAveragePool", FP32_RNE, "it adds dequantized float32 values up",
         counted(qlinear_average_pool)),
        ("onnxruntime QLinearGlobalAveragePool", FP32_RNE, "it divides by `count·s` in float32",
         counted(global_average_pool)),
    ]


def page() -> str:
    """All of docs/rounding.md."""
    return "\n".join([HEAD, modes(), ENGINES, GAPS, gaps()])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
