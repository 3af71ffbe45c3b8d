"""Spell composite calls out in plain operators, for whoever runs meanwhile.

    before   nn.MultiheadAttention(x, x, x)      scaled_dot_product_attention(q, k, v)      einsum
    after    linear, matmul, softmax, …          matmul, softmax, matmul                    matmul

Capture runs the model so, and a graph of it holds operators that have integer forms. The check of
a capture runs the model so, too: torch's own kernels give the same but for rounding, which is
what the tests of attention and einsum show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from fxquant.graph.attention import (
    NotSpelledOutError,
    forward_of_attention,
    multi_head_attention_forward,
    scaled_dot_product_attention,
)
from fxquant.graph.einsum import einsum
from fxquant.graph.place import example_of

_FORWARD, _FINFO = nn.MultiheadAttention.forward, torch.finfo


def einsum_or_itself(*args: Any) -> Any:
    """A matrix product; any other einsum as it is, which may be of parameters alone."""
    try:
        return einsum(*args)
    except NotSpelledOutError:
        return torch.einsum(*args)


def stack(tensors: Any, dim: int = 0) -> Any:
    """Tensors of one shape side by side in a new dimension."""
    return torch.cat([x.unsqueeze(dim) for x in tensors], dim)


_SPELLED_OUT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.multi_head_attention_forward: multi_head_attention_forward,
    torch.einsum: einsum_or_itself,
    torch.stack: stack,
}


class _SpellOut(TorchFunctionMode):
    """Calls the plain form of a function in its place."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        plain = _SPELLED_OUT.get(func)
        if plain is None:
            return func(*args, **(kwargs or {}))
        return _in_plain(plain, func, args, kwargs or {})


def _forward(self: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
    return _in_plain(forward_of_attention, _FORWARD, (self, *args), kwargs)


def _in_plain(
    plain: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """The plain form, or the function itself where there is none and it is not traced."""
    try:
        return plain(*args, **kwargs)
    except NotSpelledOutError as reason:
        traced: list[Any] = []
        fx.node.map_aggregate(
            (args, kwargs), lambda a: traced.append(a) if isinstance(a, fx.Proxy) else None
        )
        if traced:
            raise TraceError(f"{reason} has no form in plain operators") from reason
        return function(*args, **kwargs)


class _OfFinfo(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _FINFO)  # for modules that are imported meanwhile


class _Finfo(metaclass=_OfFinfo):
    """The limits of a dtype, also of a traced tensor's: `torch.finfo(x.dtype).min` of masks."""

    def __new__(cls, *args: Any) -> Any:
        return _FINFO(*(example_of(a.node) if isinstance(a, fx.Proxy) else a for a in args))


@contextmanager
def spelled_out() -> Iterator[None]:
    """Spell composite calls out, traced or not; torch's shortcuts past them are closed."""
    shortcuts = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    nn.MultiheadAttention.forward = _forward  # type: ignore[method-assign]
    torch.finfo = _Finfo  # type: ignore[assignment,misc]
    try:
        with _SpellOut():
            yield
    finally:
        nn.MultiheadAttention.forward = _FORWARD  # type: ignore[method-assign]
        torch.finfo = _FINFO  # type: ignore[misc]
        torch.backends.mha.set_fastpath_enabled(shortcuts)


def is_spelled_out(module: nn.Module) -> bool:
    """Whether a module of torch's holds attention, as a Transformer's layers do."""
    return any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
