"""One record says everything about an operator, so nothing can be forgotten by halves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.forms.onnx import OnnxForm
from fxquant.forms.qdq import QdqForm
from fxquant.forms.tflite import TfliteForm
from fxquant.intmath import ACCUMULATOR_BITS, Target
from fxquant.kernels.kernel import Kernel, KernelChoice
from fxquant.ops.accumulator import Accumulator, IntegerCall
from fxquant.rounding import Rounding
from fxquant.schemes import Channels, QParams, QuantScheme


class Output(Enum):
    """Which range an operator's output has."""

    OWN = "a range of its own"
    INPUT = "its input's range, rounded to its grid"
    EXACT = "its input's range, on whose grid it already lies"


@dataclass(frozen=True)
class Clamp:
    """An activation that only limits values: ReLU is (0, inf), ReLU6 is (0, 6)."""

    low: float
    high: float

    def __call__(self, x: Tensor, divisor: Tensor | None = None) -> Tensor:
        """Any shape; the gradient is the activation's own, also at its corners.

        `divisor`, positive, divides the limits: then `clamp(x / d, d) = clamp(x) / d`.
        """
        if self.lets_factors_through:
            return torch.relu(x)
        if divisor is not None:
            return torch.clamp(x, self.low / divisor, self.high / divisor)
        if self.stops_gradients:
            return F.hardtanh(x, self.low, self.high)
        return x.clamp(self.low, self.high)

    @property
    def lets_factors_through(self) -> bool:
        """Whether clamp(s·x) = s·clamp(x) for every s > 0."""
        return (self.low, self.high) == (0.0, math.inf)

    @property
    def stops_gradients(self) -> bool:
        """Whether its gradient is 0 at its limits, as that of ReLU and hardtanh is."""
        return self.lets_factors_through or (math.isfinite(self.low) and math.isfinite(self.high))

    def __str__(self) -> str:
        names = {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}
        return names.get((self.low, self.high), f"clamp({self.low:g}, {self.high:g})")


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


class Affine(NamedTuple):
    """A batch norm in eval(): `y = factor · x + offset`, both [C]."""

    factor: Tensor
    offset: Tensor


Spelling = Callable[[tuple[Any, ...], Mapping[str, Any]], Call | None]
Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], Call | str | None]
Options = Callable[[Any], Call | dict[str, Any] | str | None]
FastKernel = Callable[[IntegerCall, torch.dtype, KernelChoice], Kernel]


class RealCall(NamedTuple):
    """What an operator's numbers are made from: all that is real about one call."""

    inputs: tuple[QParams, ...]
    target: Target
    weights: Weights | None  # of a layer, a batch norm folded in
    affine: Affine | None  # of a batch norm
    options: Mapping[str, Any]
    accumulator_bits: int = ACCUMULATOR_BITS


@dataclass(frozen=True, kw_only=True, eq=False)
class OpSpec:
    """Everything known of one operator. Leaving out a field that has no default fails at import.

    name          what graphs and messages call it
    function      its float meaning: `function(*inputs, **options)`
    functions     the functions that spell it in user code
    methods       the Tensor methods that spell it
    modules       module type -> the options that such a module stands for, or the whole call;
                  parameters are named by their attribute
    read          the canonical call of a function or method call's arguments
                  (both: None where it is no such call, or a sentence that says why not)
    output        which range its output has
    range         the range of its output where that is known beforehand, else None
    homogeneous   whether it works on each element alone and f(c·x) = c·f(x) for every c > 0
    weight_axis   the axis of its weight's output channels; None if it has no weight
    numbers       every integer it computes with, as a NamedTuple of tensors; and the `Rounding`,
                  under that name, if it rounds
    kernel        `kernel(numbers, dtype, *codes, **options)`: integer tensors in and out
    accumulator   what it sums before it rounds, at most; the result is None where that is nothing
    onnx          what it is in ONNX: the kernel's integers by operators of ONNX
    tflite        what it is in a .tflite file; None where LiteRT has no operators that give the
                  kernel's integers
    qdq           the real operator between codes, if an engine is known to give the kernel's
                  integers so, under fp32_rne
    indices       the options that are integer tensors of the network: they say what to pick
    allocates     whether its options are the shape of its result, which may follow the batch
    real          the options that end in the numbers: the kernel takes the others
    fast          `fast(call, dtype, choice)`: a kernel that gives what `kernel` gives, for numbers
                  that stand still, as those of a converted network do
    """

    name: str
    function: Callable[..., Tensor]
    functions: tuple[Callable[..., Any], ...]
    methods: tuple[str, ...]
    modules: Mapping[type[nn.Module], Options]
    read: Reader
    output: Output
    range: tuple[float, float] | None
    homogeneous: bool
    weight_axis: int | None
    numbers: Callable[[RealCall], tuple[Tensor | Rounding, ...]]
    kernel: Callable[..., Tensor]
    accumulator: Callable[[IntegerCall], Accumulator | None]
    onnx: OnnxForm
    tflite: TfliteForm | None = None
    qdq: QdqForm | None = None
    indices: tuple[str, ...] = ()
    allocates: bool = False
    real: tuple[str, ...] = ()
    fast: FastKernel | None = None

    @property
    def folds(self) -> bool:
        """Whether a batch norm over its output channels can be folded into it: a layer's can."""
        return self.weight_axis is not None

    def __repr__(self) -> str:
        return f"OpSpec({self.name!r})"

    def __deepcopy__(self, memo: object) -> OpSpec:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _by_name, (self.name,)


def _by_name(name: str) -> OpSpec:
    from fxquant.ops import op_named  # here, because ops/__init__ imports every record

    return op_named(name)


class ZeroPoint(NamedTuple):
    """The only number of an operator that keeps its input's range: `zero`, 0-dim int32."""

    zero: Tensor


def zero_point(call: RealCall) -> ZeroPoint:
    """The zero point that input and output share."""
    return ZeroPoint(call.target.qparams.zero_point)


class Parameter(NamedTuple):
    """In a module's options: stands for the module's own attribute of that name."""

    name: str


class Argument(NamedTuple):
    """In a module's call: stands for what the module is called with, by number."""

    number: int


def signature_reader(function: Callable[..., Any], inputs: int = 1) -> Spelling:
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


def not_spelled(args: object, kwargs: object) -> None:
    """The reader of an operator that no function or method call spells."""


def module_options(module: nn.Module, *names: str) -> dict[str, Any]:
    """Options that a module holds under the names that the function gives them."""
    return {name: getattr(module, name) for name in names}


def as_tuple(setting: Any) -> tuple[Any, ...]:
    """One or several, as torch takes dimensions and widths, as several."""
    return tuple(setting) if isinstance(setting, (tuple, list)) else (setting,)


def per_dimension(setting: Any, dims: int) -> tuple[Any, ...]:
    """A setting for each dimension, or one for all, as one for each."""
    values = as_tuple(setting)
    return values * (dims // len(values))
