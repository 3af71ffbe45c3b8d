"""A network in ONNX's operators as a protobuf, and that in a file.

    OnnxGraph    nodes, constants            what this packs
    protobuf     the same by ONNX's schema; each node says which node and module it comes from
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.export.walk import Like, Varying, Walk, merged
from fxquant.extras import needs_extra
from fxquant.files import writing
from fxquant.forms.onnx import Node, OnnxGraph, Value
from fxquant.graph.edit import called_module
from fxquant.graph.nested import leaves
from fxquant.graph.place import place_of
from fxquant.sites.integer import Quantize

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 21, 10
_FILE_LIMIT = 2**31 - 2**26  # of weights: a protobuf, nodes included, is smaller than 2 GB
_BATCH = "batch"


class Written(NamedTuple):
    """A network written down: its graph, what goes in and comes out, and what each node gives."""

    walk: Walk
    graph: OnnxGraph
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: dict[fx.Node, Any]


def model_of(written: Written, name: str) -> onnx.ModelProto:
    """The protobuf of a network written down, checked."""
    with needs_extra("onnx"):
        import onnx
        from onnx import helper
    import fxquant

    graph, walk = written.graph, written.walk
    modules = {node.name: place_of(node).module for node in walk.gm.graph.nodes}
    nodes = [_node_proto(node, modules[node.place]) for node in graph.nodes]
    used = {name for node in graph.nodes for name in node.inputs}
    used |= {value.name for value in written.outputs}
    constants = [
        _tensor_proto(t, n, n in graph.nibbles) for n, t in graph.constants.items() if n in used
    ]
    inputs = [
        _info(value, [_BATCH if n is None else n for n in value.shape or ()])
        for value in written.inputs
    ]
    outputs = [
        _info(value, sizes) for value, sizes in zip(written.outputs, _given(walk), strict=True)
    ]
    inside = {name for node in graph.nodes for name in node.outputs}
    inside -= {value.name for value in written.outputs}
    named = {v.name: v for v in leaves(written.values) if isinstance(v, Value)}
    between = [_info(v, v.shape) for n, v in named.items() if n in inside and v.shape is not None]
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, constants, value_info=between),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fxquant",
        producer_version=fxquant.__version__,
    )
    helper.set_model_props(model, {"fxquant.rounding": _rounding(walk)})
    if not _is_large(model):
        onnx.checker.check_model(model, full_check=True)
    return model


def _rounding(walk: Walk) -> str:
    modules = (called_module(walk.gm, node) for node in walk.gm.graph.nodes)
    return ", ".join(sorted({m.rounding.name for m in modules if isinstance(m, Quantize)}))


def _node_proto(node: Node, module: str) -> onnx.NodeProto:
    from onnx import helper

    attributes: dict[str, Any] = {
        key: _element_type(value) if isinstance(value, torch.dtype) else value
        for key, value in node.attributes.items()
    }
    proto = helper.make_node(
        node.operator, node.inputs, node.outputs, f"{node.operator}:{node.outputs[0]}", **attributes
    )
    for key, value in (("fxquant.node", node.place), ("fxquant.module", module)):
        if value:
            proto.metadata_props.add(key=key, value=value)
    return proto


def _tensor_proto(tensor: Tensor, name: str, nibbles: bool) -> onnx.TensorProto:
    """`nibbles`: whether it is stored in 4 bits."""
    from onnx import TensorProto, helper, numpy_helper

    array = tensor.numpy()
    if nibbles:
        short = TensorProto.INT4 if tensor.dtype.is_signed else TensorProto.UINT4
        array = array.astype(helper.tensor_dtype_to_np_dtype(short))
    return numpy_helper.from_array(array, name)


def _given(walk: Walk) -> list[list[int | str | None]]:
    """The sizes of what comes out: the number of rows by name, None for what follows it."""
    (end,) = (node for node in walk.gm.graph.nodes if node.op == "output")
    runs = [[x.shape for x in leaves(run[end]) if isinstance(x, Like)] for run in walk.runs]
    return [
        [_BATCH if n is None else None if isinstance(n, Varying) else n for n in merged(shapes)]
        for shapes in zip(*runs, strict=True)
    ]


def _info(value: Value, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(value.name, _element_type(value.dtype), shape)


def _element_type(dtype: torch.dtype) -> int:
    from onnx import helper

    try:
        array = torch.empty(0, dtype=dtype).numpy()
    except TypeError as error:
        raise ExportError(
            f"the network takes or gives a tensor of {dtype}, which NumPy does not have, nor do "
            "engines that are handed its arrays.\nWhat to do: export it with example_inputs of "
            "torch.float32; codes are the same."
        ) from error
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _is_large(model: onnx.ModelProto) -> bool:
    """Whether weights have to lie beside the file. What is too large cannot even tell its size."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) >= _FILE_LIMIT


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model whole or not at all, large ones with their weights in a file beside it."""
    import onnx

    path = Path(path)
    large = _is_large(model)
    with writing(path), tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as folder:
        part, data = Path(folder) / path.name, f"{path.name}.data"
        if large:
            onnx.save_model(model, part, save_as_external_data=True, location=data)
            onnx.checker.check_model(part, full_check=True)
            os.replace(Path(folder) / data, path.with_name(data))
        else:
            onnx.save_model(model, part)
        os.replace(part, path)
