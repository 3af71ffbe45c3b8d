"""One LiteRT operator as a model of its own, and what each of its three kernel sets gives.

The model is built from the schema's own objects; no converter is between its numbers and ours.
LiteRT lays images out as [N, H, W, C], convolution weights as [O, H, W, I], depthwise ones as
[1, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

flatbuffers = pytest.importorskip("flatbuffers", reason="LiteRT's models are flatbuffers")
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
_TYPES = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
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
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(model, i, value) for i, value in enumerate((*values, output))]
    graph.inputs = [i for i, value in enumerate(values) if value.data is None]
    graph.outputs = [len(values)]
    call = schema.OperatorT()
    call.inputs, call.outputs = list(range(len(values))), [len(values)]
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        call.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        call.builtinOptions = options
    graph.operators, model.subgraphs = [call], [graph]
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 2
    model.operatorCodes = [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(model: Any, index: int, value: Value) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape = f"t{index}", list(value.shape)
    tensor.type = _TYPES[np.dtype(value.dtype)]
    if len(value.scales):
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.asarray(value.scales, np.float32)
        tensor.quantization.zeroPoint = np.full(len(value.scales), value.zero, np.int64)
        tensor.quantization.quantizedDimension = value.axis
    if value.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.data.astype(value.dtype).tobytes(), np.uint8)
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    return tensor


def options(kind: str, **settings: Any) -> Any:
    """An options object of the schema, such as `options("Conv2D", strideH=2)`."""
    made = getattr(schema, f"{kind}OptionsT")()
    for name, value in settings.items():
        assert hasattr(made, name), f"{kind}Options has no {name}"
        setattr(made, name, value)
    return made
