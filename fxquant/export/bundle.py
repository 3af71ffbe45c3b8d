"""A golden model for hardware: every integer of a network, and what its nodes give of some inputs.

    network.json            nodes in order: operator, settings, what it reads, what its codes mean
    network.schema.json     the schema of that file
    numbers.safetensors     weights, biases, multipliers, shifts, zero points, tables
    golden.safetensors      inputs, and the integers of every node for them
    c/                      the network in C99 (when asked for), with inputs and outputs to compare
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

import fxquant
from fxquant.errors import ConfigError, ExportError
from fxquant.export.bundle_schema import SCHEMA, VERSION
from fxquant.export.c import Files, c_files
from fxquant.export.count import count_node
from fxquant.export.moves import apply_to
from fxquant.export.walk import Like, Walk, values_of, walk
from fxquant.extras import needs_extra
from fxquant.files import need_path, writing
from fxquant.graph.edit import called_module, get_attribute
from fxquant.graph.nested import leaves
from fxquant.graph.place import describe, place_of
from fxquant.rounding import Rounding
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.move import is_move


def export_bundle(
    quantized: fx.GraphModule,
    folder: str | os.PathLike[str],
    golden_inputs: Sequence[Any] | Tensor,
    c: bool = False,
) -> None:
    """Write a converted network as numbers and a schedule, with inputs and what each node gives.

    Args:
        quantized: what `convert` gave.
        folder: a new folder, or one that such a bundle replaces; it is written whole or not at all.
        golden_inputs: the arguments of one call, or its only tensor. The more rows, the more
            is compared; the integers of every node are kept for all of them.
        c: whether the network is written in C99, too: integers only, no heap, buffers planned.

    Raises:
        StageError: `quantized` is no converted network.
        ConfigError: the folder holds something else, or the inputs no numbers.
        ExportError: an operator has no C form, or computes in float.
        WriteError: the folder cannot be written.
        MissingExtraError: the extra `save` is not installed.
    """
    with needs_extra("save"):
        import safetensors.torch
    need_path(folder)
    folder = Path(folder)
    if folder.exists() and not (folder / "network.json").is_file():
        raise ConfigError(f"'{folder}' exists, and is no bundle.\nWhat to do: name a new folder.")
    walked = walk(quantized, golden_inputs, 1)
    given = (golden_inputs,) if isinstance(golden_inputs, Tensor) else tuple(golden_inputs)
    if any(x.is_meta for x in leaves(given) if isinstance(x, Tensor)):
        raise ConfigError(
            "golden_inputs are computed with, and on device 'meta' there are no numbers.\n"
            "What to do: hand it a batch of your data."
        )
    found, _ = values_of(quantized, given)
    description, numbers = _description(walked)
    golden = {f"input.{i}": x for i, x in enumerate(leaves(given)) if isinstance(x, Tensor)}
    golden |= {f"node.{name}": value.contiguous() for name, value in found.items()}
    with writing(folder), tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}."
    ) as place:
        part = Path(place) / folder.name
        part.mkdir()
        text = json.dumps(description, indent=1, allow_nan=False) + "\n"
        (part / "network.json").write_text(text)
        (part / "network.schema.json").write_text(json.dumps(SCHEMA, indent=1) + "\n")
        for name, tensors in (("numbers", numbers), ("golden", golden)):
            copies = {key: value.detach().clone() for key, value in tensors.items()}
            safetensors.torch.save_file(copies, part / f"{name}.safetensors")
        if c:
            _write_c(part / "c", c_files(walked, walk(quantized, given, 2)), found)
        _replace(folder, part, Path(place) / "before")


def _replace(folder: Path, new: Path, before: Path) -> None:
    """Move a new folder into the place of one that is moved away, and comes back if that fails."""
    if folder.exists():  # only an empty folder can be written over
        os.replace(folder, before)
    try:
        os.replace(new, folder)
    except OSError:
        if before.exists():
            os.replace(before, folder)
        raise


def _write_c(folder: Path, files: Files, found: dict[str, Tensor]) -> None:
    folder.mkdir()
    for name, text in (("network.c", files.source), ("network.h", files.header),
                       ("main.c", files.main)):
        (folder / name).write_text(text)
    for letter, names in (("x", files.inputs), ("y", files.outputs)):
        for i, name in enumerate(names):
            codes = found[name].contiguous().numpy().tobytes()
            (folder / f"golden_{letter}{i}.bin").write_bytes(codes)


def _description(walked: Walk) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON, and the tensors that it names."""
    gm, numbers, nodes = walked.gm, dict[str, Tensor](), []
    for node in gm.graph.nodes:
        if node in walked.numbers or node.op == "output":
            continue
        nodes.append(_node(walked, node, numbers))
    (end,) = (node for node in gm.graph.nodes if node.op == "output")
    outputs = [n.name for n in leaves(end.args) if isinstance(n, fx.Node)]
    return {
        "format": VERSION,
        "fxquant": fxquant.__version__,
        "network": type(gm).__name__,
        "nodes": nodes,
        "outputs": outputs,
    }, numbers


def _node(walked: Walk, node: fx.Node, numbers: dict[str, Tensor]) -> dict[str, Any]:
    module = called_module(walked.gm, node)
    entry: dict[str, Any] = {
        "name": node.name,
        "module": place_of(node).module,
        "reads": [x.name for x in leaves(node.args) if isinstance(x, fx.Node)],
        "gives": _shapes(walked.of(node)),
    }
    if node.op == "placeholder":
        return entry | {"kind": "input"}
    if node.op == "get_attr":
        value = get_attribute(walked.gm, str(node.target))
        if isinstance(value, Tensor):
            numbers[node.name] = value
        return entry | {"kind": "constant"}
    if isinstance(module, (Quantize, Dequantize)):
        return entry | _boundary(module)
    if isinstance(module, IntegerOp):
        return entry | _operator(walked, node, module, numbers)
    if is_move(walked.gm, node):
        return entry | {"kind": "move", "places": _places(walked, node, numbers)}
    raise ExportError(
        f"{describe(node)} computes in float, between integers: a bundle holds integers.\n"
        "What to do: convert the network without keep_float."
    )


def _boundary(module: Quantize | Dequantize) -> dict[str, Any]:
    """Where real numbers become codes, or codes real numbers."""
    codes = {"scheme": str(module.scheme), "scale": float(module.scale),
             "zero_point": int(module.zero_point)}
    if isinstance(module, Quantize):
        return {"kind": "quantize", "rounding": module.rounding.name, "codes": codes}
    return {"kind": "dequantize", "rounding": None, "codes": codes}


def _operator(
    walked: Walk, node: fx.Node, module: IntegerOp, numbers: dict[str, Tensor]
) -> dict[str, Any]:
    fields = {}
    rounding = None
    for name, value in module.numbers._asdict().items():  # type: ignore[attr-defined]
        if isinstance(value, Rounding):
            rounding = value.name
        else:
            numbers[f"{node.name}.{name}"] = value
            fields[name] = f"{node.name}.{name}"
    codes = {"scheme": str(module.scheme), "scale": module.facts.scale,
             "zero_point": module.facts.zero_point}
    return {
        "kind": "operator", "operator": module.op.name, "text": module.text, "codes": codes,
        "rounding": rounding, "settings": _plain(dict(node.kwargs)), "numbers": fields,
        "counts": count_node(walked, node)._asdict(),
    }


def _places(walked: Walk, node: fx.Node, numbers: dict[str, Tensor]) -> list[str]:
    """Which element of what it reads each element is: int32, one tensor for each result."""
    source: Any = node.args[0]
    like = walked.of(source)
    if not isinstance(like, Like):
        return []  # one of several parts, by its number: the node before says which places
    shape = [size or 1 for size in like.shape]
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
    names = []
    for i, part in enumerate(leaves(apply_to(walked, node, {source: places}))):
        numbers[f"{node.name}.places_{i}"] = part.contiguous()
        names.append(f"{node.name}.places_{i}")
    return names


def _shapes(like: Any) -> Any:
    """Shape and type of each tensor that a node gives, of one row."""
    return [
        {"shape": list(part.shape), "type": str(part.dtype).removeprefix("torch.")}
        for part in leaves(like)
        if isinstance(part, (Like, Tensor))
    ]


def _plain(value: Any) -> Any:
    """Settings as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
