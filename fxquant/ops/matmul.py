"""Matrix product of two activations.

    real      y = A·B
    integer   q_y = clamp(z_y + (((Σ (q_a - z_a)·(q_b - z_b))·m + 2^(S-1)) >> S))

with m·2^-S = s_a·s_b/s_y. Float kernels add the products exactly. How many there are, only the
tensors say: that their sum fits its accumulator is proved at every call, and at convert where it
knows.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, add_bytes, bytes_of, requantize
from fxquant.forms.qdq import grids_of, to_codes, to_real
from fxquant.intmath import (
    FLOAT32_EXACT,
    accumulator_limit,
    carrier,
    centred,
    exact_integer,
    without_autocast,
)
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import Accumulator, IntegerCall, overflow, reach
from fxquant.ops.spec import OpSpec, Output, RealCall, signature_reader
from fxquant.rounding import Rescale, Rounding


class MatmulNumbers(NamedTuple):
    """`multiplier`, `shift`, a `Rescale`, of s_a·s_b/s_y; `bound`, the largest |product| of two
    codes, int64; the others int32: all 0-dim. `accumulator_bits` have to hold the sum.
    """

    multiplier: Tensor
    shift: Tensor
    bound: Tensor
    a_zero: Tensor
    b_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    accumulator_bits: Tensor
    rounding: Rounding


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """[..., N, K] and [..., K, M] to [..., N, M]; vectors and batches as torch.matmul has them."""
    return torch.matmul(input, other)


class Limits(NamedTuple):
    """`bound` of one product, the `bits` of the accumulator, and which types may carry it."""

    bound: int
    bits: int
    carriers: tuple[torch.dtype, torch.dtype]

    def prove_fits(self, terms: int, which: str) -> None:
        """Refuse sums of so many products that their accumulator may not hold them."""
        worst = self.bound * terms
        if worst >= accumulator_limit(self.bits):
            raise overflow(which, terms, worst, self.bits)

    def carrier(self, terms: int, *codes: torch.dtype) -> torch.dtype:
        """The type that sums so many products of such codes exactly."""
        wide = any(dtype.itemsize > 1 for dtype in codes)
        return self.carriers[wide or self.bound * terms >= FLOAT32_EXACT]


def limits_of(n: MatmulNumbers) -> Limits:
    """As numbers, which need not be read from tensors at each call."""
    bits, smallest = int(n.accumulator_bits), carrier(torch.ones_like(n.bound))
    return Limits(int(n.bound), bits, (smallest, torch.float64))


def _numbers(call: RealCall) -> MatmulNumbers:
    (a, b), (y, low, high, rounding) = call.inputs, call.target
    multiplier, shift = call.target.rescale(a.scale, b.scale)
    of_a, of_b = (
        torch.maximum(x.scheme.qmax - x.zero_point, x.zero_point - x.scheme.qmin) for x in (a, b)
    )
    return MatmulNumbers(
        multiplier=multiplier,
        shift=shift,
        bound=of_a.to(torch.int64) * of_b,
        a_zero=a.zero_point,
        b_zero=b.zero_point,
        y_zero=y.zero_point,
        low=low,
        high=high,
        accumulator_bits=torch.full_like(y.zero_point, call.accumulator_bits),
        rounding=rounding,
    )


def _accumulator(call: IntegerCall) -> Accumulator:
    n: MatmulNumbers = call.numbers
    a, b = call.inputs
    if a.shape is None:
        return Accumulator(None, None, call.bits)
    terms = a.shape[-1]
    product = reach(a.scheme, n.a_zero) * reach(b.scheme, n.b_zero)
    kind = carrier(n.bound * terms, a.scheme.dtype, b.scheme.dtype)
    exact = product <= int(n.bound)
    return Accumulator((product * terms,), terms, call.bits, kind, exact)


def _kernel(n: MatmulNumbers, dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        return _within(limits_of(n), n, dtype, a, b)
    terms = a.shape[-1]  # other numbers cannot be asked for
    _assert_fits(n, terms)
    kind = carrier(n.bound, a.dtype, b.dtype, worst=terms * 255 * 255)
    return _product(kind, n, dtype, a, b)


def _assert_fits(n: MatmulNumbers, terms: int) -> None:
    """What `Limits.prove_fits` does, by a node of the graph: a RuntimeError when it runs."""
    limit = accumulator_limit(n.accumulator_bits.to(torch.int64))
    torch._assert_async(
        n.bound * terms < limit,
        # one line: inductor writes it into C++ as it is
        "a matrix product sums more products than its accumulator is proved to hold. "
        "What to do: call the network without torch.compile, which says how many and what helps.",
    )


def _fast(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    return Plain(partial(_within, limits_of(call.numbers), call.numbers, dtype))


def _within(
    limits: Limits, n: MatmulNumbers, dtype: torch.dtype, a: Tensor, b: Tensor
) -> Tensor:
    terms = a.shape[-1]
    limits.prove_fits(terms, "a matrix product")
    return _product(limits.carrier(terms, a.dtype, b.dtype), n, dtype, a, b)


def _product(
    kind: torch.dtype, n: MatmulNumbers, dtype: torch.dtype, a: Tensor, b: Tensor
) -> Tensor:
    with without_autocast(a):
        total = matmul(centred(a, n.a_zero, kind), centred(b, n.b_zero, kind))
    rescale = Rescale(n.multiplier, n.shift)
    return n.rounding.requantize(exact_integer(total), rescale, n.y_zero, n.low, n.high, dtype)


def _onnx(call: OnnxCall) -> Value:
    """MatMulInteger of each byte of the one and each of the other."""
    n: MatmulNumbers = call.numbers
    a, b = call.codes

    def product(left: Value, a_zero: Tensor, right: Value, b_zero: Tensor) -> Value:
        return call.graph.node(
            "MatMulInteger", left, right, a_zero, b_zero, dtype=torch.int32
        )

    acc = add_bytes(
        add_bytes(product(*left, *right) for right in bytes_of(b, n.b_zero))
        for left in bytes_of(a, n.a_zero)
    )
    return requantize(acc, n.rounding, Rescale(n.multiplier, n.shift), n, call.dtype)


def _qdq(call: OnnxCall) -> Value | None:
    """MatMul, which engines run as QLinearMatMul."""
    grids = grids_of(call)
    if grids is None:
        return None
    a, b = (
        to_real(codes, q.scale, q.zero_point) for codes, q in zip(call.codes, grids, strict=True)
    )
    real = call.graph.node("MatMul", a, b, dtype=torch.float32)
    return to_codes(call, real)


MATMUL = OpSpec(
    name="matmul",
    function=matmul,
    functions=(operator.matmul, torch.matmul, torch.bmm, torch.mm),
    methods=("matmul", "bmm", "mm"),
    modules={},
    read=signature_reader(matmul, inputs=2),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    fast=_fast,
    accumulator=_accumulator,
    onnx=_onnx,
    qdq=_qdq,
)
