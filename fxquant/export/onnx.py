"""The integer network as an ONNX model that gives the same integers.

    x ── quantize ── conv ── … ── dequantize ── y
    x ── Div, Add, Floor, Clip ── ConvInteger, Add, Mul, Add, Floor, Clip ── … ── y     and Casts

Every operator is written in integer operators of ONNX, or in float64 where that is exact, by the
form in its own record. Names stay: what node `conv` gives is the value `conv`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError, ExportError
from fxquant.export.moves import move
from fxquant.export.protobuf import Written, model_of, save
from fxquant.export.walk import Like, Walk, has_no_form, only_value, taken_in, walk
from fxquant.files import ending_of
from fxquant.forms.onnx import OnnxCall, OnnxGraph, Value, of_values
from fxquant.graph.edit import called_module, get_attribute, map_nodes
from fxquant.graph.nested import leaves, mapped
from fxquant.ops.spec import OpSpec
from fxquant.rounding import FP32_RNE
from fxquant.schemes import QuantScheme
from fxquant.see.grid import grids_of
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.move import is_move


def export_onnx(
    quantized: fx.GraphModule,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Any] | Tensor,
    batch: int | None = None,
    form: Literal["operators", "qdq"] = "operators",
) -> None:
    """Write a converted network as ONNX, in integer operators: onnxruntime gives its integers.

    Nodes keep their names, inputs theirs; outputs are called after the nodes that give them.
    The file passes ONNX's checker and its shape inference. What would make it larger than 2 GB
    lies beside it, in `<path>.data`.

    Args:
        quantized: what `convert` gave.
        path: the file, which is written whole or not at all.
        example_inputs: the arguments of one call, or its only tensor: shapes and types matter.
        batch: the size of batches; None for any, along the first dimension of every input that has
            as many rows as the first.
        form: "operators" for integer operators, which any engine runs to the same integers;
            "qdq" for real operators between QuantizeLinear and DequantizeLinear, which engines
            fuse, where onnxruntime then gives the same integers, and integer operators elsewhere.
            It is the quicker one, and needs rounding="fp32_rne".

    Raises:
        StageError: `quantized` is no converted network.
        ConfigError: an argument cannot be right, or the path ends in something else than .onnx.
        ExportError: a node has no ONNX form, such as a layer that was kept in float.
        WriteError: the file cannot be written.
        MissingExtraError: the extra `onnx` is not installed.
    """
    ending_of(path, ("onnx",), "a network in ONNX")
    if form not in FORMS:
        raise ConfigError(f"form is one of {', '.join(map(repr, FORMS))}; got {form!r}")
    written = _Writer(walk(quantized, example_inputs, batch), FORMS[form]).run()
    save(model_of(written, type(quantized).__name__), path)


def _in_operators(call: OnnxCall, op: OpSpec) -> Value:
    return op.onnx(call)


def _in_qdq(call: OnnxCall, op: OpSpec) -> Value:
    if getattr(call.numbers, "rounding", FP32_RNE) is not FP32_RNE:
        raise ExportError(
            f"node '{call.graph.place}' rounds as {call.numbers.rounding.name} does, and engines "
            'round QDQ operators as fp32_rne.\nWhat to do: QuantConfig(rounding="fp32_rne"), or '
            'form="operators".'
        )
    found = None if op.qdq is None else op.qdq(call)
    return op.onnx(call) if found is None else found


FORMS = {"operators": _in_operators, "qdq": _in_qdq}


class _Writer:
    """Goes through the network once; `values` are what its nodes give."""

    def __init__(self, walk: Walk, form: Callable[[OnnxCall, OpSpec], Value]) -> None:
        self.walk, self.graph, self.form = walk, OnnxGraph(), form
        self.grids = {node: grid.qparams for node, grid in grids_of(walk.gm).items()}
        self.values: dict[fx.Node, Any] = {}
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self._batch: Value | None = None

    def run(self) -> Written:
        """Write every node down."""
        for node in self.walk.gm.graph.nodes:
            if node not in self.walk.numbers:
                self._write(node)
        self.graph.drop_unread(self.outputs)
        inputs, outputs = tuple(self.inputs), tuple(self.outputs)
        return Written(self.walk, self.graph, inputs, outputs, self.values)

    def _write(self, node: fx.Node) -> None:
        self.graph.place = node.name
        since = len(self.graph.nodes)
        if node.op == "output":
            self._give(node)
        elif node.op == "placeholder":
            name = str(node.target).lstrip("*")
            self.values[node] = taken_in(self.walk.of(node), name, self._input)
        else:
            found = self._value(node)
            if found is not None:
                self.values[node] = self._named(found, self.walk.of(node), node.name, since)

    def _named(self, found: Any, like: Any, name: str, since: int) -> Any:
        """What a node gives, under its name and with its shape."""
        if isinstance(found, tuple):
            parts = enumerate(zip(found, like, strict=True))
            return tuple(self._named(v, part, f"{name}_{i}", since) for i, (v, part) in parts)
        if len(self.graph.nodes) == since:  # an input, or a constant
            name = found.name
        else:
            self.graph.rename(found, name, since)
        return Value(self.graph, name, found.dtype, like.shape)

    def _value(self, node: fx.Node) -> Any:
        gm, module = self.walk.gm, called_module(self.walk.gm, node)
        if node.op == "get_attr":
            held = get_attribute(gm, str(node.target))
            return self.graph.value(held) if isinstance(held, Tensor) else None
        if isinstance(module, Quantize):
            return quantize_onnx(module, only_value(node, self.values, Value))
        if isinstance(module, Dequantize):
            read = self.values[node.all_input_nodes[0]]
            return mapped(partial(dequantize_onnx, module), read)
        if isinstance(module, IntegerOp):
            return self.form(self._call(node, module), module.op)
        if is_move(gm, node):
            return move(self.graph, self.walk, node, self.values, self._rows())
        raise has_no_form(self.walk, node, self.values, "ONNX")

    def _input(self, name: str, like: Like) -> Value:
        self.inputs.append(Value(self.graph, name, like.dtype, like.shape))
        return self.inputs[-1]

    def _rows(self) -> Value | None:
        """How many rows there are, int64 [1], where a batch has any size."""
        if self._batch is None and len(self.walk.runs) > 1:
            for x in self.inputs:
                if x.shape is not None and x.shape[:1] == (None,):
                    shape = self.graph.node("Shape", x, dtype=torch.int64)
                    self._batch = shape.gather(torch.tensor([0]))
                    break
        return self._batch

    def _call(self, node: fx.Node, module: IntegerOp) -> OnnxCall:
        read = leaves(node.args)
        codes = tuple(self.values[x] for x in read)
        grids = tuple(self.grids.get(x) for x in read)
        number = self.walk.of if module.op.allocates else self.walk.setting
        settings = map_nodes(
            node.kwargs, lambda n: self.values[n] if n in self.values else number(n)
        )
        like = self.walk.like(node)
        output = self.grids[node]
        assert output is not None  # an integer operator knows what its codes stand for
        rows = self._rows() if module.op.allocates else None
        return OnnxCall(
            self.graph, module.numbers, like.dtype, codes, settings, grids, output, like.shape, rows
        )

    def _give(self, node: fx.Node) -> None:
        """What is given twice, or comes in, is given under another name."""
        taken = {n.name for n in self.inputs}
        for part in leaves(map_nodes(node.args, lambda n: self.values.get(n, n))):
            if not isinstance(part, Value):
                continue
            name, count = part.name, 0
            while name in taken or name in self.graph.constants:
                count += 1
                name = f"{part.name}_{count}"
            taken.add(name)
            if name != part.name:
                self.graph.rename(part, name, len(self.graph.nodes))
            self.outputs.append(Value(self.graph, name, part.dtype, part.shape))


def quantize_onnx(module: Quantize, x: Value) -> Value:
    """Real numbers to codes, as the rounding has it; ONNX's own rounds to even."""
    q = module.qparams
    real = x.to(torch.float32)
    if module.rounding is FP32_RNE and _is_whole(q.scheme) and q.scale.dtype is torch.float32:
        zero = q.zero_point.to(q.scheme.dtype)
        return x.graph.node("QuantizeLinear", real, q.scale, zero, dtype=q.scheme.dtype)
    codes = of_values(module.rounding.nearest)(real / q.scale) + q.zero_point
    return codes.clamp(q.scheme.qmin, q.scheme.qmax).to(q.scheme.dtype)


def _is_whole(scheme: QuantScheme) -> bool:
    """Whether it has every code of its type, so that saturating is clamping."""
    ends = torch.iinfo(scheme.dtype)
    return (scheme.qmin, scheme.qmax) == (ends.min, ends.max)


def dequantize_onnx(module: Dequantize, codes: Value) -> Value:
    """Codes to real numbers."""
    q = module.qparams
    if q.scale.dtype is torch.float64:  # DequantizeLinear has none
        return (codes.to(torch.int32) - q.zero_point).double() * q.scale
    zero = q.zero_point.to(codes.dtype)
    return codes.graph.node(
        "DequantizeLinear", codes, q.scale, zero, dtype=torch.float32
    )
