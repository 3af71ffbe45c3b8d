"""The windows of pools, from settings as torch spells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxquant.errors import ShapeError
from fxquant.kernels.windows import Windows, window_count
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


def has_windows(w: Windows, lengths: Sequence[int]) -> bool:
    """Whether there is a window over so many elements."""
    return all(window_count(length, w, i) > 0 for i, length in enumerate(lengths))


def require_elements(name: str, w: Windows, lengths: Sequence[int]) -> None:
    """Refuse pools of which a window lies in the padding alone: its largest element would be -inf.
    Only what is dilated can step over all elements.

    Raises:
        ShapeError: says which window, of which dimension.
    """
    for i, length in enumerate(lengths):
        if not w.padding[i] or w.dilation[i] == 1:
            continue
        for count in range(window_count(length, w, i)):
            first = count * w.stride[i] - w.padding[i]
            last = first + w.dilation[i] * (w.kernel[i] - 1)
            if not any(0 <= place < length for place in range(first, last + 1, w.dilation[i])):
                raise ShapeError(
                    f"{name} over {length} elements has a window that holds none of them: "
                    f"{w.kernel[i]} places with a dilation of {w.dilation[i]}, from {first} to "
                    f"{last}; it would give -inf, for which there is no integer.\n"
                    "What to do: hand it more elements, or pool with less padding or dilation."
                )
