"""Make operators that overwrite their input functional.

    before   y = relu_(x);  z = x + y        x was overwritten: z reads the new value
    after    y = relu(x);   z = y + y

This comes before any dead code is removed: `y.mul_(m)` whose result nobody uses looks dead
to torch.fx, and is not. An overwritten view whose base is read later is refused.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.place import describe
from fxquant.graph.values import scalars

_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.ipow: operator.pow,
    operator.imod: operator.mod,
}
_VIEWS = {
    *("view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "expand"),
    *("chunk", "split", "unbind", "narrow", "select", "detach", "contiguous", "view_as", "t"),
    *("unflatten", "getitem", "getattr", "swapaxes", "movedim", "to", "diagonal", "unfold"),
}


def make_functional(graph: fx.Graph, root: nn.Module) -> None:
    """Rewrite every in-place call in `graph`; `root` holds its modules, edited likewise."""
    numbers = scalars(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    aliases = _Aliases(graph, root)
    for node in list(graph.nodes):
        if node in numbers or not _drop_inplace(node, root):
            continue
        overwritten = node.args[0]
        if isinstance(overwritten, fx.Node):
            _refuse_aliases(node, overwritten, aliases, order)
            for reader in list(overwritten.users):
                if order[reader] > order[node]:
                    reader.replace_input_with(overwritten, node)


def _drop_inplace(node: fx.Node, root: nn.Module) -> bool:
    """Point `node` at the functional form of what it calls; False if it already was one."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if not getattr(module, "inplace", False):
            return False
        module.inplace = False  # type: ignore[assignment]
        # a module called several times is in place at each of its calls
        for other in node.graph.nodes:
            if other.op == "call_module" and other.target == node.target:
                other.meta["fxquant_was_inplace"] = True
    if node.meta.pop("fxquant_was_inplace", False):
        return True
    if node.target is operator.setitem or node.kwargs.get("out") is not None:
        raise CaptureError(
            f"{describe(node)} writes into a part of a tensor, which has no functional form.\n"
            "What to do: build the result with torch.cat or torch.where instead."
        )
    if node.op == "call_method":
        return _rename(node, torch.Tensor)
    if node.op == "call_function":
        if node.target in _OPERATORS:
            node.target = _OPERATORS[node.target]
            return True
        return _drop_flag(node) or _rename(node, torch) or _rename(node, F)
    return False


def _rename(node: fx.Node, namespace: Any) -> bool:
    """`relu_` to `relu`, where `namespace` has both."""
    is_method = node.op == "call_method"
    name = str(node.target) if is_method else getattr(node.target, "__name__", "")
    plain = name.removesuffix("_")
    if name == plain or name.endswith("__") or not hasattr(namespace, plain):
        return False
    if not is_method and getattr(namespace, name, None) is not node.target:
        return False
    node.target = plain if is_method else getattr(namespace, plain)
    return True


def _drop_flag(node: fx.Node) -> bool:
    """`relu(x, inplace=True)` to `relu(x)`."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature has no such flag
        return False
    if not bound.arguments.get("inplace"):
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


class _Aliases:
    """Which values may share memory: views of one base."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.base: dict[fx.Node, fx.Node] = {}
        self.group: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            shares = source is not None and _is_view(node, root)
            base = self.base[source] if source is not None and shares else node
            self.base[node] = base
            self.group.setdefault(base, []).append(node)


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(
            root.get_submodule(str(node.target)),
            (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd),
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in _VIEWS


def _refuse_aliases(
    node: fx.Node, overwritten: fx.Node, aliases: _Aliases, order: dict[fx.Node, int]
) -> None:
    for alias in aliases.group[aliases.base[overwritten]]:
        later = [r for r in alias.users if order[r] > order[node]]
        if alias not in (overwritten, node) and order[alias] < order[node] and later:
            raise CaptureError(
                f"{describe(node)} overwrites memory that '{alias.name}' shares and that "
                f"'{later[0].name}' reads afterwards.\n"
                "What to do: use the out-of-place form of that operation."
            )
