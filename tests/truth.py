"""The real functions, to 40 digits or exactly, and their correctly rounded codes.

    code(f(x), y) = clamp(z_y + ⌊f(x)/s_y + 1/2⌋)          ties upwards, as everywhere

What integer operators are measured against. No torch and no fxquant arithmetic computes here: a
scale is the rational number that its float32 is, sums, products and quotients of integers are
Python's Fractions, and what is not rational is mpmath's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from fxquant.schemes import QParams

mpmath.mp.dps = 40

Real = Any  # a Fraction, or one of mpmath's numbers
Integers = Any  # a numpy array of Python's integers


def scale(q: QParams) -> Fraction:
    """The scale as the rational number that it is."""
    return Fraction(float(q.scale))


def value(code: int, q: QParams) -> Fraction:
    """The real number that a code stands for."""
    return scale(q) * (code - int(q.zero_point))


def code(y: Real, q: QParams) -> int:
    """The code nearest to `y`, which may be infinite."""
    if isinstance(y, Fraction):
        nearest = math.floor(y / scale(q) + Fraction(1, 2))
    else:  # limited to more than the distance of any two codes: an integer holds it
        steps = min(max(y / real(scale(q)), -1000), 1000)
        nearest = int(mpmath.floor(steps + mpmath.mpf("0.5")))
    return min(max(nearest + int(q.zero_point), q.scheme.qmin), q.scheme.qmax)


def real(x: Fraction | int) -> Real:
    """A rational number as one of mpmath's."""
    x = Fraction(x)
    return mpmath.mpf(x.numerator) / x.denominator


def clip(x: Fraction, low: int, high: int) -> Fraction:
    """`x` between two numbers."""
    return min(max(x, Fraction(low)), Fraction(high))


def sigmoid(x: Fraction) -> Real:
    return 1 / (1 + mpmath.exp(-real(x)))


def gelu(x: Fraction) -> Real:
    return real(x) * (1 + mpmath.erf(real(x) / mpmath.sqrt(2))) / 2


def gelu_tanh(x: Fraction) -> Real:
    inner = mpmath.sqrt(2 / mpmath.pi) * (real(x) + mpmath.mpf("0.044715") * real(x) ** 3)
    return real(x) * (1 + mpmath.tanh(inner)) / 2


# name of the operator, its options, the real function
FUNCTIONS: dict[str, tuple[str, dict[str, Any], Callable[[Fraction], Real]]] = {
    "exp": ("exp", {}, lambda x: mpmath.exp(real(x))),
    "sigmoid": ("sigmoid", {}, sigmoid),
    "tanh": ("tanh", {}, lambda x: mpmath.tanh(real(x))),
    "silu": ("silu", {}, lambda x: real(x) * sigmoid(x)),
    "gelu": ("gelu", {"approximate": "none"}, gelu),
    "gelu, tanh": ("gelu", {"approximate": "tanh"}, gelu_tanh),
    "hardsigmoid": ("hardsigmoid", {}, lambda x: clip(x + 3, 0, 6) / 6),
    "hardswish": ("hardswish", {}, lambda x: x * clip(x + 3, 0, 6) / 6),
    "elu": ("elu", {"alpha": 1.0}, lambda x: x if x > 0 else mpmath.expm1(real(x))),
    # a hundredth, as it is written: -50 codes give a tie of -1/2
    "leaky_relu": (
        "leaky_relu", {"negative_slope": 0.01}, lambda x: x if x > 0 else x * Fraction("0.01")
    ),
}


def pairs(a: QParams, b: QParams) -> tuple[Integers, Integers]:
    """`q - z` of every pair of codes, in the order of `itertools.product`."""
    left, right = (
        np.array([q - int(x.zero_point) for q in range(x.scheme.qmin, x.scheme.qmax + 1)], object)
        for x in (a, b)
    )
    return np.repeat(left, len(right)), np.tile(right, len(left))


def product(a: QParams, b: QParams, y: QParams) -> Integers:
    """The codes of a·b for every pair of codes."""
    left, right = pairs(a, b)
    factor = scale(a) * scale(b) / scale(y)
    return codes(left * right * factor.numerator, factor.denominator, y)


def difference(a: QParams, b: QParams, y: QParams) -> Integers:
    """The codes of a - b for every pair of codes."""
    left, right = pairs(a, b)
    of_a, of_b = scale(a) / scale(y), scale(b) / scale(y)
    top = left * (of_a.numerator * of_b.denominator) - right * (of_b.numerator * of_a.denominator)
    return codes(top, of_a.denominator * of_b.denominator, y)


def weighted_sum(
    x: Sequence[QParams], factors: Sequence[float], codes: Any, y: QParams
) -> tuple[Integers, int]:
    """Numerators and the denominator of w_1·x_1 + … + w_n·x_n, in steps of y; `codes` [n, rows]."""
    steps = [Fraction(w) * scale(q) / scale(y) for w, q in zip(factors, x, strict=True)]
    bottom = math.lcm(*(step.denominator for step in steps))
    rows = zip(x, codes.astype(object), steps, strict=True)
    return sum((row - int(q.zero_point)) * int(step * bottom) for q, row, step in rows), bottom


def sum_of_products(
    x: Sequence[QParams], w: Sequence[QParams], x_codes: Any, w_codes: Any, y: QParams
) -> Integers:
    """The codes of x_1·w_1 + … + x_n·w_n; both kinds of codes [n, rows]."""
    factors = [scale(a) * scale(b) / scale(y) for a, b in zip(x, w, strict=True)]
    bottom = math.lcm(*(factor.denominator for factor in factors))
    left, right = (
        [row - int(q.zero_point) for q, row in zip(of, found.astype(object), strict=True)]
        for of, found in ((x, x_codes), (w, w_codes))
    )
    terms = zip(left, right, factors, strict=True)
    return codes(sum(a * b * int(factor * bottom) for a, b, factor in terms), bottom, y)


def quotient(a: QParams, b: QParams, y: QParams) -> Integers:
    """The codes of a / b for every pair of codes: beyond all of them, with the sign of a, where b
    is 0, and the code of 0 for 0 / 0.
    """
    left, right = pairs(a, b)
    factor = scale(a) / (scale(b) * scale(y))
    top = np.where(right < 0, -left, left) * factor.numerator
    bottom = np.where(right == 0, 1, abs(right)) * factor.denominator
    beyond = np.sign(left) * 1000 * factor.denominator
    return codes(np.where(right == 0, beyond, top), bottom, y)


def mean_moments(row: Integers, eps: Fraction) -> tuple[Integers, Fraction]:
    """u and V of a row of `q - z`, such that u/√V has mean 0; `eps` in squared steps."""
    count, total = len(row), sum(row)
    return count * row - total, count * sum(row * row) - total**2 + count**2 * eps


def zero_moments(row: Integers, eps: Fraction) -> tuple[Integers, Fraction]:
    """The same, divided by the root of the mean square."""
    count = len(row)
    return count * row, count * sum(row * row) + count**2 * eps


def length(row: Integers, eps: Fraction) -> tuple[Integers, Fraction]:
    """The same, divided by its length; `eps` is the square of the least one."""
    return row, max(Fraction(sum(row * row)), eps)


def norm(
    moments: Callable[[Integers, Fraction], tuple[Integers, Fraction]],
    rows: Any,
    x: QParams,
    y: QParams,
    eps: Fraction,
    weight: Sequence[float] = (1.0,),
    bias: Sequence[float] = (0.0,),
) -> Integers:
    """The codes of w·u/√V + b for rows of codes [rows, N]; the root to 24 digits, 0/0 is 0.

    One weight and bias for all, or one for each of the N.
    """
    factors, offsets = ([Fraction(v) / scale(y) for v in values] for values in (weight, bias))
    bottom = math.lcm(*(f.denominator for f in (*factors, *offsets)))
    w, b = (np.array([int(f * bottom) for f in fs], object) for fs in (factors, offsets))
    found = []
    for row in rows.astype(object) - int(x.zero_point):
        u, v = moments(row, eps / scale(x) ** 2)
        root = math.isqrt((v.numerator << 160) // v.denominator) or 1  # times 2^80
        found.append(codes((w * u << 80) + b * root, bottom * root, y))
    return np.array(found)


def codes(numerator: Integers, denominator: Any, q: QParams) -> Integers:
    """The code of `numerator / denominator` steps: Python's integers, element by element."""
    steps = (2 * numerator + denominator) // (2 * denominator)
    return np.clip(steps + int(q.zero_point), q.scheme.qmin, q.scheme.qmax).astype(np.int64)
