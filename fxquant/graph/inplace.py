"""Make operators that overwrite their input functional.

    before   y = relu_(x);  z = x + y        x was overwritten: z reads the new value
    after    y = relu(x);   z = y + y

    before   mask = zeros(9, 9);  mask[:3] = 1      b[8:].zero_()
    after    mask = with_part(zeros(9, 9), :3, 1)   b = with_part(b, 8:, on_copy(b[8:], "zero_"))

Parts are written in what parameters and shapes decide, as masks; in other values that is refused.
This comes before any dead code is removed: `y.mul_(m)` whose result nobody uses looks dead
to torch.fx, and is not. An overwritten view whose base is read later is refused.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.decided import decided
from fxquant.graph.draws import is_random
from fxquant.graph.edit import nodes_in
from fxquant.graph.modes import hands_its_input_on
from fxquant.graph.own import is_torchs_module
from fxquant.graph.place import copy_place, describe, example_of, set_example
from fxquant.graph.values import scalars

IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.ipow: operator.pow,
    operator.imod: operator.mod,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
# Calls whose result lies in memory of its own. Any other may give a view of what it reads.
_FRESH = {
    *("add", "sub", "mul", "div", "truediv", "floordiv", "neg", "abs", "pow", "exp", "log", "sqrt"),
    *("matmul", "bmm", "einsum", "linear", "bilinear", "softmax", "log_softmax", "cat", "concat"),
    *("stack", "clone", "mean", "sum", "amax", "amin", "max", "min", "where", "clamp", "clip"),
    *("relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardswish", "hardsigmoid", "softplus", "prelu", "batch_norm", "layer_norm", "group_norm"),
    *("instance_norm", "rms_norm", "normalize"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "pad"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate"),
    *("bernoulli", "new_empty", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("empty_like", "rand_like", "randn_like", "empty", "zeros", "ones", "rand", "randn", "full"),
}
_VIEW_MODULES = (nn.Flatten, nn.Unflatten)


class Form(NamedTuple):
    """The out-of-place form of a call."""

    target: Any
    args: Any
    kwargs: Any


def with_part(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """A copy of `tensor` that holds `value` at `index`."""
    copy = tensor.clone()
    copy[index] = value
    return copy


def on_copy(tensor: torch.Tensor, method: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What a method in place makes of a copy of `tensor`."""
    copy = tensor.clone()
    getattr(copy, method)(*args, **kwargs)
    return copy


def overwriting_modules(root: nn.Module) -> set[nn.Module]:
    """The modules that overwrite their input, as ReLU(inplace=True) does."""
    return {module for module in root.modules() if getattr(module, "inplace", False) is True}


def make_functional(
    graph: fx.Graph, root: nn.Module, overwriting: set[nn.Module], training: bool
) -> None:
    """Rewrite every in-place call in `graph`, which was captured from `root` in that mode.

    Modules are not edited: who calls this switches off the `inplace` of those `overwriting`.
    """
    numbers, by_shapes = scalars(graph), decided(graph)
    inplace = {
        node: None
        for node in graph.nodes
        if node not in numbers and _out_of_place(node, root, overwriting, by_shapes) is not None
    }
    order: dict[fx.Node, int] = {node: i for i, node in enumerate(graph.nodes)}
    memory = _Memory(graph, root, training, inplace)
    for node in inplace:
        if isinstance(node.args[0], fx.Node):
            _refuse_state(node, memory.base[node.args[0]])
            if node.args[0] in by_shapes:
                by_shapes |= _write_back(node, memory, order)
            _redirect_readers(node, *memory.shared_with(node.args[0], order[node], order), order)
        form = _out_of_place(node, root, overwriting, by_shapes)  # anew: what it reads has moved
        assert form is not None
        if form.target is with_part:  # a statement gave nothing, this gives the tensor
            set_example(node, example_of(node.args[0]))
        node.op = "call_function" if callable(form.target) else node.op
        node.target, node.args, node.kwargs = form


def _write_back(node: fx.Node, memory: _Memory, order: dict[fx.Node, int]) -> set[fx.Node]:
    """Let what `node` makes of a part be in the whole, too, for whoever reads that afterwards; the
    node that does so, if `node` writes to a part.
    """
    part = node.args[0]
    assert isinstance(part, fx.Node)
    whole = part.args[0] if part.target is operator.getitem else None
    if not isinstance(whole, fx.Node) or memory.whole[whole] is memory.whole[part]:
        return set()
    with node.graph.inserting_after(node):
        written = node.graph.call_function(with_part, (whole, part.args[1], node))
    copy_place(whole, written)
    order[written] = order[node]
    same, _ = memory.shared_with(whole, order[node], order)
    _redirect_readers(written, same, [], order)
    memory.add_same(whole, written)
    return {written}


def refuse_overwriting_leaves(graph: fx.Graph, root: nn.Module, leaves: frozenset[str]) -> None:
    """Refuse a float leaf that overwrites its input where somebody reads that afterwards."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in leaves:
            continue
        if not overwriting_modules(root.get_submodule(str(node.target))):
            continue
        for value in node.all_input_nodes:
            later = [reader.name for reader in value.users if order[reader] > order[node]]
            if later:
                raise CaptureError(
                    f"{describe(node)} is kept in float and overwrites '{value.name}', which "
                    f"'{later[0]}' reads afterwards.\nWhat to do: set inplace=False inside it."
                )


def _refuse_state(node: fx.Node, base: fx.Node) -> None:
    """A forward that writes to a buffer does something that a graph does not."""
    if base.op == "get_attr":
        raise CaptureError(
            f"{describe(node)} writes to '{base.target}', which the model holds.\n"
            "What to do: keep that submodule as one float node (QuantConfig.keep_float)."
        )


def _redirect_readers(
    node: fx.Node, same: list[fx.Node], views: list[fx.Node], order: dict[fx.Node, int]
) -> None:
    """Whoever reads the overwritten value after `node` reads `node` instead."""
    for view in views:
        later = [reader.name for reader in view.users if order[reader] > order[node]]
        if later:
            raise CaptureError(
                f"{describe(node)} overwrites memory that '{view.name}' shares and that "
                f"'{later[0]}' reads afterwards.\n"
                "What to do: use the out-of-place form of that operation."
            )
    for value in same:
        for reader in list(value.users):
            if order[reader] > order[node]:
                reader.replace_input_with(value, node)


def _out_of_place(
    node: fx.Node, root: nn.Module, overwriting: set[nn.Module], by_shapes: set[fx.Node]
) -> Form | None:
    """The functional form of an in-place call; None if it already is one."""
    if node.target is operator.setitem and by_shapes.issuperset(nodes_in(node.args)):
        return Form(with_part, node.args, {})
    if node.target is operator.setitem or node.kwargs.get("out") is not None:
        raise CaptureError(
            f"{describe(node)} writes into a part of a tensor, which has no functional form.\n"
            "What to do: build the result with torch.cat or torch.where instead."
        )
    if node.op == "call_module":
        overwrites = root.get_submodule(str(node.target)) in overwriting
        return Form(node.target, node.args, node.kwargs) if overwrites else None
    if node.op == "call_method":
        name = _without_underscore(str(node.target))
        if name is not None and hasattr(torch.Tensor, name):
            return Form(name, node.args, node.kwargs)
        if name is None or node not in by_shapes or is_random(node.target):
            return None
        return Form(on_copy, (node.args[0], node.target, *node.args[1:]), node.kwargs)
    if node.op != "call_function":
        return None
    if node.target in IN_PLACE:
        return Form(IN_PLACE[node.target], node.args, node.kwargs)
    return _without_flag(node) or _other_function(node)


def _without_underscore(name: str) -> str | None:
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def _other_function(node: fx.Node) -> Form | None:
    """`torch.relu_(x)` as `torch.relu(x)`."""
    name = getattr(node.target, "__name__", "")
    plain = _without_underscore(name)
    for namespace in (torch, F):
        if plain is not None and getattr(namespace, name, None) is node.target:
            return Form(getattr(namespace, plain), node.args, node.kwargs)
    return None


_signature = lru_cache(inspect.signature)  # the functions of a network are few


def _without_flag(node: fx.Node) -> Form | None:
    """`relu(x, inplace=True)` as `relu(x)`."""
    try:
        bound = _signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a builtin without a signature has no such flag
        return None
    if not bound.arguments.get("inplace"):
        return None
    bound.arguments["inplace"] = False
    return Form(node.target, bound.args, bound.kwargs)


class _Memory:
    """Which values may lie in the same memory: views of one base, or the base itself."""

    def __init__(
        self, graph: fx.Graph, root: nn.Module, training: bool, inplace: dict[fx.Node, None]
    ) -> None:
        self.whole: dict[fx.Node, fx.Node] = {}  # the value that this one is, all of it
        self.base: dict[fx.Node, fx.Node] = {}
        self.group: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            source = node.args[0] if node.args else None
            self.whole[node] = self.base[node] = node
            if isinstance(source, fx.Node):
                same = node in inplace or hands_its_input_on(node, root, training)
                if same:
                    self.whole[node] = self.whole[source]
                if same or _is_view(node, root):
                    self.base[node] = self.base[source]
            self.group.setdefault(self.base[node], []).append(node)

    def add_same(self, value: fx.Node, written: fx.Node) -> None:
        """Note that `written` is all of `value` from now on."""
        self.whole[written], self.base[written] = self.whole[value], self.base[value]
        self.group[self.base[value]].append(written)

    def shared_with(
        self, value: fx.Node, now: int, order: dict[fx.Node, int]
    ) -> tuple[list[fx.Node], list[fx.Node]]:
        """What is the same as `value` at step `now`, and what else shares its memory."""
        group = [node for node in self.group[self.base[value]] if order[node] < now]
        same = [node for node in group if self.whole[node] is self.whole[value]]
        return same, [node for node in group if self.whole[node] is not self.whole[value]]


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` may give a view of what it reads; where that is not known, it may."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, _VIEW_MODULES) or not is_torchs_module(module)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name.strip("_") not in _FRESH
