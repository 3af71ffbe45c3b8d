"""The integer network as a .tflite file, whose integers LiteRT's kernels give.

    x ── quantize ── conv ── … ── dequantize ── y
    x ── QUANTIZE ── TRANSPOSE ── CONV_2D ── … ── TRANSPOSE ── DEQUANTIZE ── y

What goes in and comes out are the real tensors of the network, laid out as there. Every operator is
written by the form in its own record. Names stay: what node `conv` gives is the tensor `conv`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.export.flatbuffer import Written, model_of
from fxquant.export.litert import KERNELS, check
from fxquant.export.moves import move
from fxquant.export.walk import Like, Walk, has_no_form, only_value, taken_in, walk
from fxquant.files import ending_of, write_whole
from fxquant.forms.tflite import TfliteCall, TfliteGraph, Value
from fxquant.graph.edit import called_module, get_attribute, map_nodes
from fxquant.graph.nested import leaves, mapped
from fxquant.graph.place import describe
from fxquant.rounding import GEMMLOWP, Rounding
from fxquant.see.grid import grids_of
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.move import is_move


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
            name = str(node.target).lstrip("*")
            self.values[node] = taken_in(self.walk.of(node), name, self._input)
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
            return quantize_tflite(module, only_value(node, self.values, Value))
        if isinstance(module, Dequantize):
            read = self.values[node.all_input_nodes[0]]
            return mapped(partial(dequantize_tflite, module, self.rounding), read)
        if isinstance(module, IntegerOp):
            return self._operator(node, module)
        if is_move(gm, node):
            return move(self.graph, self.walk, node, self.values, None)
        raise has_no_form(self.walk, node, self.values, "LiteRT")

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
        settings = map_nodes(
            node.kwargs, lambda n: self.values[n] if n in self.values else self.walk.setting(n)
        )
        kernel = partial(module.op.kernel, module.numbers, module.scheme.dtype)
        numbers = {key: x for key, x in settings.items() if key not in module.op.indices}
        call = TfliteCall(
            self.graph, module.numbers, module.scheme.dtype, tuple(read), settings, output,
            self.walk.like(node).shape, partial(kernel, **numbers),
        )
        return module.op.tflite(call)

    def _input(self, name: str, like: Like) -> Value:
        found = self.graph.tensor(name, like.shape, like.dtype)
        self.inputs[name] = found
        self.graph.label(found, name)
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
        return plain.dequantized()
    return plain.as_reals(q.zero_point) * q.scale.float()
