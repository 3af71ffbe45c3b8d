"""Average pooling with a window. The output keeps its input's range: no multiplier.

    real      y = (Σ over the window of x) / c
    integer   q_y = round(z + Σ(q_x - z) / c)

`c` is the window's divisor as torch counts it: with or without padding, ceil_mode's clipped
windows, or `divisor_override`. What is rounded is a mean of codes, zero point and all, as engines
have it. Half-up that is the same; but a tie's even neighbour, or 0, may lie on its other side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value, add_bytes, bytes_of, of_values
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import (
    TWO_STEPS,
    Frame,
    look_up_means,
    pictures,
    pool,
    sum_of_cells,
    two,
)
from fxquant.intmath import centred, per_channel, sum_of_mean
from fxquant.kernels.windows import Windows, padding_behind
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import (
    Call,
    OpSpec,
    Output,
    RealCall,
    module_options,
    per_dimension,
    signature_reader,
)
from fxquant.ops.windows import windows_of
from fxquant.rounding import HALF_AWAY, Rounding


class AvgPoolNumbers(NamedTuple):
    """`zero`, 0-dim int32, which input and output share."""

    zero: Tensor
    rounding: Rounding


def avg_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True,
) -> Tensor:
    """[N, C, L] to [N, C, L']."""
    stride = kernel_size if stride is None else stride
    return F.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:
    """[N, C, H, W] to [N, C, H', W']."""
    return F.avg_pool2d(
        input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:
    """[N, C, D, H, W] to [N, C, D', H', W']."""
    return F.avg_pool3d(
        input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def window_counts(
    length: int, windows: int, kernel: int, stride: int, padding: int, include_pad: bool
) -> Tensor:
    """How many elements each window of one dimension divides by: int64 [windows]."""
    start = torch.arange(windows) * stride - padding
    end = (start + kernel).clamp(max=length + padding)
    return end - start if include_pad else end.clamp(max=length) - start.clamp(min=0)


def window_divisors(
    before: Sequence[int], after: Sequence[int], dims: int, s: Mapping[str, Any]
) -> Tensor:
    """The divisor of every window between those shapes, int64, shaped to broadcast against the
    output.
    """
    if s.get("divisor_override"):
        return torch.tensor(s["divisor_override"])
    divisor, w = torch.ones((1,) * dims, dtype=torch.int64), windows_of(s, dims)
    for i in range(dims):
        counts = window_counts(
            before[i - dims], after[i - dims], w.kernel[i], w.stride[i], w.padding[i],
            s["count_include_pad"],
        )
        divisor = divisor * per_channel(counts, i, dims)
    return divisor


def _stays_in_range(settings: Mapping[str, Any], dims: int) -> bool:
    """Whether a mean comes out: a divisor below the window's size gives larger values."""
    divisor = settings.get("divisor_override")
    return divisor is None or divisor >= math.prod(per_dimension(settings["kernel_size"], dims))


def _numbers(call: RealCall) -> AvgPoolNumbers:
    return AvgPoolNumbers(call.target.qparams.zero_point, call.target.rounding)


def _window_sums(codes: Value, zero: Tensor, w: Windows, counts: Sequence[int]) -> Value:
    """Σ (q - z) of each of so many windows, int32, [N·C, 1, ...]: each channel is a picture of its
    own, and a convolution with ones adds its windows up.
    """
    lengths = codes.sizes[-len(counts) :]
    return codes.graph.node(
        "ConvInteger", codes.reshape([None, 1, *lengths]),
        torch.ones(1, 1, *w.kernel, dtype=torch.uint8), zero, dtype=torch.int32,
        kernel_shape=list(w.kernel), strides=list(w.stride),
        pads=[*w.padding, *padding_behind(w, lengths, counts)],
    )


def _average_pool_2d(call: TfliteCall, dims: int) -> TfliteValue | None:
    """AVERAGE_POOL_2D, where its windows are ours, or every few of its own are: None elsewhere. It
    leaves out of its counts what it pads, and rounds away from the int8 code 0.
    """
    s, n, w = call.settings, call.numbers, windows_of(call.settings, dims)
    kernel, steps, before = two(w.kernel, 1), two(w.stride, 1), two(w.padding, 0)
    counts_padding = s["count_include_pad"] and (any(before) or s["ceil_mode"])
    rounds_so = n.rounding in (*TWO_STEPS, HALF_AWAY) and call.dtype is torch.int8
    if counts_padding or s.get("divisor_override") or not rounds_so:
        return None
    x = pictures(call, dims)
    count, lengths = two(call.shape[2:], 1), x.sizes[2:]
    frame = Frame(count, steps, kernel, before)
    padding = frame.padding(lengths)
    if padding is not None:
        return pool(call, "AVERAGE_POOL_2D", x, frame, padding).reshape(call.sizes)
    everywhere = Frame((lengths[0], lengths[1]), (1, 1), kernel, before)
    padding = everywhere.padding(lengths)
    far = [(n - 1) * step + 1 for n, step in zip(count, steps, strict=True)]
    if padding is None or any(end > length for end, length in zip(far, lengths, strict=True)):
        return None
    y = pool(call, "AVERAGE_POOL_2D", x, everywhere, padding)
    for dim, (end, step) in enumerate(zip(far, steps, strict=True), start=2):
        y = y.slice(dim, 0, end, step)
    return y.reshape(call.sizes)


def _table_of_windows(call: TfliteCall, dims: int) -> TfliteValue:
    """A table of what the sums of windows become, one for each divisor."""
    (x,), n, w = call.codes, call.numbers, windows_of(call.settings, dims)
    cells = []
    for length, count, k, step, before in zip(
        x.sizes[-dims:], call.shape[-dims:], w.kernel, w.stride, w.padding, strict=True
    ):
        inside = torch.arange(count)[:, None] * step - before + torch.arange(k)
        there = (inside >= 0) & (inside < length)
        cells.append((inside.clamp(0, length - 1), there))
    total = sum_of_cells(x.centred(n.zero), cells)

    ends = torch.iinfo(call.dtype)

    def mean(sums: Tensor, divisor: Tensor) -> Tensor:
        found: Tensor = n.rounding.divide(sums, divisor, n.zero)
        return found.clamp(ends.min, ends.max)  # sums that windows with so few elements do not have

    divisors = window_divisors(x.sizes, call.shape, dims, call.settings)
    return look_up_means(call, total, math.prod(w.kernel), divisors, mean)


def _accumulator(dims: int, call: IntegerCall) -> Accumulator:
    sizes = per_dimension(call.settings["kernel_size"], dims)
    if None in sizes:
        return Accumulator(None, None, bits=64, carrier=torch.float64)
    window = math.prod(sizes)
    worst = window * reach(call.inputs[0].scheme, call.numbers.zero)
    return Accumulator((worst,), window, bits=64, carrier=torch.float64)


def _onnx(dims: int, call: OnnxCall) -> Value:
    (x,), s, zero = call.codes, call.settings, call.numbers.zero
    after, w = call.shape, windows_of(s, dims)
    total = add_bytes(_window_sums(*part, w, after[-dims:]) for part in bytes_of(x, zero))
    divide = of_values(call.numbers.rounding.divide)
    mean = divide(total.to(torch.int64), window_divisors(x.sizes, after, dims, s), zero)
    assert x.shape is not None  # as of all that the integer network itself gives
    return mean.to(call.dtype).reshape([*x.shape[:-dims], *after[-dims:]])


def _qdq(dims: int, call: OnnxCall) -> Value | None:
    """AveragePool of codes, which float32 sums exactly: a mean that is no tie lies further
    from one than its last bit.
    """
    (x,), s, w = call.codes, call.settings, windows_of(call.settings, dims)
    counts_padding = s["count_include_pad"] and (s["ceil_mode"] or any(w.padding))
    if counts_padding or s.get("divisor_override"):
        return None
    behind = padding_behind(w, x.sizes[-dims:], call.shape[-dims:])
    mean = call.graph.node(
        "AveragePool", x.to(torch.float32), dtype=torch.float32, kernel_shape=list(w.kernel),
        strides=list(w.stride), pads=[*w.padding, *behind], count_include_pad=0,
    )
    return mean.round().to(call.dtype)


def _tflite(dims: int, call: TfliteCall) -> TfliteValue:
    found = _average_pool_2d(call, dims) if dims < 3 else None
    return _table_of_windows(call, dims) if found is None else found


def _record(
    function: Callable[..., Tensor], spellings: tuple[Any, ...], module: type[nn.Module], dims: int
) -> OpSpec:
    names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"]
    names += ["divisor_override"] if dims > 1 else []

    by_signature = signature_reader(function)

    def options(module: nn.Module) -> dict[str, Any] | None:
        found = module_options(module, *names)
        return found if _stays_in_range(found, dims) else None

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        call = by_signature(args, kwargs)
        return call if call is not None and _stays_in_range(call.options, dims) else None

    def kernel(n: AvgPoolNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
        x = centred(codes, n.zero, torch.float64)
        mean = function(x, **settings)
        divisor = window_divisors(x.shape, mean.shape, dims, settings).to(x.device)
        return n.rounding.divide(sum_of_mean(mean, divisor), divisor, n.zero).to(dtype)

    return OpSpec(
        name=function.__name__,
        function=function,
        functions=spellings,
        methods=(),
        modules={module: options},
        read=read,
        output=Output.INPUT,
        range=None,
        homogeneous=False,
        weight_axis=None,
        numbers=_numbers,
        kernel=kernel,
        accumulator=partial(_accumulator, dims),
        onnx=partial(_onnx, dims),
        tflite=partial(_tflite, dims),
        qdq=partial(_qdq, dims),
    )


AVG_POOL1D = _record(avg_pool1d, (F.avg_pool1d, torch.avg_pool1d), nn.AvgPool1d, 1)
AVG_POOL2D = _record(avg_pool2d, (F.avg_pool2d,), nn.AvgPool2d, 2)
AVG_POOL3D = _record(avg_pool3d, (F.avg_pool3d,), nn.AvgPool3d, 3)

AVG_POOLS = (AVG_POOL1D, AVG_POOL2D, AVG_POOL3D)
"""Over one, two and three dimensions."""
