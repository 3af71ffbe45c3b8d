"""Which operator a node of a captured graph spells, and with what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from fxquant.graph.edit import called_module
from fxquant.ops import spelled_as
from fxquant.ops.spec import Argument, Call, OpSpec

Reading = tuple[OpSpec, Call] | str | None


def read_call(gm: fx.GraphModule, node: fx.Node) -> Reading:
    """The operator that `node` spells, and the call in its canonical form; or why it has no integer
    form, where an operator can tell.
    """
    module = called_module(gm, node)
    if module is None:
        return read_spelling(node, node.args, node.kwargs)
    ops = spelled_as(type(module))
    return _first((op, _call_of_module(node, op.modules[type(module)](module))) for op in ops)


def read_spelling(node: fx.Node, args: Any, kwargs: Any) -> Reading:
    """What the function or method that `node` calls would spell with other arguments."""
    if node.op not in ("call_function", "call_method"):
        return None
    return _first((op, op.read(args, kwargs)) for op in spelled_as(node.target))


def _first(answers: Iterable[tuple[OpSpec, Call | str | None]]) -> Reading:
    """The first call, or else the first reason why there is none."""
    why_not = None
    for op, answer in answers:
        if isinstance(answer, Call):
            return op, answer
        why_not = why_not or answer
    return why_not


def _call_of_module(
    node: fx.Node, options: Call | dict[str, Any] | str | None
) -> Call | str | None:
    given = (*node.args, *node.kwargs.values())
    if isinstance(options, dict):
        return Call(given, options)
    if not isinstance(options, Call):
        return options
    inputs, settings = options
    named = {k: given[v.number] if isinstance(v, Argument) else v for k, v in settings.items()}
    return Call(inputs, named)
