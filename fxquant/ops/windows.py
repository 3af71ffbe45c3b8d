"""The windows of pools, from settings as torch spells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxquant.kernels.bytes import Windows
from fxquant.ops.spec import per_dimension


def windows_of(settings: Mapping[str, Any], dims: int) -> Windows:
    """Those over `dims` dimensions; without a stride they lie side by side."""
    s = settings
    stride = s["kernel_size"] if s["stride"] in (None, []) else s["stride"]
    return Windows(
        kernel=per_dimension(s["kernel_size"], dims),
        stride=per_dimension(stride, dims),
        padding=per_dimension(s["padding"], dims),
        dilation=per_dimension(s.get("dilation", 1), dims),
        ceil_mode=s["ceil_mode"],
    )


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
