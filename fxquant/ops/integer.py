"""The modules of a converted network. Their buffers are all the numbers there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.graph.edit import Site, map_nodes, nodes_in
from fxquant.graph.place import example_of
from fxquant.ops.accumulator import Accumulator, IntegerCall, Operand
from fxquant.ops.spec import OpSpec
from fxquant.rounding import Rounding
from fxquant.schemes import QParams, QuantScheme, dequantize


class Facts(NamedTuple):
    """What is known of an integer operator beside its numbers, which alone decide what it gives.

    `scale` and `zero_point` say what the codes of its output stand for, `inputs` are the codes it
    reads, and `accumulator_bits` is what its sums were allowed when it was made.
    """

    scale: float
    zero_point: int
    inputs: tuple[Operand, ...]
    accumulator_bits: int


class IntegerOp(Site):
    """One operator on integer tensors; every number it uses is a buffer of that name.

    Beside them stands how it rounds, if it does. `text` says what it came from, such as
    'conv2d → relu': the ReLU is in the clamp. `facts` are for those who audit it.
    """

    def __init__(
        self, op: OpSpec, numbers: tuple[Tensor | Rounding, ...], scheme: QuantScheme, text: str,
        facts: Facts,
    ) -> None:
        super().__init__()
        self.op = op
        self.scheme = scheme
        self.text = text
        self.facts = facts
        self._numbers = type(numbers)
        self._roundings: dict[str, Rounding] = {}  # one or none
        for name, value in numbers._asdict().items():  # type: ignore[attr-defined]
            if isinstance(value, Rounding):
                self._roundings[name] = value
            else:
                self.register_buffer(name, value.clone())

    def forward(self, *codes: Tensor, **options: Any) -> Tensor:
        """Integer tensors in, one integer tensor out."""
        with torch.no_grad():
            return self.op.kernel(self.numbers, self.scheme.dtype, *codes, **options)

    @property
    def numbers(self) -> tuple[Tensor | Rounding, ...]:
        """The buffers, and the rounding, as the kernel takes them."""
        return self._numbers(**self._buffers, **self._roundings)

    def accumulator(self, settings: Mapping[str, Any]) -> Accumulator | None:
        """What it sums, if anything, when it is called with those settings, which are for the
        example's shapes where the graph computes them.
        """
        _, _, inputs, bits = self.facts

        def of_example(part: fx.Node) -> Any:
            value = example_of(part)
            return part if value is None else value

        settings = {name: map_nodes(value, of_example) for name, value in settings.items()}
        settings = {name: value for name, value in settings.items() if not nodes_in(value)}
        return self.op.accumulator(IntegerCall(self.numbers, inputs, settings, bits))

    def extra_repr(self) -> str:
        """The operator and its output's scheme, for print(model)."""
        return f"{self.text}, {self.scheme}"


class _Boundary(Site):
    scale: Tensor
    zero_point: Tensor

    def __init__(self, q: QParams) -> None:
        super().__init__()
        self.scheme = q.scheme
        self.register_buffer("scale", q.scale.clone())
        self.register_buffer("zero_point", q.zero_point.clone())

    @property
    def qparams(self) -> QParams:
        """The parameters of this boundary."""
        return QParams(self.scale, self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)


class Quantize(_Boundary):
    """Real numbers in, integers out."""

    def __init__(self, q: QParams, rounding: Rounding) -> None:
        super().__init__(q)
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, of the scheme's integer dtype."""
        return self.rounding.quantize(x.detach(), self.qparams)


class Dequantize(_Boundary):
    """Integers in, the real numbers they stand for out."""

    def forward(self, codes: Any) -> Any:
        """Same shape, of the scale's dtype; each tensor of a tuple by itself."""
        if isinstance(codes, (tuple, list)):
            return tuple(self.forward(part) for part in codes)
        return dequantize(codes, self.qparams)
