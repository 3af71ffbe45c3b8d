"""The functions and methods that a graph in a file may call: written lists, nothing else.

What stands among the integers is known to operators, moves and the arithmetic of shapes
(`fxquant/ops`, `graph/values`). The rest is listed here; it computes in float, on parameters, as
masks and mixing weights are, or in training only. Nothing in the lists opens a file, imports,
follows a name or calls what it is given.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxquant.errors import FileError
from fxquant.graph.decided import CASTS, FACTORIES, UNKNOWN_FACTORIES
from fxquant.graph.inplace import on_copy, with_part
from fxquant.graph.merge import item
from fxquant.graph.modes import DROPOUT_CALLS
from fxquant.graph.values import ASSERTIONS, ATTRIBUTES, QUERIES
from fxquant.ops import OPS
from fxquant.sites.move import MOVE_ATTRIBUTES, MOVE_FUNCTIONS, MOVE_METHODS

_OURS = (*ASSERTIONS, on_copy, with_part, item)
_NUMBERS: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (builtins, ("abs", "bool", "float", "getattr", "int", "len", "max", "min", "round", "sum")),
    (builtins, ("tuple",)),
    (math, ("ceil", "floor", "log2", "prod", "sqrt", "trunc")),
    # not all of operator: attrgetter, methodcaller and call lead anywhere
    (operator, ("abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "index", "inv")),
    (operator, ("invert", "is_", "is_not", "le", "lshift", "lt", "matmul", "mod", "mul", "ne")),
    (operator, ("neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "truth", "xor")),
)
_FLOAT = (  # functions of torch, and methods
    *("abs", "add", "all", "amax", "amin", "any", "argmax", "argmin", "bernoulli", "bmm"),
    *("broadcast_to", "ceil", "clamp", "clamp_max", "clamp_min", "cos", "cumsum", "div", "einsum"),
    *("empty_like", "eq", "erf", "exp", "expm1", "floor", "full_like", "gather", "ge", "gt"),
    *("isfinite", "isnan", "le", "log", "log1p", "log2", "log_softmax", "logical_and"),
    *("logical_not", "logical_or", "logsumexp", "lt", "masked_fill", "matmul", "max", "maximum"),
    *("mean", "meshgrid", "min", "minimum", "mm", "mul", "mv", "ne", "neg", "norm", "ones_like"),
    *("outer", "pow", "prod", "rand_like", "randn_like", "reciprocal", "relu", "remainder"),
    *("round", "rsqrt", "scatter", "sigmoid", "sign", "sin", "softmax", "sqrt", "square", "stack"),
    *("std", "sub", "sum", "tanh", "topk", "tril", "triu", "true_divide", "trunc", "var"),
    *("where", "zeros_like"),
)
_LOSSES_AND_MORE = (  # of torch.nn.functional
    *("cross_entropy", "gumbel_softmax", "kl_div", "l1_loss", "log_softmax", "logsigmoid"),
    *("mish", "mse_loss", "nll_loss", "one_hot", "selu", "softplus", "unfold"),
)
_METHODS = {
    *(*_FLOAT, *CASTS, *QUERIES, *MOVE_METHODS, *(name for op in OPS for name in op.methods)),
    *("add_", "bernoulli_", "bool", "clamp_", "copy_", "div_", "double", "exponential_", "fill_"),
    *("float", "half", "int", "item", "log_", "long", "masked_fill_", "mul_", "neg_", "new_empty"),
    *("new_full", "new_ones", "new_tensor", "new_zeros", "normal_", "sub_", "uniform_", "zero_"),
}


def _listed() -> Iterator[object]:
    yield from (getattr(module, name) for module, names in _NUMBERS for name in names)
    yield from (getattr(torch, name) for name in _FLOAT if hasattr(torch, name))
    yield from (getattr(F, name) for name in _LOSSES_AND_MORE)
    yield from (*FACTORIES, *UNKNOWN_FACTORIES, *MOVE_FUNCTIONS, *DROPOUT_CALLS)
    yield from (function for op in OPS for function in op.functions)


def _named() -> Iterator[tuple[str, Any]]:
    """Each listed function under every name that these modules have for it."""
    listed = {id(function) for function in _listed()}
    for module in (torch, F, operator, math, builtins):
        for name, value in vars(module).items():
            if id(value) in listed:
                yield f"{module.__name__}.{name}", value
    for function in _OURS:
        yield f"fxquant.{function.__name__}", function


_BY_NAME: dict[str, Callable[..., Any]] = dict(_named())
_NAMES = {function: name for name, function in reversed(_BY_NAME.items())}


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a file calls a function. Raises FileError if it is in no list."""
    if function not in _NAMES:
        name = getattr(function, "__qualname__", repr(function))
        raise FileError(f"a file may not call '{getattr(function, '__module__', '?')}.{name}'")
    return _NAMES[function]


def function_named(name: str) -> Callable[..., Any]:
    """The function of that name. Raises FileError if it is in no list."""
    if name not in _BY_NAME:
        raise FileError(f"a file may not call '{name}'")
    return _BY_NAME[name]


def check_names(node: fx.Node) -> None:
    """Refuse a name that is followed only when the graph runs, unless that is listed, too."""
    if node.op == "call_method":
        _check(node.target, _METHODS)
    elif node.target is getattr:
        _check(node.args[1], {*ATTRIBUTES, *MOVE_ATTRIBUTES})
    elif node.target is on_copy:
        _check(node.args[1], _METHODS)


def _check(name: object, listed: set[str]) -> None:
    if name not in listed:
        raise FileError(f"a file may not call or read '{name}' of a value")
