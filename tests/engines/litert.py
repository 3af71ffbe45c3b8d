"""One LiteRT operator as a model of its own, and what each of its three kernel sets gives.

The model is built as `export_tflite` builds its own; no converter is between its numbers and ours.
LiteRT lays images out as [N, H, W, C], convolution weights as [O, H, W, I], depthwise ones as
[1, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fxquant.export.flatbuffer import flatbuffer
from fxquant.forms.tflite import Operator, Stored

schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="LiteRT is in the extra `engines`"
)
interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="LiteRT is in the extra `engines`"
)

RESOLVERS = {
    "reference": interpreter.OpResolverType.BUILTIN_REF,
    "optimized": interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "xnnpack": interpreter.OpResolverType.AUTO,
}


class Value(NamedTuple):
    """A tensor of a model: constant if it has `data`, quantized if it has `scales`.

    Several scales lie along `axis`, and then all zero points are 0.
    """

    shape: tuple[int, ...]
    dtype: Any = np.int8
    scales: Sequence[float] = ()
    zero: int = 0
    data: NDArray[Any] | None = None
    axis: int = 0


def run(
    operator: str, options: Any, values: Sequence[Value], output: Value, resolver: str,
    *inputs: NDArray[Any],
) -> NDArray[Any]:
    """What `operator` makes of `inputs`, the data of those `values` that are not constant."""
    model = _model(operator, options, values, output)
    runner = interpreter.Interpreter(
        model_content=model, experimental_op_resolver_type=RESOLVERS[resolver], num_threads=1
    )
    runner.allocate_tensors()
    for detail, data in zip(runner.get_input_details(), inputs, strict=True):
        runner.set_tensor(detail["index"], data)
    runner.invoke()
    found: NDArray[Any] = runner.get_tensor(runner.get_output_details()[0]["index"])
    return found


def _model(operator: str, options: Any, values: Sequence[Value], output: Value) -> bytes:
    tensors = {f"t{i}": _stored(value) for i, value in enumerate((*values, output))}
    *read, given = tensors
    kind, settings = options or ("", {})
    called = Operator(operator, tuple(read), (given,), kind, settings)
    inputs = {name: name for name in read if tensors[name].data is None}
    return flatbuffer([called], tensors, inputs, {given: given})


def _stored(value: Value) -> Stored:
    dtype = torch.from_numpy(np.empty(0, value.dtype)).dtype
    data = None if value.data is None else torch.from_numpy(np.array(value.data, value.dtype))
    scale = torch.tensor(np.array(value.scales, np.float32)) if len(value.scales) else None
    return Stored(dtype, value.shape, data, scale, value.zero, value.axis)


def options(kind: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    """An options object of the schema, such as `options("Conv2D", strideH=2)`."""
    return kind, settings
