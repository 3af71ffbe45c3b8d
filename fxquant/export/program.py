"""The integer network as a program of torch.export: one graph of torch's own operators.

It needs no fxquant to run: `torch.export.save`, and `torch.export.load` in another process; or
`torch._inductor.aoti_compile_and_package`, for a process without Python.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from fxquant.errors import ExportError
from fxquant.export.walk import walk, zeros
from fxquant.graph.edit import Site, called_module, replace_site
from fxquant.graph.nested import mapped
from fxquant.rounding import Rounding
from fxquant.sites.integer import IntegerOp


def export_program(
    quantized: fx.GraphModule,
    example_inputs: Sequence[Any] | Tensor,
    batch: int | None = None,
) -> ExportedProgram:
    """A converted network as a torch.export.ExportedProgram that gives the same integers.

    Args:
        quantized: what `convert` gave.
        example_inputs: the arguments of one call, or its only tensor: shapes and types matter.
        batch: the size of batches; None for any, along the first dimension of every input that has
            as many rows as the first.

    Raises:
        StageError: `quantized` is no converted network.
        ConfigError: an argument cannot be right.
        ExportError: torch.export cannot follow it.
    """
    walked = walk(quantized, example_inputs, batch)
    inputs = _given(quantized, 1 if isinstance(example_inputs, Tensor) else len(example_inputs))
    first, example = (
        [mapped(zeros, run[node]) for node in inputs] for run in (walked.runs[0], walked.runs[-1])
    )
    rows = Dim("batch", min=1)
    shapes: list[Any] = []
    arguments: list[Any] = []
    for node, one, other in zip(inputs, first, example, strict=True):
        found = _dynamic(one, other, rows)
        several = str(node.target).startswith("*")  # forward(self, *inputs)
        shapes.append(tuple(found) if several else found)
        arguments += other if several else [other]
    network = copy.deepcopy(quantized)
    for node in network.graph.nodes:
        module = called_module(network, node)
        if isinstance(module, IntegerOp):
            replace_site(network, node, _Known(module))
    network.recompile()
    try:
        return torch.export.export(network, tuple(arguments), dynamic_shapes=tuple(shapes))
    except Exception as error:
        way_out = "\nWhat to do: fix the size of batches, batch=…" if batch is None else ""
        raise ExportError(f"torch.export does not follow the network: {error}{way_out}") from error


def _given(quantized: fx.GraphModule, count: int) -> list[fx.Node]:
    """The inputs that so many arguments are for; the others have defaults."""
    inputs = [node for node in quantized.graph.nodes if node.op == "placeholder"]
    return [x for i, x in enumerate(inputs) if i < count or str(x.target).startswith("*")]


class _Known(Site):
    """An integer operator whose single numbers are constants of the program: torch.export follows
    no Python that asks a buffer for its value, as for the code that pads.
    """

    def __init__(self, site: IntegerOp) -> None:
        super().__init__()
        self.op, self.dtype = site.op, site.scheme.dtype
        numbers = site.numbers
        self.kind = type(numbers)
        self.known: dict[str, Any] = {}
        for name, value in numbers._asdict().items():  # type: ignore[attr-defined]
            if isinstance(value, Rounding):
                self.known[name] = value
            elif value.numel() == 1:
                self.known[name] = value.dtype, tuple(value.shape), value.item()
            else:
                self.register_buffer(name, value)

    def forward(self, *codes: Tensor, **options: Any) -> Tensor:
        """As the operator itself."""
        numbers = {
            name: value if isinstance(value, Rounding)
            else torch.tensor(value[2], dtype=value[0]).reshape(value[1])
            for name, value in self.known.items()
        }
        with torch.no_grad():
            return self.op.kernel(
                self.kind(**self._buffers, **numbers), self.dtype, *codes, **options
            )


def _dynamic(first: Any, second: Any, rows: Any) -> Any:
    """The dimensions of an input that follow the batch, as torch.export wants them."""
    if isinstance(first, Tensor):
        sizes = zip(first.shape, second.shape, strict=True)
        return {i: rows for i, (a, b) in enumerate(sizes) if a != b}
    if isinstance(first, (tuple, list)):
        return type(first)(_dynamic(a, b, rows) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        return {key: _dynamic(first[key], second[key], rows) for key in first}
    return None
