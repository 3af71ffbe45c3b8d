"""Trace into functions that their authors marked with `torch.fx.wrap`.

    before   torch.fx.wrap("shifted_window_attention")      one node that nobody sees into
    after    while traced, as any other function of the model

Authors wrap what torch.fx cannot trace for want of shapes. Here example values have them, and a
function that cannot be captured all the same is kept whole or refused as others are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeGuard

from torch import fx
from torch.fx import _symbolic_trace

from fxquant.graph.own import is_torchs_function

# whose functions stand in graphs
_OURS = ("fxquant.graph.guard", "fxquant.graph.inplace", "fxquant.graph.merge")


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


def is_users_function(value: Any) -> TypeGuard[FunctionType]:
    """Whether `value` is written in Python, neither by torch nor for a capture."""
    if not inspect.isfunction(value):
        return False
    return not is_torchs_function(value) and value.__module__ not in _OURS


def wrap_none_of_torchs(graph: fx.Graph) -> None:
    """Let the code of `graph` not ask later traces to wrap functions of torch: they would look for
    them in its module, where they are not.
    """
    for node in graph.nodes:
        if node.op == "call_function" and not is_users_function(node.target):
            node.meta.pop("is_wrapped", None)
