"""A network in LiteRT's operators as the bytes of a .tflite file, and what those bytes say.

    TfliteGraph     operators, tensors        what this packs
    flatbuffer      the same by LiteRT's schema, with names and a signature
    metadata        how the network rounds; of each node's tensor in which order its dimensions lie,
                    and by how much its codes are less
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fxquant.errors import FileError
from fxquant.extras import needs_extra
from fxquant.forms.tflite import Operator, Stored, TfliteGraph, Value, lift
from fxquant.rounding import Rounding

METADATA = "fxquant"
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4,
    **dict.fromkeys(
        ("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "DEQUANTIZE", "GATHER", "LOGISTIC", "MAXIMUM",
         "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "PADV2", "QUANTIZE", "REDUCE_MAX",
         "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TRANSPOSE"),
        2,
    ),
}
"""Since which version of each operator there are int8 kernels."""


class Written(NamedTuple):
    """A network written down: its graph, and what goes in and comes out, with their names."""

    graph: TfliteGraph
    rounding: Rounding
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


def model_of(written: Written) -> bytes:
    """The file of a network written down."""
    graph = written.graph
    names = {name: label for name, (label, _) in graph.labels.items()}
    tensors = {label: (value.order, lift(value.dtype)) for label, value in graph.labels.values()}
    facts = {"rounding": written.rounding.name, "tensors": tensors}
    return flatbuffer(
        graph.operators, graph.tensors,
        {name: x.name for name, x in written.inputs.items()},
        {name: x.name for name, x in written.outputs.items()},
        names, {METADATA: json.dumps(facts).encode()},
    )


def flatbuffer(
    operators: Sequence[Operator],
    tensors: Mapping[str, Stored],
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    names: Mapping[str, str] | None = None,
    metadata: Mapping[str, bytes] | None = None,
) -> bytes:
    """A .tflite file by LiteRT's schema. `inputs` and `outputs` say which tensors they are, `names`
    what tensors are called that are not called as here.
    """
    with needs_extra("litert"):
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    import fxquant

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description = 3, f"fxquant {fxquant.__version__}"
    model.buffers, model.subgraphs = [schema.BufferT()], [graph]
    used = {*inputs.values(), *outputs.values()}
    used |= {name for o in operators for name in (*o.inputs, *o.outputs)}
    places = {name: i for i, name in enumerate(name for name in tensors if name in used)}
    kinds = list(dict.fromkeys(o.name for o in operators))
    graph.tensors = [
        _tensor(schema, model, tensors[name], (names or {}).get(name, name)) for name in places
    ]
    graph.inputs, graph.outputs = ([places[x] for x in ends.values()] for ends in (inputs, outputs))
    graph.operators = [_operator(schema, o, kinds, places) for o in operators]
    model.operatorCodes = [_code(schema, kind) for kind in kinds]
    model.signatureDefs = [_signature(schema, inputs, outputs, places)]
    model.metadata = []
    for name, content in (metadata or {}).items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, _buffer(schema, model, content)
        model.metadata.append(entry)
    return _packed(flatbuffers, model)


def _packed(flatbuffers: Any, model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _buffer(schema: Any, model: Any, content: bytes) -> int:
    import numpy as np

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _tensor(schema: Any, model: Any, stored: Stored, name: str) -> Any:
    import numpy as np

    tensor = schema.TensorT()
    tensor.name, tensor.type = name, _type(schema, stored.dtype)
    tensor.shape = [1 if size is None else size for size in stored.shape]
    if None in stored.shape:
        tensor.shapeSignature = [-1 if size is None else size for size in stored.shape]
    if stored.scale is not None:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = stored.scale.numpy()
        tensor.quantization.zeroPoint = np.full(len(stored.scale), stored.zero, np.int64)
        tensor.quantization.quantizedDimension = stored.axis
    if stored.data is not None:
        tensor.buffer = _buffer(schema, model, stored.data.contiguous().numpy().tobytes())
    return tensor


def _type(schema: Any, dtype: torch.dtype) -> int:
    name = str(dtype).removeprefix("torch.").upper()
    return int(getattr(schema.TensorType, name))


def _operator(schema: Any, written: Operator, kinds: list[str], places: Mapping[str, int]) -> Any:
    call = schema.OperatorT()
    call.opcodeIndex = kinds.index(written.name)
    call.inputs = [places[name] for name in written.inputs]
    call.outputs = [places[name] for name in written.outputs]
    if written.options:
        call.builtinOptionsType = getattr(schema.BuiltinOptions, f"{written.options}Options")
        call.builtinOptions = getattr(schema, f"{written.options}OptionsT")()
        for name, value in written.settings.items():
            if not hasattr(call.builtinOptions, name):
                raise AttributeError(f"{written.options}Options has no {name}")
            setattr(call.builtinOptions, name, _setting(schema, name, value))
    return call


def _setting(schema: Any, name: str, value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _type(schema, value)
    named = {"padding": schema.Padding, "fusedActivationFunction": schema.ActivationFunctionType}
    return getattr(named[name], value) if isinstance(value, str) else value


def _code(schema: Any, kind: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), VERSIONS.get(kind, 1)
    return code


def _signature(
    schema: Any, inputs: Mapping[str, str], outputs: Mapping[str, str], places: Mapping[str, int]
) -> Any:
    found = schema.SignatureDefT()
    found.signatureKey, found.subgraphIndex = "serving_default", 0
    found.inputs, found.outputs = [], []
    for ends, names in ((found.inputs, inputs), (found.outputs, outputs)):
        for name, tensor in names.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, places[tensor]
            ends.append(entry)
    return found


def is_tflite(content: bytes) -> bool:
    """Whether a file is one of LiteRT."""
    return content[4:8] == b"TFL3"


def with_every_value(model: bytes) -> bytes:
    """The file with every tensor that a node is called after as an output, too: delegates keep no
    others.
    """
    with needs_extra("litert"):
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    known = facts_of(model)["tensors"]
    found = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = found.subgraphs[0]
    called = [i for i, tensor in enumerate(graph.tensors) if tensor.name.decode() in known]
    graph.outputs = [i for i in called if i not in graph.inputs]
    found.signatureDefs = []
    return _packed(flatbuffers, found)


def facts_of(model: bytes) -> Any:
    """What `model_of` wrote down beside the network."""
    with needs_extra("litert"):
        from ai_edge_litert import schema_py_generated as schema
    try:
        found = schema.Model.GetRootAs(model, 0)
        entries = [found.Metadata(i) for i in range(found.MetadataLength())]
        buffer = next(entry.Buffer() for entry in entries if entry.Name().decode() == METADATA)
        return json.loads(bytes(found.Buffers(buffer).DataAsNumpy()))
    except Exception as error:  # whatever bytes that are no flatbuffer bring about
        raise FileError("the file does not say which nodes it holds: export_tflite did not write "
                        "it, or it is damaged") from error
