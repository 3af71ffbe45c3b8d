"""One record says everything about an operator, so nothing can be forgotten by halves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from fxquant.intmath import Target
from fxquant.schemes import Channels, QParams, QuantScheme


class Output(Enum):
    """Which range an operator's output has."""

    OWN = "a range of its own"
    INPUT = "its input's range, rounded to its grid"
    EXACT = "its input's range, on whose grid it already lies"


class Call(NamedTuple):
    """An operator call in its one canonical form.

    `inputs` are the activations; `options` all else that the function takes, by name:
    parameters (as nodes) and settings such as the stride.
    """

    inputs: tuple[Any, ...]
    options: dict[str, Any]


class Weights(NamedTuple):
    """The real parameters of a call in eval(): batch norm folded in; `scale` float32 [C]."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    scheme: QuantScheme
    channels: Channels


Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], Call | None]


class RealCall(NamedTuple):
    """What an operator's numbers are made from: all that is real about one call."""

    inputs: tuple[QParams, ...]
    target: Target
    weights: Weights | None
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """Everything known of one operator. Leaving a field out is an error at import.

    name          what graphs and messages call it
    function      its float meaning: `function(*inputs, **options)`
    functions     the functions that spell it in user code
    methods       the Tensor methods that spell it
    modules       module type -> the options that such a module stands for, or None where
                  this module has no integer form; parameters are named by their attribute
    read          the canonical call of a function or method call's arguments, or None
    output        which range its output has
    weight_axis   the axis of its weight's output channels; None if it has no weight
    folds         whether a batch norm over its output channels can be folded into it
    numbers       every integer it computes with, as a NamedTuple of tensors
    kernel        `kernel(numbers, dtype, *codes, **options)`: integer tensors in and out
    """

    name: str
    function: Callable[..., Tensor]
    functions: tuple[Callable[..., Any], ...]
    methods: tuple[str, ...]
    modules: Mapping[type[nn.Module], Callable[[Any], dict[str, Any] | None]]
    read: Reader
    output: Output
    weight_axis: int | None
    folds: bool
    numbers: Callable[[RealCall], tuple[Tensor, ...]]
    kernel: Callable[..., Tensor]

    def __repr__(self) -> str:
        return f"OpSpec({self.name!r})"

    def __deepcopy__(self, memo: object) -> OpSpec:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _by_name, (self.name,)


def _by_name(name: str) -> OpSpec:
    from fxquant.ops import op_named  # here, because ops/__init__ imports every record

    return op_named(name)


class Parameter(NamedTuple):
    """In a module's options: stands for the module's own attribute of that name."""

    name: str


def signature_reader(function: Callable[..., Any], inputs: int = 1) -> Reader:
    """Read a call by the signature of `function`, whose first `inputs` are activations."""
    signature = inspect.signature(function)
    names = list(signature.parameters)[:inputs]

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        options = dict(bound.arguments)
        activations = tuple(options.pop(name) for name in names)
        if not all(isinstance(a, fx.Node) for a in activations):
            return None
        return Call(activations, options)

    return read


def module_options(module: nn.Module, *names: str) -> dict[str, Any]:
    """Options that a module holds under the names that the function gives them."""
    return {name: getattr(module, name) for name in names}
