"""A converted network run a second time: slowly, in plain integers, by other formulas.

    torch       Σ w·(q - z)        in a float carrier, padding is 0      kernels of torch
    here        Σ w·q - z·Σ w      in int64, padding is z                windows gathered one by one
                                   transposed: both sums scattered       element by element

Only numpy and Python integers compute here; of fxquant this reads the graph, the buffers and the
name of the rounding, and nothing of its kernels or its arithmetic. int64 is exact because each
product is first proved, with Python's integers, to stay within 63 bits. On the way it checks what a
converted network promises: sums stay within their certified `bound` and within 32 bits, codes
within their scheme. Real numbers appear at the border only: quantize and dequantize are IEEE
float32, as are the factors of fp32_rne.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fxquant.schemes import QuantScheme
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize

Codes = NDArray[np.int64]
Buffers = dict[str, Any]  # every number of an operator, under its name, and its "rounding"

ACCUMULATOR_LIMIT = 2**31
BELOW_ALL_CODES = -(2**20)


def run(gm: fx.GraphModule, *inputs: torch.Tensor) -> dict[str, Any]:
    """What every node of a converted network gives, by node name.

    int64 arrays for integers, float32 arrays for inputs and for what comes out of dequantize,
    Python's ints for shapes, and tuples of those where a node gives several.
    """
    values: dict[str, Any] = {}
    given = iter(inputs)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = next(given).numpy()
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        values[node.name] = _call(gm, node, args, kwargs)
    return values


def differences(reference: Any, value: Any) -> int:
    """How many elements of a torch value differ from the reference's.

    A difference of shape or of structure counts as one more than there are elements.
    """
    if isinstance(reference, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(reference):
            return len(reference) + 1
        return sum(map(differences, reference, value))
    if isinstance(reference, np.ndarray):
        found = value.detach().numpy()
        return int((found != reference).sum()) if found.shape == reference.shape else found.size + 1
    return int(reference != value)


def _call(gm: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "output":
        return args[0]
    if node.op == "get_attr":
        return gm.get_buffer(str(node.target)).numpy().astype(np.int64)
    if node.op == "call_method":
        return MOVES[str(node.target)](*args, **kwargs)
    if node.op == "call_function":
        # getattr(x, "shape"), x[:, 1:] and c // 2 mean the same on arrays and ints
        if node.target is getattr or node.target in vars(operator).values():
            return node.target(*args)  # type: ignore[operator]
        return MOVES[node.target.__name__](*args, **kwargs)  # type: ignore[union-attr]
    assert node.op == "call_module", f"a converted network has no {node.op} nodes, found {node}"
    module = gm.get_submodule(str(node.target))
    if isinstance(module, Quantize):
        return quantize(args[0], module)
    if isinstance(module, Dequantize):
        return dequantize(args[0], module)
    if isinstance(module, IntegerOp):
        codes = KERNELS[module.op.name](numbers(module), *args, **kwargs)
        check_range(codes, module.scheme)
        return codes
    return MODULES[type(module)](module, *args)


def numbers(module: IntegerOp) -> Buffers:
    """The buffers as int64, but for float32 factors, and the name of the rounding."""
    arrays = {name: value.numpy() for name, value in module.named_buffers()}
    whole = {
        name: value if value.dtype == np.float32 else value.astype(np.int64)
        for name, value in arrays.items()
    }
    rounding = getattr(module.numbers, "rounding", None)
    return whole | ({} if rounding is None else {"rounding": rounding.name})


def check_range(codes: Codes, scheme: QuantScheme) -> None:
    """Codes of n bits: 0 to 2^n - 1, or -2^(n-1) to 2^(n-1) - 1 where they are signed."""
    low = -(2 ** (scheme.bits - 1)) if scheme.signed else 0
    assert codes.size == 0 or low <= int(codes.min()) <= int(codes.max()) < low + 2**scheme.bits


# ------------------------------------------------------------------------ the border


def quantize(x: NDArray[np.float32], module: Quantize) -> Codes:
    """`clamp(round(x/s) + z)`: float32 up to the rounding, integers from there on."""
    steps = NEAREST[module.rounding.name](x / module.scale.numpy())
    # limited to more than the distance of any two codes, so that an integer holds it
    codes = np.clip(steps, -1000, 1000).astype(np.int64) + int(module.zero_point)
    low = -(2 ** (module.scheme.bits - 1)) + module.scheme.narrow if module.scheme.signed else 0
    high = 2 ** (module.scheme.bits - module.scheme.signed) - 1
    return np.clip(codes, low, high)


def dequantize(codes: Any, module: Dequantize) -> Any:
    """`(q - z)·s`, one float32 product; each array of a tuple by itself."""
    if isinstance(codes, (tuple, list)):
        return tuple(dequantize(part, module) for part in codes)
    return (codes - int(module.zero_point)).astype(np.float32) * module.scale.numpy()


# ------------------------------------------------------------------------ arithmetic


def largest(x: Codes) -> int:
    """The largest absolute value in `x`, as a Python integer."""
    return max(abs(int(x.max())), abs(int(x.min()))) if x.size else 0


def rescale(n: Buffers, acc: Codes, multiplier: Any, shift: Codes) -> Codes:
    """An accumulator times its factor, rounded as the operator rounds."""
    if n["rounding"] == "fp32_rne":
        assert multiplier.dtype == np.float32
        return to_integers(np.rint(np.float32(acc) * multiplier))
    return shifted(n, acc, multiplier, shift)


def shifted(n: Buffers, acc: Codes, multiplier: Codes, shift: Codes) -> Codes:
    """`acc·m / 2^S`, rounded as the operator rounds, proved not to leave 63 bits."""
    worst = largest(acc) * largest(multiplier) + (1 << largest(shift)) // 2
    assert worst < 2**63, f"a product may reach {worst}, beyond 63 bits"
    return SHIFTS[n["rounding"]](acc * multiplier, shift)


def half_up(product: Codes, shift: Codes) -> Codes:
    """`(p + 2^(S-1)) >> S`; `>>` floors, as Python's does."""
    return (product + ((np.int64(1) << shift) >> 1)) >> shift


def half_even(product: Codes, shift: Codes) -> Codes:
    """The floor, and one more where what it cut off is more than half, or half of an odd one."""
    floor = product >> shift
    twice = 2 * (product - (floor << shift))
    return floor + ((twice > (1 << shift)) | ((twice == (1 << shift)) & (floor % 2 != 0)))


def half_away(product: Codes, shift: Codes) -> Codes:
    """What half-up makes of the absolute value, with the sign put back."""
    return np.sign(product) * half_up(np.abs(product), shift)


def high_mul(product: Codes, shift: Codes) -> tuple[Codes, Codes]:
    """SaturatingRoundingDoublingHighMul as gemmlowp has it, and how far to shift from there on.

    The accumulator is shifted to the left before it, where S < 31. In Python's integers, which
    that does not overflow; their `//` floors, C's `/` goes towards 0.
    """
    wide = np.asarray(product, dtype=object) * 2 ** np.maximum(31 - shift, 0).astype(object)
    nudged = wide + np.where(wide >= 0, 2**30, 1 - 2**30)
    return np.sign(nudged) * (abs(nudged) // 2**31), np.maximum(shift - 31, 0).astype(object)


def gemmlowp(product: Codes, shift: Codes) -> Codes:
    """RoundingDivideByPOT as gemmlowp has it, of the high multiplication: by mask and threshold."""
    x, exponent = high_mul(product, shift)
    mask = 2**exponent - 1
    threshold = mask // 2 + (x < 0).astype(object)
    return (x // 2**exponent + ((x & mask) > threshold)).astype(np.int64)


def ruy(product: Codes, shift: Codes) -> Codes:
    """A rounding right shift, `(x + 2^(e-1)) >> e`, of the high multiplication."""
    x, exponent = high_mul(product, shift)
    return ((x + 2**exponent // 2) // 2**exponent).astype(np.int64)


SHIFTS: dict[str, Callable[[Codes, Codes], Codes]] = {
    "half_up": half_up,
    "half_even": half_even,
    "half_away": half_away,
    "gemmlowp": gemmlowp,
    "ruy": ruy,
    "fp32_rne": half_even,
}


def divided(n: Buffers, total: Codes, count: Codes) -> Codes:
    """`total/count` as a floor division, rounded as the operator rounds; LiteRT's ties go away."""
    if n["rounding"] == "half_up":
        return (2 * total + count) // (2 * count)
    if n["rounding"] in ("half_even", "fp32_rne"):
        floor, rest = total // count, total % count
        return floor + ((2 * rest > count) | ((2 * rest == count) & (floor % 2 != 0)))
    return np.sign(total) * ((2 * np.abs(total) + count) // (2 * count))


def _away(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """C's round(): what is cut off tells whether to go one further from 0."""
    return np.trunc(x) + np.copysign(np.abs(x - np.trunc(x)) >= np.float32(0.5), x)


NEAREST: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "half_up": lambda x: np.floor(x + np.float32(0.5)),
    "half_even": np.rint,
    "half_away": _away,
    "gemmlowp": _away,
    "ruy": np.rint,
    "fp32_rne": np.rint,
}


def to_integers(whole: NDArray[np.float32]) -> Codes:
    """Whole floats, limited to what int64 holds and further than the distance of any codes."""
    return np.clip(whole, -(2.0**31), 2.0**31).astype(np.int64)


def average(n: Buffers, total: Codes, count: Codes, first: int = 0) -> Codes:
    """`total·m/(count·2^S)`, rounded as the operator rounds, proved to have 63 bits.

    What is added `first`, to be taken away again, decides ties; Python's integers hold it.
    """
    assert largest(total) * largest(n["multiplier"]) < 2**62
    product, divisor = total * n["multiplier"], np.asarray(count) << n["shift"]
    worst = 2 * largest(product) + largest(divisor)
    assert worst < 2**63, f"a mean may reach {worst}, beyond 63 bits"
    dividend = np.asarray(product, dtype=object) + first * int(divisor)
    return limit(divided(n, dividend, int(divisor)).astype(np.int64) - first, n)


def along_channels(values: Codes, dims: int) -> Codes:
    """A number per channel, to broadcast against [N, C, ...] of `dims` axes."""
    return values.reshape(1, -1, *[1] * (dims - 2))


def limit(codes: Codes, n: Buffers) -> Codes:
    """`codes` around the output's zero point, clamped to two limits, or to two per channel.

    Limits per channel count along the last axis here, whatever shape they are stored in.
    """
    low, high = (np.squeeze(n[end]) for end in ("low", "high"))
    assert (low <= high).all()
    return np.clip(codes + n["y_zero"], low, high)


# ------------------------------------------------------------------------ windows


def per_axis(setting: Any, dims: int) -> tuple[int, ...]:
    """One number per spatial axis: `3`, `(3,)` and `(3, 3)` say the same of two axes."""
    if not isinstance(setting, (tuple, list)):
        return (setting,) * dims
    return tuple(setting) * (dims // len(setting))


def gather(x: Codes, starts: Sequence[range], steps: Sequence[range], fill: int) -> Codes:
    """Every window of the last axes of `x`: [..., *spatial] to [..., *windows, *elements].

    Window w holds the elements `starts[a][w] + steps[a][k]` along spatial axis a, and `fill`
    where that is outside of `x`.
    """
    dims = len(starts)
    widths, index = [(0, 0)] * (x.ndim - dims), []
    for a in range(dims):
        length = x.shape[a - dims]
        at = np.asarray(starts[a])[:, None] + np.asarray(steps[a])[None, :]
        before = max(0, -int(at.min()))
        widths.append((before, max(0, int(at.max()) + 1 - length)))
        shape = [1] * (2 * dims)
        shape[a], shape[dims + a] = at.shape
        index.append((at + before).reshape(shape))
    return np.pad(x, widths, constant_values=fill)[(..., *index)]


def pool_starts(
    length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> range:
    """Where the windows of a pool begin, along one axis.

    With `ceil_mode` the last window may reach beyond the padding, but begins before the end
    of the input.
    """
    room = length + 2 * padding - dilation * (kernel - 1) - 1
    last = -(-room // stride) if ceil_mode else room // stride
    if ceil_mode and last * stride - padding >= length:
        last -= 1
    return range(-padding, last * stride - padding + 1, stride)


# ------------------------------------------------------------------------ operators


def layer(n: Buffers, acc: Codes) -> Codes:
    """Codes [..., O] from the accumulators [..., O] of a layer.

    acc = Σ w·q - z·Σ w,   |acc| <= bound,   |acc + b| < 2^31
    """
    assert acc.shape[-1:] == n["bound"].shape == n["bias"].shape == n["multiplier"].shape
    assert (np.abs(acc) <= n["bound"]).all(), "a sum exceeds its certified bound"
    acc = acc + n["bias"]
    assert largest(acc) < ACCUMULATOR_LIMIT, "an accumulator exceeds 32 bits"
    return limit(rescale(n, acc, n["multiplier"], n["shift"]), n)


def linear(n: Buffers, q: Codes) -> Codes:
    """[..., I] to [..., O]."""
    return layer(n, q @ n["weight"].T - n["x_zero"] * n["weight"].sum(1))


def convolution(
    n: Buffers, q: Codes, *, stride: Any, padding: Any, dilation: Any, groups: int,
    padding_mode: str | None = None,
) -> Codes:
    """[N, C, *spatial] to [N, O, *windows]: each group's windows times its own weights."""
    weight = n["weight"]
    outputs, kernel, dims = weight.shape[0], weight.shape[2:], weight.ndim - 2
    dilation, stride = per_axis(dilation, dims), per_axis(stride, dims)
    span = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before, after = conv_padding(padding, span)
    if padding_mode is not None:
        widths = [(0, 0), (0, 0), *zip(before, after, strict=True)]
        q, before, after = np.pad(q, widths, COPIES[padding_mode]), [0] * dims, [0] * dims
    starts = [
        range(-before[a], q.shape[2 + a] + after[a] - span[a], stride[a]) for a in range(dims)
    ]
    steps = [range(0, span[a] + 1, dilation[a]) for a in range(dims)]
    windows = gather(q, starts, steps, fill=int(n["x_zero"]))

    N, C, *size = windows.shape[: 2 + dims]
    # [N, G, C/G, positions, elements] to [G, N·positions, C/G·elements]
    columns = windows.reshape(N, groups, C // groups, math.prod(size), math.prod(kernel))
    columns = columns.transpose(1, 0, 3, 2, 4).reshape(groups, N * math.prod(size), -1)
    rows = weight.reshape(groups, outputs // groups, -1)
    products = columns @ rows.transpose(0, 2, 1)
    products = products.transpose(1, 0, 2).reshape(N, *size, outputs)
    total = products - n["x_zero"] * weight.reshape(outputs, -1).sum(1)
    return np.moveaxis(layer(n, total), -1, 1)


# what numpy calls the ways in which torch pads with copies
COPIES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def conv_padding(padding: Any, span: list[int]) -> tuple[list[int], list[int]]:
    """Elements before and after, per axis; what 'same' cannot halve goes behind."""
    if padding == "valid":
        return [0] * len(span), [0] * len(span)
    if padding == "same":
        return [s // 2 for s in span], [s - s // 2 for s in span]
    return list(per_axis(padding, len(span))), list(per_axis(padding, len(span)))


def transposed_convolution(
    n: Buffers, q: Codes, *, stride: Any, padding: Any, output_padding: Any, groups: int,
    dilation: Any,
) -> Codes:
    """[N, I, *spatial] to [N, O, *spatial']: the codes scattered, less as many zero points.

    How many weights meet at a place depends on the place, so `z·Σ w` is scattered too.
    """
    dims = q.ndim - 2
    settings = [per_axis(s, dims) for s in (stride, padding, output_padding, dilation)]
    zeros = np.full_like(q[:1], n["x_zero"])
    of_codes, of_zeros = (scatter(x, n["weight"], groups, *settings) for x in (q, zeros))
    return np.moveaxis(layer(n, np.moveaxis(of_codes - of_zeros, 1, -1)), -1, 1)


def scatter(
    x: Codes, weight: Codes, groups: int, stride: tuple[int, ...], padding: tuple[int, ...],
    output_padding: tuple[int, ...], dilation: tuple[int, ...],
) -> Codes:
    """`y[c, s·i + d·k - p] += w[j, c, k]·x[j, i]` for all i, j, k, channels within their group.

    The weights are [I, O/G, *kernel]; group g reads and writes the g-th part of the channels.
    """
    N, inputs, *lengths = x.shape
    kernel, per_group = weight.shape[2:], weight.shape[1]
    reach = [s * (L - 1) + 1 for s, L in zip(stride, lengths, strict=True)]
    sizes = [
        r + d * (k - 1) + extra
        for r, d, k, extra in zip(reach, dilation, kernel, output_padding, strict=True)
    ]
    y = np.zeros((N, groups * per_group, *sizes), dtype=np.int64)
    for g, k in itertools.product(range(groups), np.ndindex(*kernel)):
        at = [
            slice(d * i, d * i + r, s)
            for d, i, r, s in zip(dilation, k, reach, stride, strict=True)
        ]
        reads = slice(g * inputs // groups, (g + 1) * inputs // groups)
        writes = slice(g * per_group, (g + 1) * per_group)
        products = np.tensordot(weight[(reads, slice(None), *k)], x[:, reads], (0, 1))
        y[(slice(None), writes, *at)] += np.moveaxis(products, 0, 1)
    return y[(..., *(slice(p, size - p) for p, size in zip(padding, sizes, strict=True)))]


def batch_norm(n: Buffers, q: Codes) -> Codes:
    """`((q - z)·m + offset) / 2^S` per channel, with the offset brought to q's side.

    The whole is one rounding of `q·m + (offset - z·m)`.
    """
    multiplier, shift, offset = (
        along_channels(n[name], q.ndim) for name in ("multiplier", "shift", "offset")
    )
    assert largest(q) * largest(multiplier) * 2 + largest(offset) + 2**44 < 2**63
    constant = offset - n["x_zero"] * multiplier
    return limit(shifted(n, q * multiplier + constant, np.int64(1), shift), n)


def add(n: Buffers, *operands: Codes) -> Codes:
    """`Σ q·m - Σ z·m`, one rounding; the sum and the rounding term fit 32 bits."""
    if n["rounding"] in ("gemmlowp", "ruy"):
        return limit(litert_sum(n, operands), n)
    if n["rounding"] == "fp32_rne":
        return np.clip(float32_sum(n, operands), n["low"], n["high"])
    constant = int((n["x_zero"] * n["multiplier"]).sum())
    products = (q * m for q, m in zip(operands, n["multiplier"], strict=True))
    total = sum(products, np.int64(0)) - constant
    assert largest(total) + 2 ** int(n["shift"]) // 2 < ACCUMULATOR_LIMIT
    return limit(shifted(n, total, np.int64(1), n["shift"]), n)


def litert_sum(n: Buffers, operands: Sequence[Codes]) -> Codes:
    """reference_ops::Add: each operand 20 bits to the left and rounded, then their sum, in 32 bits.

    The multipliers of the operands hold those 20 bits.
    """
    assert not (n["multiplier"][:-1] % 2**20).any()
    rows = zip(operands, n["x_zero"], n["multiplier"], n["shift"], strict=False)
    total = sum((gemmlowp((q - z) * 2**20 * (m // 2**20), s) for q, z, m, s in rows), np.int64(0))
    assert largest(total) < ACCUMULATOR_LIMIT
    return gemmlowp(total * n["multiplier"][-1], n["shift"][-1])


def float32_sum(n: Buffers, operands: Sequence[Codes]) -> Codes:
    """MlasQLinearAdd: `(z_y - Σ f·z) + Σ f·q` in fused multiply-adds, the last operand first."""

    def fused(factor: Any, x: Codes, summand: Any) -> Any:
        return np.float32(np.longdouble(factor) * np.longdouble(x) + np.longdouble(summand))

    rows = [*zip(operands, n["x_zero"], n["multiplier"], strict=True)][::-1]
    zeros, total = np.float32(0), np.float32(0)
    for _, z, factor in rows:
        zeros = fused(factor, z, zeros)
    total = np.float32(n["y_zero"]) - zeros
    for q, _, factor in rows:
        total = fused(factor, q, total)
    return to_integers(np.rint(total))


def scale(n: Buffers, q: Codes) -> Codes:
    """One rounding, with a multiplier for every factor."""
    return limit(rescale(n, q - n["x_zero"], n["multiplier"], n["shift"]), n)


def new_zeros(n: Buffers, x: Codes, size: object) -> Codes:
    """The code of 0, everywhere."""
    return np.full(x.shape if size is None else size, n["zero"])


def sum_of_products(n: Buffers, *operands: Codes) -> Codes:
    """Every product in full, brought to one scale, one rounding."""
    centred = [q - z for q, z in zip(operands, n["x_zero"], strict=True)]
    half = len(centred) // 2
    pairs = zip(centred[:half], centred[half:], n["multiplier"], strict=True)
    total = sum((a * b * m for a, b, m in pairs), np.int64(0))
    return limit(shifted(n, total, np.int64(1), n["shift"]), n)


def cat(n: Buffers, *operands: Codes, dim: int) -> Codes:
    """Each operand on the output's grid, then side by side."""
    rows = zip(operands, n["x_zero"], n["multiplier"], n["shift"], strict=True)
    return np.concatenate([limit(rescale(n, q - z, m, s), n) for q, z, m, s in rows], dim)


def relu(n: Buffers, q: Codes, inplace: bool = False) -> Codes:
    """Nothing below the code of 0."""
    return np.where(q < n["zero"], n["zero"], q)


def clamp(n: Buffers, q: Codes) -> Codes:
    """Between the codes of the two limits."""
    return np.where(q < n["low"], n["low"], np.where(q > n["high"], n["high"], q))


def max_pool(
    n: Buffers, q: Codes, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool, dims: int,
) -> Codes:
    """The largest code of each window; padding never is."""
    kernel, dilation = per_axis(kernel_size, dims), per_axis(dilation, dims)
    stride = per_axis(stride or kernel_size, dims)
    padding = per_axis(padding, dims)
    starts = [
        pool_starts(q.shape[a - dims], kernel[a], stride[a], padding[a], dilation[a], ceil_mode)
        for a in range(dims)
    ]
    steps = [range(0, dilation[a] * kernel[a], dilation[a]) for a in range(dims)]
    windows = gather(q, starts, steps, fill=BELOW_ALL_CODES)
    return windows.max(tuple(range(-dims, 0)))


def avg_pool(
    n: Buffers, q: Codes, *, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None = None, dims: int,
) -> Codes:
    """The mean of each window of codes, zero points and all.

    A window's divisor is counted, not computed: it is the sum over the same window of an image
    that is 1 where elements count, and 0 elsewhere.
    """
    kernel, padding = per_axis(kernel_size, dims), per_axis(padding, dims)
    stride = per_axis(stride or kernel_size, dims)
    starts = [
        pool_starts(q.shape[a - dims], kernel[a], stride[a], padding[a], 1, ceil_mode)
        for a in range(dims)
    ]
    steps = [range(k) for k in kernel]
    elements = tuple(range(-dims, 0))
    total = gather(q, starts, steps, int(n["zero"])).sum(elements)
    counted = np.ones(q.shape[-dims:], dtype=np.int64)
    counted = np.pad(counted, [(p, p) for p in padding], constant_values=int(count_include_pad))
    shifted = [
        range(s.start + p, s.stop + p, s.step) for s, p in zip(starts, padding, strict=True)
    ]
    count = gather(counted, shifted, steps, fill=0).sum(elements)
    if divisor_override:
        count = np.full_like(count, divisor_override)
    return divided(n, total + n["zero"] * (count - math.prod(kernel)), count)


def adaptive_avg_pool(n: Buffers, q: Codes, *, output_size: Any, dims: int) -> Codes:
    """The mean of each cell, rounded before the zero point is added, cell by cell.

    Cell i of n over a length L reaches from ⌊i·L/n⌋ to ⌈(i+1)·L/n⌉.
    """
    lengths = q.shape[-dims:]
    wanted = per_axis(output_size, dims)
    sizes = [L if size is None else size for L, size in zip(lengths, wanted, strict=True)]
    y = np.empty((*q.shape[:-dims], *sizes), dtype=np.int64)
    for cell in itertools.product(*map(range, sizes)):
        ends = [
            (i * L // size, math.ceil((i + 1) * L / size))
            for i, L, size in zip(cell, lengths, sizes, strict=True)
        ]
        inside = q[(..., *(slice(*pair) for pair in ends))]
        total = (inside - n["x_zero"]).sum(tuple(range(-dims, 0)))
        y[(..., *cell)] = average(n, total, np.asarray(math.prod(inside.shape[-dims:])))
    return y


def mean(n: Buffers, q: Codes, dim: Any, keepdim: bool = False) -> Codes:
    """The mean over `dim`, rounded with the zero point."""
    axes = tuple(dim) if isinstance(dim, (tuple, list)) else dim
    total = (q - n["x_zero"]).sum(axes, keepdims=keepdim)
    return average(n, total, np.asarray(q.size // max(total.size, 1)), int(n["y_zero"]))


def total_of(n: Buffers, q: Codes, dim: Any, keepdim: bool = False) -> Codes:
    """The sum over `dim`, likewise."""
    axes = tuple(dim) if isinstance(dim, (tuple, list)) else dim
    total = (q - n["x_zero"]).sum(axes, keepdims=keepdim)
    return average(n, total, np.asarray(1), int(n["y_zero"]))


def adaptive_max_pool(n: Buffers, q: Codes, *, output_size: Any, dims: int) -> Codes:
    """The largest code of each cell, which reaches from ⌊i·L/n⌋ to ⌈(i+1)·L/n⌉."""
    lengths, wanted = q.shape[-dims:], per_axis(output_size, dims)
    sizes = [L if size is None else size for L, size in zip(lengths, wanted, strict=True)]
    for axis, (L, size) in enumerate(zip(lengths, sizes, strict=True), start=-dims):
        cells = [range(i * L // size, math.ceil((i + 1) * L / size)) for i in range(size)]
        q = np.stack([np.take(q, cell, axis).max(axis) for cell in cells], axis)
    return q


def zero(n: Buffers, q: Codes) -> Codes:
    """The code of 0 everywhere."""
    return np.full_like(q, n["zero"])


def pad(n: Buffers, q: Codes, pad: Sequence[int], mode: str) -> Codes:
    """The code of 0 around."""
    return surround(q, pad, n["zero"])


def pad_value(n: Buffers, q: Codes, pad: Sequence[int], mode: str) -> Codes:
    """All on the output's grid, the constant around; an activation clamps both."""
    inner = limit(rescale(n, q - n["x_zero"], n["multiplier"], n["shift"]), n)
    return surround(inner, pad, np.clip(n["fill"], n["low"], n["high"]))


def pad_copies(n: Buffers, q: Codes, pad: Sequence[int], mode: str) -> Codes:
    """Other elements of its own around."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    return np.pad(q, [(0, 0)] * (q.ndim - len(pairs)) + pairs, COPIES[mode])


def resized(
    lengths: Sequence[int], size: Any, scale_factor: Any, recompute: bool | None
) -> list[tuple[int, Fraction]]:
    """The new length of each axis, and how many old places one new place is."""
    if scale_factor is None:
        sizes = per_axis(size, len(lengths))
        return [(new, Fraction(L, new)) for L, new in zip(lengths, sizes, strict=True)]
    factors = [Fraction(f) for f in per_axis(scale_factor, len(lengths))]
    sizes = tuple(math.floor(L * f) for L, f in zip(lengths, factors, strict=True))
    if recompute:
        return resized(lengths, sizes, None, None)
    return [(new, 1 / f) for new, f in zip(sizes, factors, strict=True)]


def interpolate_nearest(
    n: Buffers, q: Codes, size: Any, scale_factor: Any, mode: str, align_corners: None,
    recompute_scale_factor: bool | None,
) -> Codes:
    """Axis by axis; torch multiplies by a float32, whose error may move a place: so do we."""
    half = np.float32(0.5 if mode == "nearest-exact" else 0)
    axes = resized(q.shape[2:], size, scale_factor, recompute_scale_factor)
    for axis, (new, step) in enumerate(axes, start=2):
        places = np.floor((np.arange(new, dtype=np.float32) + half) * np.float32(float(step)))
        q = np.take(q, np.minimum(places.astype(np.int64), q.shape[axis] - 1), axis)
    return q


def interpolate_linear(
    n: Buffers, q: Codes, size: Any, scale_factor: Any, mode: str, align_corners: bool | None,
    recompute_scale_factor: bool | None,
) -> Codes:
    """A matrix of weights for each axis, whose rows add up to 2^k; `Σ w·q`, one rounding.

    The zero point needs no part in it: the weights of a place add up to the divisor.
    """
    axes = resized(q.shape[2:], size, scale_factor, recompute_scale_factor)
    bits = int(n["fraction"])
    for axis, (new, step) in enumerate(axes, start=2):
        length = q.shape[axis]
        weights = np.zeros((new, length), np.int64)
        for i in range(new):
            if align_corners:
                place = Fraction(i * (length - 1), new - 1) if new > 1 else Fraction(0)
            else:
                place = max((i + Fraction(1, 2)) * step - Fraction(1, 2), Fraction(0))
            place = min(place, Fraction(length - 1))
            share = math.floor((place % 1) * 2**bits + Fraction(1, 2))
            weights[i, math.floor(place)] += 2**bits - share
            weights[i, min(math.floor(place) + 1, length - 1)] += share
        q = np.moveaxis(np.tensordot(weights, q, (1, axis)), 0, axis)
    assert largest(q) < 2**63 // 2
    return divided(n, q, np.int64(1) << (bits * len(axes)))


def embedding(
    n: Buffers, q: Codes, indices: Codes, padding_idx: int | None, scale_grad_by_freq: bool
) -> Codes:
    """Row by row."""
    rows = [q[i] for i in indices.flatten().tolist()]
    return np.stack(rows).reshape(*indices.shape, q.shape[1])


def prelu(n: Buffers, q: Codes) -> Codes:
    """Channel by channel: one multiplier above zero, another below."""
    y = np.empty_like(q)
    channels = range(q.shape[1]) if n["multiplier"].shape[1] > 1 else [0]
    for c in channels:
        part = (slice(None), slice(c, c + 1) if len(channels) > 1 else slice(None))
        steps = q[part] - n["x_zero"]
        above, below = (
            rescale(n, steps, n["multiplier"][row, c], n["shift"][row, c]) for row in (0, 1)
        )
        y[part] = np.where(steps > 0, above, below)
    return limit(y, n)


def surround(q: Codes, pad: Sequence[int], fill: Codes) -> Codes:
    """More of `fill` around, or less of `q` where a width is negative."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]  # torch begins at the last axis
    pairs = [(0, 0)] * (q.ndim - len(pairs)) + pairs
    keep = tuple(
        slice(max(-before, 0), length - max(-after, 0))
        for length, (before, after) in zip(q.shape, pairs, strict=True)
    )
    widths = [(max(before, 0), max(after, 0)) for before, after in pairs]
    return np.pad(q[keep], widths, constant_values=int(fill))


def look_up(n: Buffers, q: Codes) -> Codes:
    """Element by element, the table as a dictionary from code to code."""
    lowest, results = int(n["lowest"]), n["table"].tolist()
    table = dict(zip(range(lowest, lowest + len(results)), results, strict=True))
    return np.array([table[code] for code in q.flatten().tolist()], np.int64).reshape(q.shape)


def softmax(n: Buffers, q: Codes, dim: int) -> Codes:
    """Row by row, in Python's integers up to the one division."""
    y = np.empty_like(q)
    m, unit, table = int(n["multiplier"]), 2 ** int(n["shift"]), n["table"].tolist()
    for at in np.ndindex(*np.delete(q.shape, dim)):
        row = list(at)
        row.insert(dim % q.ndim, slice(None))  # type: ignore[arg-type]
        codes = q[tuple(row)].tolist()
        # those that the table of 16-bit codes leaves out are 0
        far = [max(codes) - code for code in codes]
        exponentials = [table[d] if d < len(table) else 0 for d in far]
        dividends = np.array([e * m for e in exponentials], np.int64)
        y[tuple(row)] = divided(n, dividends, np.int64(sum(exponentials) * unit))
    return limit(y, n)


Row = list[int]


def about_mean(row: Row) -> tuple[Row, int, int]:
    """u, v and how often eps is in V, squared: `N·Σ (d - μ)²·N = Σ u²/N`."""
    N, total = len(row), sum(row)
    u = [N * d - total for d in row]
    return u, sum(a * a for a in u) // N, N


def about_zero(row: Row) -> tuple[Row, int, int]:
    """The same without a mean."""
    u = [len(row) * d for d in row]
    return u, sum(a * a for a in u) // len(row), len(row)


def to_length_one(row: Row) -> tuple[Row, int, int]:
    """The same without a count."""
    return row, sum(d * d for d in row), 1


def norm(
    n: Buffers, rows: Codes, moments: Callable[[Row], tuple[Row, int, int]],
    parameters: Callable[[Codes], Codes] = lambda values: values, join: Any = operator.add,
) -> Codes:
    """Rows [R, N] in Python's integers, fractions instead of shifts, but for the last rounding.

    `parameters` shapes multiplier, offset and shift so that they broadcast against the rows.
    """
    g, F, half = int(n["gain"]), int(n["fraction"]), Fraction(1, 2)
    m, o, S = (parameters(n[name]) for name in ("multiplier", "offset", "shift"))
    m, o, S = (np.broadcast_to(values, rows.shape).tolist() for values in (m, o, S))
    y = np.empty_like(rows)
    for i, row in enumerate((rows - n["x_zero"]).tolist()):
        u, v, count = moments(row)
        assert count < 2**15, "of longer rows the last bits of eps are left out"
        epsilon = int(n["epsilon"]) * count**2
        h = (62 - math.frexp(float(v // 4**g + epsilon // 2**F + 1))[1]) // 2
        two = Fraction(2)
        scaled = join(*(
            math.floor(part * two ** (2 * h - bits)) for part, bits in ((v, 2 * g), (epsilon, F))
        ))
        inverse = 2**61 // max(math.isqrt(scaled), 1)
        k = 33 - max(-(-count.bit_length() // 2), 2)
        assert max(map(abs, u)) * inverse < 2**63
        t = [math.floor(a * inverse / two ** (61 - h - k) + half) for a in u]
        total = [a * m_ + o_ * 2**k for a, m_, o_ in zip(t, m[i], o[i], strict=True)]
        y[i] = shifted(n, np.array(total, np.int64), np.int64(1), np.array(S[i], np.int64) + k)
    return limit(y, n)


def layer_norm(n: Buffers, q: Codes, normalized_shape: Sequence[int]) -> Codes:
    """A row is all of the last dimensions, flat; so are weight and bias."""
    rows = q.reshape(-1, math.prod(normalized_shape))
    return norm(n, rows, about_mean, np.ravel).reshape(q.shape)


def rms_norm(n: Buffers, q: Codes, normalized_shape: Sequence[int]) -> Codes:
    """The same about zero."""
    rows = q.reshape(-1, math.prod(normalized_shape))
    return norm(n, rows, about_zero, np.ravel).reshape(q.shape)


def group_norm(n: Buffers, q: Codes, num_groups: int) -> Codes:
    """A row is a group: weight and bias of each channel as often as it has places."""
    rows = q.reshape(len(q) * num_groups, -1)

    def parameters(values: Codes) -> Codes:
        whole = np.broadcast_to(along_channels(np.atleast_1d(values), q.ndim), q.shape)
        return whole.reshape(rows.shape)

    return norm(n, rows, about_mean, parameters).reshape(q.shape)


def instance_norm(n: Buffers, q: Codes, axis: int) -> Codes:
    """Every channel is a group."""
    batch = q if axis % q.ndim else q[None]
    return group_norm(n, batch, batch.shape[1]).reshape(q.shape)


def normalize(n: Buffers, q: Codes, dim: int) -> Codes:
    """Along one dimension; the length is at least eps."""
    last = np.moveaxis(q, dim, -1)
    y = norm(n, last.reshape(-1, last.shape[-1]), to_length_one, join=max)
    return np.moveaxis(y.reshape(last.shape), -1, dim)


def mul(n: Buffers, a: Codes, b: Codes) -> Codes:
    """`(a - z_a)·(b - z_b)` as four products."""
    products = a * b - n["a_zero"] * b - n["b_zero"] * a + n["a_zero"] * n["b_zero"]
    return limit(rescale(n, products, n["multiplier"], n["shift"]), n)


def div(n: Buffers, a: Codes, b: Codes) -> Codes:
    """`A·m / (B·2^S)` element by element in Python's integers; beyond all codes where B is 0."""
    m, unit, far = int(n["multiplier"]), 2 ** int(n["shift"]), 1000

    def quotient(above: int, below: int) -> int:
        if below == 0:
            return far * ((above > 0) - (above < 0))
        above, below = (-above, -below) if below < 0 else (above, below)
        return int(divided(n, np.int64(above * m), np.int64(below * unit)))

    left, right = np.broadcast_arrays(a - n["a_zero"], b - n["b_zero"])
    pairs = zip(left.flatten().tolist(), right.flatten().tolist(), strict=True)
    steps = [min(max(quotient(x, y), -far), far) for x, y in pairs]
    return limit(np.array(steps, np.int64).reshape(left.shape), n)


def matmul(n: Buffers, a: Codes, b: Codes) -> Codes:
    """`Σ a·b - z_a·Σ b - z_b·Σ a + K·z_a·z_b`, the sums along K broadcast over rows and columns."""
    K = a.shape[-1]
    rows, columns = a.sum(-1, keepdims=True), b.sum(-2, keepdims=True)
    constant = K * n["a_zero"] * n["b_zero"]
    total = a @ b - n["a_zero"] * columns - n["b_zero"] * rows + constant
    assert largest(total) <= K * int(n["bound"]) < ACCUMULATOR_LIMIT
    return limit(rescale(n, total, n["multiplier"], n["shift"]), n)


def affine(n: Buffers, q: Codes) -> Codes:
    """`q·m + (offset - z·m)`: one rounding."""
    constant = n["offset"] - n["x_zero"] * n["multiplier"]
    return limit(shifted(n, q * n["multiplier"] + constant, np.int64(1), n["shift"]), n)


def _in_dims(operator_of_n: Callable[..., Codes], name: str) -> dict[str, Callable[..., Codes]]:
    """One operator over one, two and three spatial axes, under torch's names."""

    def over(dims: int) -> Callable[..., Codes]:
        return lambda n, q, **settings: operator_of_n(n, q, **settings, dims=dims)

    return {f"{name}{dims}d": over(dims) for dims in (1, 2, 3)}


KERNELS: dict[str, Callable[..., Codes]] = {
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": transposed_convolution,
    "conv_transpose2d": transposed_convolution,
    "conv_transpose3d": transposed_convolution,
    "linear": linear,
    "batch_norm": batch_norm,
    "fixed_batch_norm": batch_norm,
    "relu": relu,
    "relu6": clamp,
    "hardtanh": clamp,
    "clamp": clamp,
    "add": add,
    "new_zeros": new_zeros,
    "sum_of_products": sum_of_products,
    "weighted_sum": add,  # its weights are in the multipliers
    "scale": scale,
    "cat": cat,
    **_in_dims(max_pool, "max_pool"),
    **_in_dims(avg_pool, "avg_pool"),
    **_in_dims(adaptive_max_pool, "adaptive_max_pool"),
    **_in_dims(adaptive_avg_pool, "adaptive_avg_pool"),
    "mean": mean,
    "sum": total_of,
    "zero": zero,
    "pad": pad,
    "pad_value": pad_value,
    "pad_copies": pad_copies,
    "interpolate_nearest": interpolate_nearest,
    "interpolate_linear": interpolate_linear,
    "embedding": embedding,
    "prelu": prelu,
    "exp": look_up,
    "sigmoid": look_up,
    "tanh": look_up,
    "silu": look_up,
    "gelu": look_up,
    "hardsigmoid": look_up,
    "hardswish": look_up,
    "elu": look_up,
    "leaky_relu": look_up,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "rms_norm": rms_norm,
    "normalize": normalize,
    "mul": mul,
    "div": div,
    "matmul": matmul,
    "sub": add,  # a sum of which one multiplier is negative
    "add_number": affine,
    "sub_number": affine,
    "mul_number": affine,
    "div_number": affine,
    "neg": affine,
}


# ------------------------------------------------------------------------ moves


def _shape(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(sizes[0]) if isinstance(sizes[0], (tuple, list)) else sizes


def _flatten(x: Codes, start_dim: int = 0, end_dim: int = -1) -> Codes:
    end = end_dim % x.ndim + 1
    return x.reshape(*x.shape[:start_dim], -1, *x.shape[end:])


def _chunk(x: Codes, chunks: int, dim: int = 0) -> tuple[Codes, ...]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


def _split(x: Codes, size: int, dim: int = 0) -> tuple[Codes, ...]:
    return tuple(np.split(x, range(size, x.shape[dim], size), dim))


def _transpose(x: Codes, dim0: int, dim1: int) -> Codes:
    return np.swapaxes(x, dim0, dim1)


def _channel_shuffle(x: Codes, groups: int) -> Codes:
    N, C, *size = x.shape
    return x.reshape(N, groups, C // groups, *size).swapaxes(1, 2).reshape(x.shape)


def _pixel_shuffle(x: Codes, r: int) -> Codes:
    N, C, H, W = x.shape
    parts = x.reshape(N, C // r**2, r, r, H, W).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(N, C // r**2, H * r, W * r)


def _pixel_unshuffle(x: Codes, r: int) -> Codes:
    N, C, H, W = x.shape
    parts = x.reshape(N, C, H // r, r, W // r, r).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(N, C * r**2, H // r, W // r)


def _size(x: Codes, dim: int | None = None) -> Any:
    return x.shape if dim is None else x.shape[dim]


# Methods and functions by one name: both take the array first.
MOVES: dict[str, Callable[..., Any]] = {
    "size": _size,
    "view": lambda x, *sizes: x.reshape(_shape(sizes)),
    "reshape": lambda x, *sizes: x.reshape(_shape(sizes)),
    "flatten": _flatten,
    "permute": lambda x, *order: x.transpose(_shape(order)),
    "transpose": _transpose,
    "contiguous": lambda x: x,
    "clone": lambda x: x,
    "squeeze": lambda x, dim=None: np.squeeze(x, dim),
    "unsqueeze": np.expand_dims,
    "chunk": _chunk,
    "split": _split,
    "flip": lambda x, dims: np.flip(x, tuple(dims)),
    "narrow": lambda x, dim, start, length: np.take(x, range(start, start + length), dim),
    "channel_shuffle": _channel_shuffle,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
MODULES: dict[type[nn.Module], Callable[..., Codes]] = {
    nn.Flatten: lambda module, x: _flatten(x, module.start_dim, module.end_dim),
    nn.ChannelShuffle: lambda module, x: _channel_shuffle(x, module.groups),
    nn.PixelUnshuffle: lambda module, x: _pixel_unshuffle(x, module.downscale_factor),
    nn.PixelShuffle: lambda module, x: _pixel_shuffle(x, module.upscale_factor),
}
