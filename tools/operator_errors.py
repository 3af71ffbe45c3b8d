"""Measure how far integer operators lie from the correctly rounded real ones: docs/operators.md.

    python -m tools.operator_errors          write the page, in two minutes or so

A figure is the share of codes that differ from the real value, rounded half-up, and the largest
difference in steps of the output; of weighted sums also the figures of other ways to compute them.
The real values are those of tests/truth.py; softmax and norms are compared with float64.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxquant.ops import op_named
from fxquant.schemes import UINT8, QParams, range_to_qparams
from tests import truth
from tests.ops.calls import all_codes, integers, pairs, qparams

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
FUNCTION_SCALES = (2**-7, 0.013, 2**-5, 0.0473, 0.11, 0.31)
PAIR_CASES = 40
SUM_SPREADS = (0.001, 1.0)  # of alphas as a search begins, and once it has decided
SUM_OPERANDS, SUM_CASES, SUM_ROWS = 8, 100, 8192
SOFTMAX_SCALES = (2**-8, 0.0173, 2**-4, 0.11, 0.5)
SOFTMAX_COLUMNS = (2, 8, 32, 128, 512, 2048)
SOFTMAX_ROWS, SOFTMAX_CODES = 1_000_000, 2**25  # of one figure, at most
NORM_SCALES = (2**-8, 0.0173, 0.11)
NORM_COLUMNS = (8, 64, 256, 768, 4096)
NORM_CODES = 2**22  # of one scale

HEAD = """\
# What integer operators cost

Made by `python -m tools.operator_errors`. Each operator is fed with codes of 8 bits and compared
with the real operator on the real numbers that the codes stand for, rounded once, half-up, to the
codes of the output. *Differ* is the share of codes that are not the same, *worst* by how many
steps. What is lost by rounding the inputs is not in these figures: they are what integer
arithmetic adds to it.
"""
EXACT = """\
Moves, ReLU, max pooling and zeros round nothing; average pools and means divide exactly;
convolutions, linear layers and matrix products add exactly and round once, with a multiplier of 31
bits, as products do below.
"""


class Errors:
    """Counts the codes that differ."""

    def __init__(self) -> None:
        self.codes = self.wrong = self.worst = 0
        self.squares = 0.0

    def add(self, ours: NDArray[Any], expected: NDArray[Any]) -> None:
        """Take so many more codes in."""
        distance = abs(ours.astype(np.int64) - expected.astype(np.int64))
        self.codes += distance.size
        self.wrong += int((distance > 0).sum())
        self.worst = max(self.worst, int(distance.max()))

    def measure(self, ours: NDArray[Any], steps: NDArray[Any]) -> None:
        """Take in how far the codes added lie from the real values, in steps and not rounded."""
        self.squares += float(((ours - steps) ** 2).sum())

    @property
    def rms(self) -> float:
        """Of the distances measured."""
        return math.sqrt(self.squares / self.codes)

    @property
    def share(self) -> str:
        """The share of them, to two digits."""
        return "0" if self.wrong == 0 else f"{self.wrong / self.codes:.1e}"


def functions() -> str:
    """One-byte functions: every code of each scale."""
    scales = ", ".join(f"{s:.4g}" for s in FUNCTION_SCALES)
    lines = [
        "## Functions of one byte\n",
        f"All 256 codes at the scales {scales}; zero point 121.\n",
        "| function | codes | differ | worst |\n|---|---|---|---|",
    ]
    for name, (op, options, function) in truth.FUNCTIONS.items():
        errors = Errors()
        for scale in FUNCTION_SCALES:
            x = qparams(scale, 121)
            values = [function(truth.value(int(q), x)) for q in all_codes()]
            known = op_named(op).range
            y = covering(*known) if known else covering(*ends(values))
            ours = integers(op, (x,), y, all_codes(), **options).numpy()
            errors.add(ours, np.array([truth.code(v, y) for v in values]))
        lines.append(f"| {name} | {errors.codes} | {errors.share} | {errors.worst} |")
    return "\n".join(lines) + "\n"


def ends(values: list[truth.Real]) -> tuple[float, float]:
    """The least and the largest of them."""
    return min(map(float, values)), max(map(float, values))


def covering(low: float, high: float) -> QParams:
    """Parameters of a range of 8-bit codes."""
    return range_to_qparams(torch.tensor(low), torch.tensor(high), UINT8)


def arithmetic() -> str:
    """Operators of two tensors: every pair of codes; of a tensor and numbers: every code."""
    draw = random.Random(0)
    kinds: dict[str, tuple[Callable[..., NDArray[Any]], Callable[[float, float], float]]] = {
        "mul": (truth.product, lambda a, b: a * b * 128),
        "div": (truth.quotient, lambda a, b: a / b / 16),
        "sub": (truth.difference, lambda a, b: a + b),
    }
    lines = [
        "## Arithmetic\n",
        f"All 65,536 pairs of codes, {PAIR_CASES} times with random scales and zero points; plain",
        f"numbers with all 256 codes, {100 * PAIR_CASES} times. Division by zero is among them: it",
        "gives an end of the range. A difference has multipliers of 21 bits, so that 32 hold it.\n",
        "| operator | codes | differ | worst |\n|---|---|---|---|",
    ]
    for name, (expected, step) in kinds.items():
        errors = Errors()
        for _ in range(PAIR_CASES):
            a, b = (parameters(draw, 10 ** draw.uniform(-3, 0)) for _ in range(2))
            s_y = step(float(a.scale), float(b.scale)) * draw.uniform(0.5, 2)
            y = parameters(draw, s_y)
            errors.add(integers(name, (a, b), y, *pairs(a, b)).numpy(), expected(a, b, y))
        lines.append(f"| {name} | {errors.codes} | {errors.share} | {errors.worst} |")
    errors = Errors()
    for _ in range(100 * PAIR_CASES):
        x, factor = parameters(draw, 10 ** draw.uniform(-3, 0)), draw.gauss(0, 2)
        y = parameters(draw, float(x.scale) * abs(factor) * draw.uniform(0.5, 2))
        offset = draw.gauss(0, 50) * float(y.scale)
        ours = integers("mul_number", (x,), y, all_codes(), factor=factor, offset=offset).numpy()
        errors.add(ours, numbers(x, y, factor, offset))
    lines.append(f"| f·x + o | {errors.codes} | {errors.share} | {errors.worst} |")
    return "\n".join(lines) + "\n"


def parameters(draw: random.Random, scale: float) -> QParams:
    """That scale and any zero point."""
    return qparams(scale, draw.randint(0, 255))


def numbers(x: QParams, y: QParams, factor: float, offset: float) -> NDArray[Any]:
    """The codes of f·x + o for every code."""
    f = Fraction(factor) * truth.scale(x) / truth.scale(y)
    o = Fraction(offset) / truth.scale(y)
    centred = np.array([q - int(x.zero_point) for q in range(256)], object)
    top = centred * (f.numerator * o.denominator) + o.numerator * f.denominator
    return truth.codes(top, f.denominator * o.denominator, y)


def weighted_sums() -> str:
    """Sums of eight tensors, each times a softmax weight, computed in three ways."""
    lines = [
        "## Weighted sums\n",
        "y = w₁·x₁ + … + w₈·x₈, as on an edge of a DARTS search network: w is the softmax of",
        f"alphas from N(0, σ²). {SUM_CASES} times {SUM_ROWS:,} rows of random codes, with random",
        "scales (within a factor of 100) and zero points; every rounded value has the range that",
        "it takes in these rows. *rms* is the distance from the real value, not rounded, in steps",
        "of y; what is rounded once, correctly, has 0.289.\n",
        "- *one sum*: the operator weighted_sum, which is what fxquant makes of such an edge",
        "- *a chain*: each product rounded to 8 bits, then seven sums of two, each rounded too",
        "- *weights of 8 bits*: one sum, but with w rounded to multiples of max(w)/255\n",
        "| σ | way | codes | differ | worst | rms |\n|---|---|---|---|---|---|",
    ]
    for spread in SUM_SPREADS:
        for way, errors in sum_errors(spread).items():
            figures = f"{errors.codes} | {errors.share} | {errors.worst} | {errors.rms:.3f}"
            lines.append(f"| {spread:g} | {way} | {figures} |")
    return "\n".join(lines) + "\n"


def sum_errors(spread: float, cases: int = SUM_CASES) -> dict[str, Errors]:
    """The figures of each way, for weights that are the softmax of alphas from N(0, spread²)."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    ways = {"one sum": one_sum, "a chain": chain, "weights of 8 bits": with_short_weights}
    errors = {way: Errors() for way in ways}
    for _ in range(cases):
        x = tuple(parameters(draw, 10 ** draw.uniform(-2, 0)) for _ in range(SUM_OPERANDS))
        exponentials = [math.exp(draw.gauss(0, spread)) for _ in x]
        w = torch.tensor(exponentials) / sum(exponentials)
        shape = SUM_OPERANDS, SUM_ROWS
        codes = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        y = covering(*extremes(sum(terms(x, w, codes))))
        top, bottom = truth.weighted_sum(x, w.tolist(), codes.numpy(), y)
        expected = truth.codes(top, bottom, y)
        steps = (top / bottom).astype(np.float64) + int(y.zero_point)
        for way, compute in ways.items():
            ours = compute(x, w, codes, y).numpy()
            errors[way].add(ours, expected)
            errors[way].measure(ours, steps)
    return errors


def terms(x: tuple[QParams, ...], w: Tensor, codes: Tensor) -> list[Tensor]:
    """The real products, in float64, which is enough to know their ranges."""
    return [
        (row.double() - q.zero_point) * q.scale.double() * factor
        for q, factor, row in zip(x, w.double(), codes, strict=True)
    ]


def extremes(values: Tensor) -> tuple[float, float]:
    """The least and the largest of them."""
    return float(values.min()), float(values.max())


def one_sum(x: tuple[QParams, ...], w: Tensor, codes: Tensor, y: QParams) -> Tensor:
    """As fxquant computes it."""
    return integers("weighted_sum", x, y, *codes, factors=tuple(w))


def chain(x: tuple[QParams, ...], w: Tensor, codes: Tensor, y: QParams) -> Tensor:
    """Eight products and seven sums, with a rounding each; the last one to the codes of y."""
    real = terms(x, w, codes)
    total, total_q = torch.empty(0), y
    for k, product in enumerate(real):
        term_q = covering(*extremes(product))
        options = {"factor": float(w[k]), "offset": 0.0}
        term = integers("mul_number", (x[k],), term_q, codes[k], **options)
        if k == 0:
            total, total_q = term, term_q
            continue
        sum_q = y if k == len(real) - 1 else covering(*extremes(sum(real[: k + 1])))
        total, total_q = integers("add", (total_q, term_q), sum_q, total, term), sum_q
    return total


def with_short_weights(x: tuple[QParams, ...], w: Tensor, codes: Tensor, y: QParams) -> Tensor:
    """One sum, with weights of 8 bits on one scale."""
    step = w.double().max() / 255
    return one_sum(x, torch.floor(w.double() / step + 0.5) * step, codes, y)


def softmax() -> str:
    """Random rows of many lengths and scales."""
    lines = [
        "## Softmax\n",
        f"Random rows for each figure, a million or {SOFTMAX_CODES:,} codes, of every spread from",
        "nearly equal to all 256 codes; the output's scale is 1/255. Each figure: differ, worst.\n",
        "More than one step it cannot be, up to 2,048 columns: each exponential is rounded to a",
        "multiple of 2⁻²⁰, so their sum, at least 1, is off by at most 2,048/2²¹, a thousandth,",
        "and 255 steps by a quarter of one.\n",
        "| columns | " + " | ".join(f"s = {s:.4g}" for s in SOFTMAX_SCALES) + " |",
        "|---" * (len(SOFTMAX_SCALES) + 1) + "|",
    ]
    for columns in SOFTMAX_COLUMNS:
        figures = []
        for scale in SOFTMAX_SCALES:
            errors = softmax_errors(columns, scale)
            figures.append(errors.share if not errors.wrong else f"{errors.share}, {errors.worst}")
        lines.append(f"| {columns:,} | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def softmax_errors(columns: int, scale: float) -> Errors:
    """One figure, in batches of about a million codes."""
    generator = torch.Generator().manual_seed(columns)
    x, y, errors = qparams(scale, 128), covering(0.0, 1.0), Errors()
    rows = min(SOFTMAX_ROWS, SOFTMAX_CODES // columns)
    batch = max(2**20 // columns, 1)
    while errors.codes < rows * columns:
        codes = random_rows(min(batch, rows - errors.codes // columns), columns, generator)
        real = torch.softmax((codes.double() - 128) * x.scale.double(), 1) / y.scale.double()
        expected = torch.floor(real + 0.5).clamp(0, 255)
        errors.add(integers("softmax", (x,), y, codes, dim=1).numpy(), expected.numpy())
    return errors


def norms() -> str:
    """Random rows of many lengths and scales, random weights and biases."""
    scales = ", ".join(f"{s:.4g}" for s in NORM_SCALES)
    lines = [
        "## Norms\n",
        f"Random rows at the scales {scales}, together {len(NORM_SCALES) * NORM_CODES:,} codes a",
        "figure, of every spread from nearly equal to all 256 codes; weights and biases are",
        "normal, the output has the range of its real values. Group and instance norm are layer",
        "norms of other rows. Each figure: differ, worst.\n",
        "| values in a row | " + " | ".join(f"{n:,}" for n in NORM_COLUMNS) + " |",
        "|---" * (len(NORM_COLUMNS) + 1) + "|",
    ]
    for name in ("layer_norm", "rms_norm", "normalize"):
        found = [norm_errors(name, columns) for columns in NORM_COLUMNS]
        figures = [e.share if not e.wrong else f"{e.share}, {e.worst}" for e in found]
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def norm_errors(name: str, columns: int, count: int = NORM_CODES) -> Errors:
    """One figure."""
    generator, op, errors = torch.Generator().manual_seed(columns), op_named(name), Errors()
    for scale in NORM_SCALES:
        x, codes = qparams(scale, 128), random_rows(count // columns, columns, generator)
        weight, bias = torch.randn(2, columns, generator=generator, dtype=torch.float64)
        options: dict[str, Any] = {
            "layer_norm": {"normalized_shape": (columns,), "weight": weight, "bias": bias},
            "rms_norm": {"normalized_shape": (columns,), "weight": weight},
            "normalize": {"dim": 1},
        }[name]
        options["eps"] = 1e-12 if name == "normalize" else 1e-5
        real = op.function((codes.double() - 128) * x.scale.double(), **options)
        y = covering(*extremes(real))
        expected = torch.floor(real / y.scale.double() + 0.5) + y.zero_point
        ours = integers(name, (x,), y, codes, **options)
        errors.add(ours.numpy(), expected.clamp(0, 255).numpy())
    return errors


def random_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Codes within a window of 1 to 256 of them, which lies anywhere."""
    spread = 2 ** (torch.rand(rows, 1, generator=generator) * 8)
    start = torch.rand(rows, 1, generator=generator) * (256 - spread)
    codes = start + torch.rand(rows, columns, generator=generator) * spread
    return codes.clamp(0, 255).to(torch.uint8)


def page() -> str:
    """The whole page."""
    parts = (functions, arithmetic, weighted_sums, softmax, norms)
    return "\n".join([HEAD, EXACT, *(part() for part in parts)])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
