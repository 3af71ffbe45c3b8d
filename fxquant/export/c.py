"""The integer network as C99 for a small processor: no heap, no float, buffers planned by liveness.

    network.c    the operators, the numbers, and network_run, which calls them one after another
    network.h    the sizes of what goes in and comes out, and what the network needs
    main.c       pictures from stdin, what comes out to stdout; of several, one after the other

What goes in and comes out are codes; what they stand for is in the header. One picture at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.export import c_kernels
from fxquant.export.c_forms import FORMS, move, sizes_of
from fxquant.export.c_writer import Buffer, Writer, plan
from fxquant.export.moves import apply_to
from fxquant.export.walk import Like, Walk
from fxquant.graph.edit import called_module
from fxquant.graph.nested import leaves
from fxquant.graph.place import describe
from fxquant.schemes import QParams
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.move import is_move


class Files(NamedTuple):
    """What is written, the nodes whose codes go in and come out, and how many bytes the network
    needs: of memory beside the stack, and of numbers that do not change.
    """

    source: str
    header: str
    main: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ram: int
    flash: int


def c_files(walk: Walk, of_two: Walk) -> Files:
    """The network in C99, for one picture at a time: it was run on one, and on two.

    Raises:
        ExportError: an operator, a rounding or codes that have no C form, or pictures that have to
            do with each other: names the node.
    """
    gm, given = walk.gm, _given(walk.gm)
    writer = Writer(walk, *_kind_and_rounding(gm))
    inputs: list[tuple[fx.Node, QParams]] = []
    for node in gm.graph.nodes:
        if node in walk.numbers or node.op in ("placeholder", "output"):
            continue
        module = called_module(gm, node)
        _need_apart(walk, of_two, node)
        if isinstance(module, Quantize):
            inputs.append((node, module.qparams))
            like = walk.like(node)
            writer.values[node] = Buffer(math.prod(sizes_of(like)), -1, -1, f"x{len(inputs) - 1}")
        elif isinstance(module, Dequantize):
            if node in given:  # else what was kept in float reads it, and is refused
                _give(writer, node, given.index(node))
        elif isinstance(module, IntegerOp):
            form = FORMS.get(module.op)
            if form is None:
                raise ExportError(f"{describe(node)}: {module.op.name} has no C form")
            form(writer, node, module.numbers, walk.of(node))
        elif is_move(gm, node):
            _need_rows_kept(walk, of_two, node)
            # what real numbers go through before they are codes is not here
            if any(x in writer.values or x in writer.parts for x in node.all_input_nodes):
                move(writer, node)
        elif node.op != "get_attr":
            raise ExportError(f"{describe(node)} has no C form")
    outputs = [(node, _qparams_of(gm, node)) for node in given]
    ram = plan(writer.buffers)
    return Files(
        _source(writer, inputs, outputs, ram), _header(writer, inputs, outputs, ram),
        _main(len(inputs), len(outputs)),
        tuple(node.name for node, _ in inputs),
        tuple(node.all_input_nodes[0].name for node, _ in outputs), ram, writer.flash,
    )


def _given(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes that are given, each once, in order."""
    (end,) = (node for node in gm.graph.nodes if node.op == "output")
    given = [*dict.fromkeys(node for node in leaves(end.args) if isinstance(node, fx.Node))]
    for node in given:
        if not isinstance(called_module(gm, node), Dequantize):
            raise ExportError(f"{describe(node)} is given as it is: C code gives codes")
    return given


def _kind_and_rounding(gm: fx.GraphModule) -> tuple[str, str]:
    """The type of all codes in C, and the name of the one rounding."""
    modules = [called_module(gm, node) for node in gm.graph.nodes]
    schemes = {m.scheme for m in modules if isinstance(m, (IntegerOp, Quantize, Dequantize))}
    kinds = {scheme.dtype for scheme in schemes}
    if kinds not in ({torch.uint8}, {torch.int8}):
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ExportError(
            f"C code has codes of one type, of 8 bits; the network has {names}.\n"
            "What to do: QuantConfig(widen=False), and one scheme for all activations."
        )
    roundings = {m.rounding.name for m in modules if isinstance(m, Quantize)}
    if not roundings:
        raise ExportError("C code is given codes of real numbers, and the network takes none")
    if len(roundings) != 1 or not roundings <= c_kernels.SHIFTS.keys():
        raise ExportError(
            f"C code rounds in integers; the network rounds as {', '.join(sorted(roundings))}.\n"
            f"What to do: QuantConfig(rounding=…), one of {', '.join(c_kernels.SHIFTS)}."
        )
    return "uint8_t" if kinds == {torch.uint8} else "int8_t", roundings.pop()


def _qparams_of(gm: fx.GraphModule, end: fx.Node) -> QParams:
    module: Any = called_module(gm, end)
    found: QParams = module.qparams
    return found


def _need_apart(one: Walk, two: Walk, node: fx.Node) -> None:
    """Refuse a node that gives of two pictures anything else than what it gives of each."""
    if node.op == "get_attr":
        return
    for of_one, of_two in zip(leaves(one.of(node)), leaves(two.of(node)), strict=False):
        if not isinstance(of_one, Like):
            continue
        if of_one.shape[:1] != (1,) or of_two.shape != (2, *of_one.shape[1:]):
            raise ExportError(
                f"{describe(node)} gives {list(of_one.shape)} of one picture, and "
                f"{list(of_two.shape)} of two: C code has one picture at a time, along the first "
                "dimension"
            )


def _need_rows_kept(one: Walk, two: Walk, node: fx.Node) -> None:
    """Refuse a move that moves elements from one picture to another."""
    source: Any = leaves(node.args)[0]
    like = one.of(source)
    tensors = [x for x in node.all_input_nodes if isinstance(one.of(x), Like)]
    if not isinstance(like, Like) or len(tensors) > 1:
        return  # a part of what was split up, or what has no C form
    count = math.prod(sizes_of(like))
    both = torch.arange(2 * count).reshape(2, *sizes_of(like)[1:])
    first, found = (
        leaves(apply_to(walk, node, {source: places}))
        for walk, places in ((one, both[:1]), (two, both))
    )
    pairs = zip(first, found, strict=True)
    if not all(torch.equal(torch.cat([x, x + count]), y) for x, y in pairs):
        raise ExportError(
            f"{describe(node)} moves from picture to picture: C code has one picture at a time"
        )


def _give(w: Writer, node: fx.Node, number: int) -> None:
    source = w.read(node.all_input_nodes[0])
    w.call("memcpy", f"y{number}", source, source.elements)
    w.values[node] = source


def _source(w: Writer, inputs: Sequence[Any], outputs: Sequence[Any], ram: int) -> str:
    kernels = list(w.kernels.values())
    used = "\n".join(kernels)
    if "shifted(" in used:
        kernels.insert(0, c_kernels.SHIFTS[w.rounding])
    if "divided(" in used:
        kernels.insert(0, c_kernels.DIVISIONS[w.rounding])
    for name in ("clamped", "half_up", "floor_shift"):  # a compiler warns of what is not called
        if any(f"{name}(" in kernel for kernel in kernels):
            kernels.insert(0, c_kernels.COMMON[name])
    signature = _signature(inputs, outputs)
    calls = "\n".join(f"    {step()}" for step in w.steps)
    arena = f"static code arena[{ram}];\n" if ram else ""
    return "\n".join([
        '#include "network.h"\n\n#include <string.h>\n',
        f"typedef {w.code} code;\n", *kernels, *w.tables, arena, f"{signature}\n{{\n{calls}\n}}\n",
    ])


def _signature(inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    given = [f"const network_code x{i}[]" for i in range(len(inputs))]
    given += [f"network_code y{i}[]" for i in range(len(outputs))]
    return f"void network_run({', '.join(given)})"


def _header(w: Writer, inputs: Sequence[Any], outputs: Sequence[Any], ram: int) -> str:
    lines = ["#ifndef NETWORK_H\n#define NETWORK_H\n\n#include <stdint.h>\n"]
    lines.append(f"typedef {w.code} network_code;\n")
    for name, letter, ends in (("INPUT", "x", inputs), ("OUTPUT", "y", outputs)):
        for i, (node, q) in enumerate(ends):
            shape = " x ".join(map(str, sizes_of(w.walk.like(node))[1:]))
            elements = w.values[node].elements
            lines.append(f"/* {letter}{i}: {shape} codes q, which stand for {_real(q)} */")
            lines.append(f"#define NETWORK_{name}_{i} {elements}\n")
    lines.append("/* bytes beside the stack, and of numbers that do not change */")
    lines.append(f"#define NETWORK_RAM {ram}\n#define NETWORK_FLASH {w.flash}\n")
    lines.append(f"{_signature(inputs, outputs)};\n\n#endif\n")
    return "\n".join(lines)


def _real(q: QParams) -> str:
    return f"(q - {int(q.zero_point)}) * {float(q.scale):.9g}"


def _main(inputs: int, outputs: int) -> str:
    x, y = ([f"{letter}{i}" for i in range(n)] for letter, n in (("x", inputs), ("y", outputs)))
    sizes = [f"x{i}[NETWORK_INPUT_{i}]" for i in range(inputs)]
    sizes += [f"y{i}[NETWORK_OUTPUT_{i}]" for i in range(outputs)]
    read = " && ".join(f"fread({name}, 1, sizeof {name}, stdin) == sizeof {name}" for name in x)
    fail = " || ".join(f"fwrite({name}, 1, sizeof {name}, stdout) != sizeof {name}" for name in y)
    return _MAIN.format(sizes=", ".join(sizes), read=read, fail=fail, run=", ".join(x + y))


_MAIN = """\
#include "network.h"

#include <stdio.h>

int main(void)
{{
    static network_code {sizes};
    while ({read}) {{
        network_run({run});
        if ({fail})
            return 1;
    }}
    return 0;
}}
"""
