"""Max pooling. Order is kept by quantization, so it picks the same elements.

    real      y = max over the window, padding excluded
    integer   q_y = max over the window of q_x
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.movable import along_axes
from fxquant.forms.onnx import OnnxCall, OnnxForm, Value
from fxquant.forms.tflite import TfliteCall, TfliteForm
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import Frame, padded, pictures, pool, two
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.kernels.windows import largest_in_windows, padding_behind
from fxquant.ops.accumulator import IntegerCall, adds_nothing
from fxquant.ops.selection import (
    NoNumbers,
    no_numbers,
    reader_without_indices,
    selection_kernel,
)
from fxquant.ops.spec import OpSpec, Output, module_options
from fxquant.ops.windows import has_windows, require_elements, windows_of


def max_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False,
) -> Tensor:
    """[N, C, L] to [N, C, L']."""
    return F.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False,
) -> Tensor:
    """[N, C, H, W] to [N, C, H', W']."""
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False,
) -> Tensor:
    """[N, C, D, H, W] to [N, C, D', H', W']."""
    return F.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode)


def _options(module: Any) -> dict[str, Any] | None:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return None if module.return_indices else module_options(module, *names)


def _onnx(dims: int) -> OnnxForm:
    def form(call: OnnxCall) -> Value:
        (x,), w = call.codes, windows_of(call.settings, dims)
        behind = padding_behind(w, x.sizes[-dims:], call.shape[-dims:])
        pads = zip((*w.padding, *behind), (*w.kernel, *w.kernel), strict=True)
        if any(pad >= k for pad, k in pads):  # onnxruntime has no padding as wide as a window
            in_cells: Value = _in_cells(call, dims)
            return in_cells
        eight = torch.iinfo(x.dtype).bits == 8
        found = call.graph.node(
            "MaxPool", x if eight else x.to(torch.float32),
            dtype=x.dtype if eight else torch.float32, kernel_shape=list(w.kernel),
            strides=list(w.stride), dilations=list(w.dilation), pads=[*w.padding, *behind],
        )
        return found.to(call.dtype)

    return form


def _in_cells(call: OnnxCall | TfliteCall, dims: int) -> Any:
    """The elements of each window, one dimension after the other, and the largest of them; what
    lies outside is an element inside once more.
    """
    x: Any = call.codes[0]
    w, lengths, windows = windows_of(call.settings, dims), x.sizes, call.shape[-dims:]

    def index(axis: int) -> Tensor:
        i = axis - len(lengths)
        first = torch.arange(windows[i]) * w.stride[i] - w.padding[i]
        places = first[:, None] + torch.arange(w.kernel[i]) * w.dilation[i]
        inside = (places >= 0) & (places < lengths[axis])
        return torch.where(inside, places, places.where(inside, -1).amax(1, keepdim=True))

    return along_axes(x, dims, index, cells=True)


def _tflite(dims: int) -> TfliteForm:
    def form(call: TfliteCall) -> TfliteValue:
        w = windows_of(call.settings, dims)
        if any(step > 1 for step in w.dilation):
            in_cells: TfliteValue = _in_cells(call, dims)  # LiteRT has no dilated windows
            return in_cells
        x, counts = pictures(call, dims), two(call.shape[2:], 1)
        frame = Frame(counts, two(w.stride, 1), two(w.kernel, 1), two(w.padding, 0))
        x, padding = padded(x, frame, torch.iinfo(x.dtype).min)
        return pool(call, "MAX_POOL_2D", x, frame, padding).reshape(call.sizes)

    return form


def _kernel(function: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    select = selection_kernel(function)  # which pads with -inf

    def kernel(n: NoNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
        require_elements(function.__name__, windows_of(settings, dims), codes.shape[-dims:])
        return select(n, dtype, codes, **settings)

    return kernel


def _fast(
    name: str, kernel: Callable[..., Tensor], dims: int, call: IntegerCall, dtype: torch.dtype,
    choice: KernelChoice,
) -> Kernel:
    plain = partial(kernel, call.numbers, dtype)
    if dtype.itemsize > 1:
        return Plain(plain)

    def on_bytes(codes: Tensor, **settings: Any) -> Tensor:
        w, lengths = windows_of(settings, dims), codes.shape[-dims:]
        if not codes.numel() or codes.dim() - dims not in (1, 2) or not has_windows(w, lengths):
            return plain(codes, **settings)  # torch says which shapes it takes
        require_elements(name, w, lengths)
        return largest_in_windows(codes, w)

    return Plain(on_bytes)


def _record(
    function: Callable[..., Tensor], spellings: tuple[Any, ...], module: type[nn.Module], dims: int
) -> OpSpec:
    name, kernel = function.__name__, _kernel(function, dims)
    return OpSpec(
        name=name,
        function=function,
        functions=spellings,
        methods=(),
        modules={module: _options},
        read=reader_without_indices(function),
        output=Output.EXACT,
        range=None,
        homogeneous=False,
        weight_axis=None,
        numbers=no_numbers,
        kernel=kernel,
        accumulator=adds_nothing,
        onnx=_onnx(dims),
        tflite=_tflite(dims),
        fast=partial(_fast, name, kernel, dims),
    )


MAX_POOL1D = _record(max_pool1d, (F.max_pool1d, torch.max_pool1d), nn.MaxPool1d, 1)
MAX_POOL2D = _record(max_pool2d, (F.max_pool2d, torch.max_pool2d), nn.MaxPool2d, 2)
MAX_POOL3D = _record(max_pool3d, (F.max_pool3d, torch.max_pool3d), nn.MaxPool3d, 3)

MAX_POOLS = (MAX_POOL1D, MAX_POOL2D, MAX_POOL3D)
"""Over one, two and three dimensions."""
