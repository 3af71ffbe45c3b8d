"""The integer network as C99 for a small processor: no heap, no float, buffers planned by liveness.

    network.c    the operators, the numbers, and network_run, which calls them one after another
    network.h    the sizes of what goes in and comes out, and what the network needs
    main.c       pictures from stdin, what comes out to stdout

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
from fxquant.export.walk import Walk
from fxquant.graph.edit import called_module
from fxquant.graph.place import describe
from fxquant.ops.integer import Dequantize, IntegerOp, Quantize
from fxquant.ops.move import is_move
from fxquant.schemes import QParams


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


def c_files(walk: Walk) -> Files:
    """The network in C99, for one picture at a time.

    Raises:
        ExportError: an operator, a rounding or codes that have no C form: names the node.
    """
    gm = walk.gm
    modules = [called_module(gm, node) for node in gm.graph.nodes]
    schemes = {m.scheme for m in modules if isinstance(m, (IntegerOp, Quantize, Dequantize))}
    kinds = {scheme.dtype for scheme in schemes}
    if kinds not in ({torch.uint8}, {torch.int8}):
        raise ExportError(f"C code has codes of one type, of 8 bits; the network has {kinds}")
    roundings = {m.rounding.name for m in modules if isinstance(m, Quantize)}
    if len(roundings) != 1 or not roundings <= c_kernels.SHIFTS.keys():
        raise ExportError(
            f"C code rounds in integers; the network rounds as {', '.join(sorted(roundings))}.\n"
            f"What to do: QuantConfig(rounding=…), one of {', '.join(c_kernels.SHIFTS)}."
        )
    kind = "uint8_t" if kinds == {torch.uint8} else "int8_t"
    writer = Writer(walk, kind, roundings.pop())
    inputs, outputs = [], []
    for node in gm.graph.nodes:
        if node in walk.numbers or node.op in ("placeholder", "output"):
            continue
        module = called_module(gm, node)
        if isinstance(module, Quantize):
            inputs.append((node, module.qparams))
            like = walk.like(node)
            writer.values[node] = Buffer(math.prod(sizes_of(like)), -1, -1, f"x{len(inputs) - 1}")
        elif isinstance(module, Dequantize):
            outputs.append((node, module.qparams))
            _give(writer, node, len(outputs) - 1)
        elif isinstance(module, IntegerOp):
            form = FORMS.get(module.op)
            if form is None:
                raise ExportError(f"{describe(node)}: {module.op.name} has no C form")
            form(writer, node, module.numbers, walk.of(node))
        elif is_move(gm, node):
            move(writer, node)
        else:
            raise ExportError(f"{describe(node)} has no C form")
    ram = plan(writer.buffers)
    return Files(
        _source(writer, inputs, outputs, ram), _header(writer, inputs, outputs, ram), _MAIN,
        tuple(node.name for node, _ in inputs),
        tuple(node.all_input_nodes[0].name for node, _ in outputs), ram, writer.flash,
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


_MAIN = """\
#include "network.h"

#include <stdio.h>

int main(void)
{
    static network_code x[NETWORK_INPUT_0], y[NETWORK_OUTPUT_0];
    while (fread(x, 1, sizeof x, stdin) == sizeof x) {
        network_run(x, y);
        if (fwrite(y, 1, sizeof y, stdout) != sizeof y)
            return 1;
    }
    return 0;
}
"""
