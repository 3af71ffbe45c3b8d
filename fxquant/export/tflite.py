"""The integer network as a .tflite file, whose integers LiteRT's kernels give.

    x ── quantize ── conv ── … ── dequantize ── y
    x ── QUANTIZE ── TRANSPOSE ── CONV_2D ── … ── TRANSPOSE ── DEQUANTIZE ── y

What goes in and comes out are the real tensors of the network, laid out as there. Every operator is
written by the form in its own record. Names stay: what node `conv` gives is the tensor `conv`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError, FileError
from fxquant.export.moves import move
from fxquant.export.walk import Like, Walk, walk
from fxquant.extras import needs_extra
from fxquant.files import ending_of, write_whole
from fxquant.forms.tflite import Operator, Stored, TfliteCall, TfliteGraph, Value, lift
from fxquant.graph.edit import called_module, get_attribute, map_nodes
from fxquant.graph.nested import leaves, mapped
from fxquant.graph.place import describe
from fxquant.ops.integer import Dequantize, IntegerOp, Quantize
from fxquant.ops.move import is_move
from fxquant.rounding import FP32_RNE, GEMMLOWP, RUY, Rounding, rounding_named
from fxquant.see.grid import grids_of

KERNELS = {
    GEMMLOWP: "BUILTIN_REF", RUY: "BUILTIN_WITHOUT_DEFAULT_DELEGATES", FP32_RNE: "AUTO",
}
"""LiteRT's kernels that round so, as its interpreter calls them: the last are those of XNNPACK."""

METADATA = "fxquant"


class Written(NamedTuple):
    """A network written down: its graph, and what goes in and comes out, with their names."""

    graph: TfliteGraph
    rounding: Rounding
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


def export_tflite(
    quantized: fx.GraphModule,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Any] | Tensor,
    batch: int | None = None,
) -> None:
    """Write a converted network as .tflite: LiteRT gives its integers, in those of its kernels that
    round as the network does.

    rounding="gemmlowp" is that of the reference kernels, "ruy" of the optimized ones, "fp32_rne" of
    XNNPACK. Inputs and outputs are real, and lie as in the network; nodes keep their names, and the
    file has a signature with those of the inputs and outputs.

    Args:
        quantized: what `convert` gave.
        path: the file, which is written whole or not at all.
        example_inputs: the arguments of one call, or its only tensor: shapes and types matter.
        batch: the size of batches; None for any, along the first dimension of every input that has
            as many rows as the first: 1 until `resize_tensor_input` says another one.

    Raises:
        StageError: `quantized` is no converted network.
        ConfigError: an argument cannot be right, or the path ends in something else than .tflite.
        ExportError: a node has no form in LiteRT's operators, or none that gives its integers.
        WriteError: the file cannot be written.
        MissingExtraError: the extra `litert` is not installed.
    """
    ending_of(path, ("tflite",), "a network for LiteRT")
    written = _Writer(walk(quantized, example_inputs, batch)).run()
    model = model_of(written)
    check(model, written.rounding)
    write_whole(path, model)


class _Writer:
    """Goes through the network once; `values` are what its nodes give."""

    def __init__(self, walk: Walk) -> None:
        self.walk, self.graph = walk, TfliteGraph()
        self.grids = {node: grid.qparams for node, grid in grids_of(walk.gm).items()}
        self.values: dict[fx.Node, Any] = {}
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.rounding = _rounding(walk.gm)

    def run(self) -> Written:
        """Write every node down."""
        for node in self.walk.gm.graph.nodes:
            if node not in self.walk.numbers:
                self._write(node)
        return Written(self.graph, self.rounding, self.inputs, self.outputs)

    def _write(self, node: fx.Node) -> None:
        self.graph.place = node.name
        if node.op == "output":
            self._give(node)
        elif node.op == "placeholder":
            self.values[node] = self._input(self.walk.of(node), str(node.target).lstrip("*"))
        else:
            found = self._value(node)
            if found is not None:
                self.values[node] = found
                self._label(found, node.name)

    def _label(self, found: Any, name: str) -> None:
        if isinstance(found, tuple):
            for i, part in enumerate(found):
                self._label(part, f"{name}_{i}")
        elif found.data is None:
            self.graph.label(found, name)

    def _value(self, node: fx.Node) -> Any:
        gm, module = self.walk.gm, called_module(self.walk.gm, node)
        if node.op == "get_attr":
            held = get_attribute(gm, str(node.target))
            return self.graph.value(held) if isinstance(held, Tensor) else None
        if isinstance(module, Quantize):
            return quantize_tflite(module, self._read(node))
        if isinstance(module, Dequantize):
            read = self.values[node.all_input_nodes[0]]
            return mapped(partial(dequantize_tflite, module, self.rounding), read)
        if isinstance(module, IntegerOp):
            return self._operator(node, module)
        if is_move(gm, node):
            return move(self.graph, self.walk, node, self.values, None)
        if not set(node.all_input_nodes) & self.values.keys():
            raise ExportError(f"{describe(node)} is computed from sizes: {self.walk.of(node)}")
        raise ExportError(
            f"{describe(node)} has no form in LiteRT: it computes in float, between integers.\n"
            "What to do: convert the network without keep_float."
        )

    def _operator(self, node: fx.Node, module: IntegerOp) -> Value:
        output = self.grids[node]
        assert output is not None  # an integer operator knows what its codes stand for
        read = [self.values[x] for x in leaves(node.args)]
        grids = output, *(x.grid for x in read)
        if any(q is not None and not q.scheme.is_byte for q in grids):
            raise ExportError(
                f"{describe(node)} has codes of more than 8 bits, which LiteRT rounds otherwise.\n"
                "What to do: QuantConfig(widen=False), and activations of 8 bits or fewer."
            )
        if module.op.tflite is None:
            raise ExportError(
                f"{describe(node)}: LiteRT has no operators that give the integers of "
                f"{module.op.name}.\nWhat to do: export_onnx, or a network without it."
            )
        settings = map_nodes(node.kwargs, lambda n: self.values.get(n, self.walk.of(n)))
        kernel = partial(module.op.kernel, module.numbers, module.scheme.dtype)
        numbers = {key: x for key, x in settings.items() if key not in module.op.indices}
        call = TfliteCall(
            self.graph, module.numbers, module.scheme.dtype, tuple(read), settings, output,
            self.walk.like(node).shape, partial(kernel, **numbers),
        )
        return module.op.tflite(call)

    def _input(self, like: Any, name: str) -> Any:
        """What comes in; None for a number, which the examples have fixed."""
        if isinstance(like, Like):
            found = self.graph.tensor(name, like.shape, like.dtype)
            self.inputs[name] = found
            self.graph.label(found, name)
            return found
        if isinstance(like, (tuple, list)):
            return tuple(self._input(part, f"{name}_{i}") for i, part in enumerate(like))
        if isinstance(like, dict):
            return {key: self._input(part, f"{name}_{key}") for key, part in like.items()}
        return None

    def _read(self, node: fx.Node) -> Value:
        found = self.values[node.all_input_nodes[0]]
        if not isinstance(found, Value):
            raise ExportError(f"{describe(node)} reads several tensors at once")
        return found

    def _give(self, node: fx.Node) -> None:
        """What is given twice, comes in or is constant is given as a copy, of another name."""
        labels = self.graph.labels
        given = {value.name for value in self.inputs.values()}
        for part in leaves(map_nodes(node.args, lambda n: self.values.get(n, n))):
            if not isinstance(part, Value):
                continue
            found = part.plain
            name, _ = labels.get(found.name) or labels.get(part.name, (part.name, part))
            if found.name in given or found.data is not None:
                found, name = found.copy, self._free(name)
            elif found.name != part.name:
                labels.pop(part.name, None)  # what is called so is what comes out
            given.add(found.name)
            self.outputs[name] = found
            self.graph.label(found, name)

    def _free(self, name: str) -> str:
        taken = {node.name for node in self.walk.gm.graph.nodes} | {*self.inputs, *self.outputs}
        return next(
            free for i in count(1) if (free := f"{name}_{i}") not in taken
        )


def _rounding(gm: fx.GraphModule) -> Rounding:
    """How the network rounds, if that is one of LiteRT's ways."""
    ends = [m for m in gm.modules() if isinstance(m, (Quantize, Dequantize))]
    if any(m.scale.dtype is not torch.float32 for m in ends):
        raise ExportError("the network has scales that are not float32, as LiteRT's are.\n"
                          "What to do: prepare the network in float32, model.float().")
    found = {m.rounding for m in ends if isinstance(m, Quantize)}
    if len(found or {GEMMLOWP}) == 1 and found <= KERNELS.keys():
        return found.pop() if found else GEMMLOWP  # a network of floats that only moves them
    names = ", ".join(sorted(rounding.name for rounding in found))
    raise ExportError(
        f"the network rounds as {names}, and LiteRT's kernels as gemmlowp "
        "(reference), ruy (optimized) or fp32_rne (XNNPACK).\n"
        "What to do: QuantConfig(rounding=…), or preset('litert').config."
    )


def quantize_tflite(module: Quantize, x: Value) -> Value:
    """Real numbers to codes, as the rounding has it: QUANTIZE, which only the reference kernels
    round by a division, or a division.
    """
    q = module.qparams
    if not q.scheme.is_byte:
        raise ExportError(
            f"node '{x.graph.place}' gives codes of more than 8 bits.\n"
            "What to do: QuantConfig(widen=False), and activations of 8 bits or fewer."
        )
    real, low, high = x.to(torch.float32), torch.tensor(q.scheme.qmin), torch.tensor(q.scheme.qmax)
    if module.rounding is GEMMLOWP:
        return real.quantized(q).clamp(low, high)
    codes = (real / q.scale.float()).round() + q.zero_point.float()
    return codes.between(float(low), float(high)).as_codes(q)


def dequantize_tflite(module: Dequantize, rounding: Rounding, codes: Value) -> Value:
    """Codes to real numbers: DEQUANTIZE, of which the optimized kernels multiply zero points out,
    or arithmetic.
    """
    q, plain = module.qparams, codes.plain
    if rounding is GEMMLOWP:
        return plain.dequantized(q)
    return plain.as_reals(q.zero_point) * q.scale.float()


# ------------------------------------------------------------------------ flatbuffers


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


VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4,
    **dict.fromkeys(
        ("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "DEQUANTIZE", "GATHER", "LOGISTIC", "MAXIMUM",
         "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "PADV2", "QUANTIZE", "REDUCE_MAX",
         "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TRANSPOSE"),
        2,
    ),
    "BROADCAST_TO": 2,
}
"""Since which version of each operator there are int8 kernels."""


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


def check(model: bytes, rounding: Rounding) -> None:
    """Let LiteRT look whether it has every operator, and for these shapes and types."""
    try:
        interpreter_of(model, KERNELS[rounding])
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"LiteRT does not take the file: {error}\n"
            "What to do: keep the operator that it names out of the network."
        ) from error


def interpreter_of(model: bytes, kernels: str, shapes: Sequence[Sequence[int]] = ()) -> Any:
    """LiteRT's interpreter of a file on one thread, for inputs of those shapes, if they are not the
    file's own.
    """
    with needs_extra("litert"):
        from ai_edge_litert import interpreter as litert
    found = litert.Interpreter(
        model_content=model, num_threads=1,
        experimental_op_resolver_type=getattr(litert.OpResolverType, kernels),
    )
    for detail, shape in zip(found.get_input_details(), shapes, strict=False):
        found.resize_tensor_input(detail["index"], list(shape))
    found.allocate_tensors()
    return found


# ------------------------------------------------------------------------ what LiteRT gives


def is_tflite(content: bytes) -> bool:
    """Whether a file is one of LiteRT."""
    return content[4:8] == b"TFL3"


def run_tflite(model: bytes, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs, by name, of the kernels that round as the network does: as the network has them.
    """
    facts = _facts(model)
    kernels = KERNELS[rounding_named(facts["rounding"])]
    runner = interpreter_of(model, kernels, [x.shape for x in inputs])
    for detail, x in zip(runner.get_input_details(), inputs, strict=True):
        runner.set_tensor(detail["index"], x.contiguous().numpy())
    runner.invoke()
    found = {}
    for detail in runner.get_output_details():
        order, less = facts["tensors"][detail["name"]]
        lies = torch.as_tensor(runner.get_tensor(detail["index"]))  # a number where it is one
        value = lies.permute([order.index(d) for d in range(len(order))])
        found[detail["name"]] = value.to(torch.int16) + less if less else value
    return found


def with_every_value(model: bytes) -> bytes:
    """The file with every tensor that a node is called after as an output, too: delegates keep no
    others.
    """
    with needs_extra("litert"):
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    known = _facts(model)["tensors"]
    found = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = found.subgraphs[0]
    called = [i for i, tensor in enumerate(graph.tensors) if tensor.name.decode() in known]
    graph.outputs = [i for i in called if i not in graph.inputs]
    found.signatureDefs = []
    return _packed(flatbuffers, found)


def _facts(model: bytes) -> Any:
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
