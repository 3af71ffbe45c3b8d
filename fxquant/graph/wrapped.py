"""Trace into functions that their authors marked with `torch.fx.wrap`.

    before   torch.fx.wrap("shifted_window_attention")      one node that nobody sees into
    after    while traced, as any other function of the model

Authors wrap what torch.fx cannot trace for want of shapes. Here example values have them, and a
function that cannot be captured all the same is kept whole or refused as others are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import _symbolic_trace


@contextmanager
def wrapped_functions_opened() -> Iterator[None]:
    """Let torch.fx forget meanwhile which Python functions are wrapped; builtins stay so."""
    wrapped: dict[tuple[int, str], dict[str, Any]] = _symbolic_trace._wrapped_fns_to_patch
    before = dict(wrapped)
    for key, names in before.items():
        if is_users_function(names.get(key[1])):
            del wrapped[key]
    try:
        yield
    finally:
        wrapped.clear()
        wrapped.update(before)


def is_users_function(value: Any) -> bool:
    """Whether `value` is written in Python, and not by torch."""
    return inspect.isfunction(value) and not is_torchs(value)


def is_torchs(function: Callable[..., Any]) -> bool:
    """Whether torch itself defines `function`."""
    return function.__module__.partition(".")[0] == "torch"
