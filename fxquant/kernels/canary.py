"""Which kernels of this machine add integers up exactly: each is tried once, on random data too.

Without VNNI instructions oneDNN's int8 kernels add pairs of products in 16 bits, which saturate:
wrong on random data, and right where all codes are -128. Float kernels may be Winograd or FFT.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.intmath import without_autocast

ONE, NO_ZERO = torch.ones(1), torch.zeros(1, dtype=torch.int64)
"""The scale and the zero point that leave a oneDNN sum what it is."""


@cache
def why_no_int8_matmul() -> str | None:
    """Why torch._int_mm is not to be used here, or None."""
    return _first_failure("torch._int_mm", _matmul_fails, 5)


@cache
def why_no_int8_convolution() -> str | None:
    """Why oneDNN's int8 convolution is not to be used here, or None."""
    return _first_failure("oneDNN's int8 convolution", _int8_convolution_fails, 10)


@cache
def why_no_float_convolution() -> str | None:
    """Why oneDNN's float32 convolution is not to be used here, or None."""
    return _first_failure("oneDNN's float32 convolution", _float_convolution_fails, 10)


def pack(
    weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int,
    shape: list[int],
) -> Tensor:
    """An int8 weight in the layout that oneDNN wants for inputs of about that shape."""
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight, ONE, 1.0, 0, stride, padding, dilation, groups, shape
    )
    return packed


def convolve_int8(
    codes: Tensor, packed: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:
    """Σ w·q of uint8 codes as float32, which is exact below 2^24; `bias` float32 too."""
    total: Tensor = torch.ops.onednn.qconv_pointwise(
        codes, 1.0, 0, packed, ONE, NO_ZERO, bias, stride, padding, dilation, groups,
        1.0, 0, torch.float32, "none", [], "",
    )
    return total


def convolve_float32(
    values: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:
    """A plain sum of products: torch's own choice while oneDNN is on, oneDNN's kernel by name while
    it is off, since torch would choose NNPACK then, which rounds on the way.

    What torch.compile compiles with oneDNN on is to run with it on.
    """
    if torch.compiler.is_compiling() or torch._C._get_mkldnn_enabled():
        with without_autocast(values):
            return torch.convolution(
                values, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
            )
    total: Tensor = torch.ops.aten.mkldnn_convolution(
        values, weight, bias, padding, stride, dilation, groups
    )
    return total


def _first_failure(
    name: str, fails: Callable[[torch.Generator, bool], bool], tries: int
) -> str | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return f"torch was built without oneDNN, which has {name}"
    draws = torch.Generator().manual_seed(0)  # the user's random numbers stay where they are
    try:
        if any(fails(draws, bool(extreme)) for extreme in (1, *[0] * tries)):
            return f"{name} does not add up exactly on this {platform.machine()} processor"
    except RuntimeError as error:
        return f"{name} does not run here: {str(error).splitlines()[0]}"
    return None


def _codes(shape: tuple[int, ...], low: int, high: int, draws: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=draws, device="cpu")


def _matmul_fails(draws: torch.Generator, extreme: bool) -> bool:
    x, w = (_codes(shape, -128, 127, draws) for shape in ((33, 300), (20, 300)))
    if extreme:
        x, w = torch.full_like(x, 127), torch.full_like(w, 127)
    found = torch._int_mm(x.to(torch.int8), w.to(torch.int8).t())
    return not torch.equal(found.to(torch.int64), x @ w.t())


def _int8_convolution_fails(draws: torch.Generator, extreme: bool) -> bool:
    for groups in (1, 4, 64):
        x = _codes((2, 64, 7, 9), 0, 255, draws)
        w = _codes((64, 64 // groups, 3, 3), -127, 127, draws)
        if extreme:
            x, w = torch.full_like(x, 255), torch.full_like(w, 127)
        geometry = [2, 1], [1, 1], [1, 2], groups
        packed = pack(w.to(torch.int8), *geometry, list(x.shape))
        codes = x.to(torch.uint8).contiguous(memory_format=torch.channels_last)
        found = convolve_int8(codes, packed, None, *geometry)
        if not torch.equal(found.double(), F.conv2d(x.double(), w.double(), None, *geometry)):
            return True
    return False


def _float_convolution_fails(draws: torch.Generator, extreme: bool) -> bool:
    for groups in (1, 32):
        x = _codes((16, 32, 8, 8), -255, 255, draws)
        w = _codes((32, 32 // groups, 3, 3), -127, 127, draws)
        if extreme:
            x, w = torch.full_like(x, 255), torch.full_like(w, 127)
        geometry = [1, 1], [1, 1], [1, 1], groups
        found = convolve_float32(x.float(), w.float(), None, *geometry)
        if not torch.equal(found.double(), F.conv2d(x.double(), w.double(), None, *geometry)):
            return True
    return False
