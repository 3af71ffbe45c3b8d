"""The windows of pools, a number for each dimension, and the largest element in each of them.

    window i     elements  i·stride - padding + dilation·(0, …, kernel - 1)
    largest      q_y = max over the window, one dimension after the other
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows(NamedTuple):
    """Of a pool over the last dimensions: a number for each."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool


def window_count(length: int, w: Windows, i: int) -> int:
    """How many windows there are over so many elements of dimension i, as torch counts them."""
    room = length + 2 * w.padding[i] - w.dilation[i] * (w.kernel[i] - 1) - 1
    count = (-(-room // w.stride[i]) if w.ceil_mode else room // w.stride[i]) + 1
    starts_behind = w.ceil_mode and (count - 1) * w.stride[i] >= length + w.padding[i]
    return count - 1 if starts_behind else count


def padding_behind(w: Windows, lengths: Sequence[int], counts: Sequence[int]) -> list[int]:
    """How much to pad behind so many elements for so many windows, as far as the last one reaches:
    that is ceil_mode in numbers.
    """
    return [
        max((count - 1) * step + d * (k - 1) + 1 - length - before, 0)
        for count, length, k, step, before, d in zip(
            counts, lengths, w.kernel, w.stride, w.padding, w.dilation, strict=True
        )
    ]


def largest_in_windows(codes: Tensor, w: Windows) -> Tensor:
    """max over each window; padding is never the largest."""
    n = len(w.kernel)
    lengths = codes.shape[-n:]
    counts = [window_count(lengths[i], w, i) for i in range(n)]
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        codes = _written_first(codes)
    behind = padding_behind(w, lengths, counts)
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
