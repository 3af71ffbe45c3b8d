"""The real functions, to 40 digits or exactly, and their correctly rounded codes.

    code(f(x), y) = clamp(z_y + ⌊f(x)/s_y + 1/2⌋)          ties upwards, as everywhere

What integer operators are measured against. No torch and no fxquant arithmetic computes here: a
scale is the rational number that its float32 is, sums, products and quotients of integers are
Python's Fractions, and what is not rational is mpmath's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

from fxquant.schemes import QParams

mpmath.mp.dps = 40

Real = Any  # a Fraction, or one of mpmath's numbers


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


def softmax(row: list[Fraction]) -> list[Real]:
    largest = max(row)
    exponentials = [mpmath.exp(real(x - largest)) for x in row]
    total = mpmath.fsum(exponentials)
    return [e / total for e in exponentials]


def quotient(a: Fraction, b: Fraction) -> Real:
    """a / b; beyond 0 infinite with the sign of a, and 0 / 0 is 0."""
    if b == 0:
        return Fraction(0) if a == 0 else mpmath.inf * (1 if a > 0 else -1)
    return a / b
