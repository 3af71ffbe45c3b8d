"""Kernels on codes of one byte: tables of all 256 results, maxima of shifted tensors.

    table       q_y = table[q_x]         whatever the function of one code is
    windows     q_y = max over the window, one dimension after the other
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.schemes import QuantScheme


class ByteTable(NamedTuple):
    """`table` [256]: the result for each byte that a code may be `stored` as, [256]."""

    stored: Tensor
    table: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        """Same shape."""
        # index_select on a flat int32 index is several times faster than table[index]
        index = codes.view(torch.uint8).to(torch.int32)
        return look_up_in(self.table, index)


def look_up_in(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` in the memory order of the index."""
    if index.dim() != 4 or index.is_contiguous():
        return torch.index_select(table, 0, index.flatten()).view(index.shape)
    last = index.movedim(1, -1)  # channels_last, as a rule
    return torch.index_select(table, 0, last.flatten()).view(last.shape).movedim(-1, 1)


def byte_table(function: Callable[[Tensor], Tensor], scheme: QuantScheme) -> ByteTable | None:
    """The table of a function of codes; None where it gives every code back as it is."""
    stored = torch.arange(256).to(torch.uint8).view(scheme.dtype)
    table = function(stored)
    return None if torch.equal(table, stored) else ByteTable(stored, table)


class Windows(NamedTuple):
    """Of a pool over the last dimensions: a number for each."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool


def largest_in_windows(codes: Tensor, w: Windows) -> Tensor:
    """max over each window; padding is never the largest."""
    n = len(w.kernel)
    lengths = codes.shape[-n:]
    counts = [window_count(lengths[i], w, i) for i in range(n)]
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        codes = _written_first(codes)
    behind = [max(_reach(counts[i], w, i) - lengths[i] - w.padding[i], 0) for i in range(n)]
    if any(w.padding) or any(behind):
        widths = [width for i in reversed(range(n)) for width in (w.padding[i], behind[i])]
        codes = F.pad(codes, widths, value=torch.iinfo(codes.dtype).min)
    for i in range(n):
        starts = (offset * w.dilation[i] for offset in range(w.kernel[i]))
        span = (counts[i] - 1) * w.stride[i] + 1
        shifted = [_every(codes.narrow(i - n, start, span), i - n, w.stride[i]) for start in starts]
        codes = reduce(torch.maximum, shifted)
    return codes


def _written_first(codes: Tensor) -> Tensor:
    """A copy that inductor has to write, since strides mean nothing else: it would compute `codes`
    anew for each window that holds them. A copy, because parts of tensors have no such strides."""
    copy = codes.clone()
    return copy.as_strided(copy.shape, copy.stride())


def _every(x: Tensor, dim: int, step: int) -> Tensor:
    return x if step == 1 else x.movedim(dim, 0)[::step].movedim(0, dim)


def window_count(length: int, w: Windows, i: int) -> int:
    """How many windows there are over so many elements of dimension i, as torch counts them."""
    room = length + 2 * w.padding[i] - w.dilation[i] * (w.kernel[i] - 1) - 1
    count = (-(-room // w.stride[i]) if w.ceil_mode else room // w.stride[i]) + 1
    starts_behind = w.ceil_mode and (count - 1) * w.stride[i] >= length + w.padding[i]
    return count - 1 if starts_behind else count


def _reach(count: int, w: Windows, i: int) -> int:
    """How far the last window reaches, from the first on."""
    return (count - 1) * w.stride[i] + w.dilation[i] * (w.kernel[i] - 1) + 1
