"""The integer network as C99 for a small processor: no heap, no float, buffers planned by liveness.

    network.c    the operators, the numbers, and network_run, which calls them one after another
    network.h    the sizes of what goes in and comes out, and what the network needs
    main.c       pictures from stdin, what comes out to stdout

What goes in and comes out are codes; what they stand for is in the header. One picture at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.export import c_kernels
from fxquant.export.moves import apply_to
from fxquant.export.walk import Like, Walk
from fxquant.graph.edit import called_module, nodes_in
from fxquant.graph.nested import leaves
from fxquant.graph.place import describe
from fxquant.ops import op_named
from fxquant.ops.avg_pool import window_divisors
from fxquant.ops.integer import Dequantize, IntegerOp, Quantize
from fxquant.ops.move import is_move
from fxquant.ops.spec import OpSpec, per_dimension
from fxquant.ops.windows import windows_of
from fxquant.schemes import QParams

_LINE = 16  # numbers in a line of a table


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


@dataclass
class Buffer:
    """Where a value lies: in the arena, or where the caller says (`place` is an expression then).
    `first` and `last` are the steps that write it and read it last.
    """

    elements: int
    first: int
    last: int
    place: str = ""
    offset: int = 0


@dataclass
class _Writer:
    """What has been written so far."""

    walk: Walk
    code: str
    rounding: str
    kernels: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    steps: list[Callable[[], str]] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    values: dict[fx.Node, Buffer] = field(default_factory=dict)
    parts: dict[fx.Node, tuple[fx.Node, Any]] = field(default_factory=dict)
    flash: int = 0

    def kernel(self, *texts: str) -> None:
        """The network needs these functions, in this order."""
        for text in texts:
            self.kernels.setdefault(text, text)

    def table(self, node: fx.Node, what: str, kind: str, values: Any) -> str:
        """The name of a table of constants."""
        found = torch.as_tensor(values).flatten().tolist()
        size = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4, "int64_t": 8}[kind]
        self.flash += size * len(found)
        name = f"{node.name}_{what}"
        lines = [
            "    " + ", ".join(map(str, found[i : i + _LINE]))
            for i in range(0, len(found), _LINE)
        ]
        self.tables.append(
            f"static const {kind} {name}[{len(found)}] = {{\n" + ",\n".join(lines) + "\n};\n"
        )
        return name

    def record(self, node: fx.Node, kind: str, values: dict[str, Any]) -> str:
        """The name of a record of settings."""
        name = f"{node.name}_settings"
        text = ", ".join(f".{key} = {_c(value)}" for key, value in values.items())
        self.tables.append(f"static const {kind} {name} = {{{text}}};\n")
        self.flash += 4 * len(values)
        return name

    def output(self, node: fx.Node, elements: int) -> Buffer:
        """Memory for what `node` gives."""
        found = Buffer(elements, len(self.steps), len(self.steps))
        self.buffers.append(found)
        self.values[node] = found
        return found

    def read(self, node: fx.Node) -> Buffer:
        """What a node gave, which the next step reads."""
        found = self.values[node]
        found.last = len(self.steps)
        return found

    def call(self, function: str, *arguments: object) -> None:
        """The next step. Where buffers lie is not known yet."""
        self.steps.append(lambda: f"{function}({', '.join(_place(a) for a in arguments)});")


def _c(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(map(str, value)) + "}"
    return str(int(value))


def _place(argument: object) -> str:
    if isinstance(argument, Buffer):
        return argument.place or f"arena + {argument.offset}"
    return str(argument)


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
    writer = _Writer(walk, kind, roundings.pop())
    inputs, outputs = [], []
    for node in gm.graph.nodes:
        if node in walk.numbers or node.op in ("placeholder", "output"):
            continue
        module = called_module(gm, node)
        if isinstance(module, Quantize):
            inputs.append((node, module.qparams))
            like = walk.like(node)
            writer.values[node] = Buffer(math.prod(_sizes(like)), -1, -1, f"x{len(inputs) - 1}")
        elif isinstance(module, Dequantize):
            outputs.append((node, module.qparams))
            _give(writer, node, len(outputs) - 1)
        elif isinstance(module, IntegerOp):
            form = _FORMS.get(module.op)
            if form is None:
                raise ExportError(f"{describe(node)}: {module.op.name} has no C form")
            form(writer, node, module.numbers, walk.of(node))
        elif is_move(gm, node):
            _move(writer, node)
        else:
            raise ExportError(f"{describe(node)} has no C form")
    ram = _plan(writer.buffers)
    return Files(
        _source(writer, inputs, outputs, ram), _header(writer, inputs, outputs, ram), _MAIN,
        tuple(node.name for node, _ in inputs),
        tuple(node.all_input_nodes[0].name for node, _ in outputs), ram, writer.flash,
    )


def _sizes(like: Like) -> tuple[int, ...]:
    return tuple(size for size in like.shape if size is not None)


def _give(w: _Writer, node: fx.Node, number: int) -> None:
    source = w.read(node.all_input_nodes[0])
    w.call("memcpy", f"y{number}", source, source.elements)
    w.values[node] = source


def _plan(buffers: Sequence[Buffer]) -> int:
    """Offsets in one arena, the largest first, each as low as those beside it in time let it; how
    large the arena is.
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.elements):
        beside = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        offset = 0
        for other in sorted(beside, key=lambda b: b.offset):
            if offset + buffer.elements <= other.offset:
                break
            offset = max(offset, other.offset + other.elements)
        buffer.offset = offset
        placed.append(buffer)
    return max((b.offset + b.elements for b in buffers), default=0)


# ------------------------------------------------------------------------ texts


def _source(w: _Writer, inputs: Sequence[Any], outputs: Sequence[Any], ram: int) -> str:
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


def _header(w: _Writer, inputs: Sequence[Any], outputs: Sequence[Any], ram: int) -> str:
    lines = ["#ifndef NETWORK_H\n#define NETWORK_H\n\n#include <stdint.h>\n"]
    lines.append(f"typedef {w.code} network_code;\n")
    for name, letter, ends in (("INPUT", "x", inputs), ("OUTPUT", "y", outputs)):
        for i, (node, q) in enumerate(ends):
            shape = " x ".join(map(str, _sizes(w.walk.like(node))[1:]))
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


# ------------------------------------------------------------------------ operators


def _input(node: fx.Node) -> fx.Node:
    """What a node reads first."""
    found: fx.Node = leaves(node.args)[0]
    return found


def _limits(n: Any, node: fx.Node) -> dict[str, Any]:
    if n.low.numel() > 1 or n.high.numel() > 1:
        raise ExportError(f"{describe(node)} is clamped channel by channel, which has no C form")
    return {"y_zero": n.y_zero, "low": n.low, "high": n.high}


def _picture(shape: Sequence[int]) -> tuple[int, int, int]:
    """[C, H, W] of one picture of two dimensions or fewer."""
    channels, *places = shape[1:]
    if len(places) > 2:
        raise ExportError("pictures of three dimensions have no C form")
    height, width = [1] * (2 - len(places)) + places
    return channels, height, width


def _two(setting: Any, dims: int, missing: int) -> tuple[int, int]:
    """A setting for both dimensions; that of the one that a sequence lacks is `missing`."""
    values = per_dimension(setting, dims)
    return (missing, values[0]) if dims == 1 else (values[0], values[1])


def _convolution(dims: int) -> Callable[..., None]:
    def form(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
        source = _input(node)
        shape, s = _sizes(w.walk.like(source)), dict[str, Any](node.kwargs)
        channels, height, width = _picture(shape)
        outputs, rows, columns = _picture(_sizes(like))
        if s.get("padding_mode", "zeros") != "zeros":
            raise ExportError(f"{describe(node)} pads with copies, which has no C form")
        kernel = _two(tuple(n.weight.shape[2:]), dims, 1)
        dilation = _two(s["dilation"], dims, 1)
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding: Any = s["padding"]
        if padding in ("same", "valid"):
            top, left = (span // 2 if padding == "same" else 0 for span in spans)
        else:
            top, left = _two(padding, dims, 0)
        stride = _two(s["stride"], dims, 1)
        settings = w.record(node, "convolution", {
            "channels": channels, "height": height, "width": width, "outputs": outputs,
            "rows": rows, "columns": columns, "kernel_h": kernel[0], "kernel_w": kernel[1],
            "stride_h": stride[0], "stride_w": stride[1], "top": top, "left": left,
            "dilation_h": dilation[0], "dilation_w": dilation[1], "groups": s["groups"],
            "x_zero": n.x_zero, **_limits(n, node),
        })
        _layer(w, node, n, settings, w.read(source), like)

    return form


def _linear(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    """A convolution of one row of pictures, each as large as the kernel."""
    source = _input(node)
    shape = _sizes(w.walk.like(source))
    if math.prod(shape[:-1]) != 1:
        raise ExportError(f"{describe(node)} reads several rows, which has no C form")
    settings = w.record(node, "convolution", {
        "channels": shape[-1], "height": 1, "width": 1, "outputs": len(n.weight), "rows": 1,
        "columns": 1, "kernel_h": 1, "kernel_w": 1, "stride_h": 1, "stride_w": 1, "top": 0,
        "left": 0, "dilation_h": 1, "dilation_w": 1, "groups": 1, "x_zero": n.x_zero,
        **_limits(n, node),
    })
    _layer(w, node, n, settings, w.read(source), like)


def _layer(
    w: _Writer, node: fx.Node, n: Any, settings: str, source: Buffer, like: Like
) -> None:
    w.kernel(c_kernels.CONVOLVE)
    tables = [
        w.table(node, name, kind, getattr(n, name))
        for name, kind in (("weight", "int8_t"), ("bias", "int32_t"), ("multiplier", "int32_t"),
                           ("shift", "uint8_t"))
    ]
    y = w.output(node, math.prod(_sizes(like)))
    w.call("convolve", f"&{settings}", source, *tables, y)


def _broadcast(shape: Sequence[int], out: Sequence[int]) -> list[int]:
    """The steps of an operand along the four dimensions of the result."""
    if len(out) > 5 or (len(out) == 5 and out[0] != 1):
        raise ExportError("values of five dimensions have no C form")
    full = [1] * (len(out) - len(shape)) + list(shape)
    steps, step = [], 1
    for size in reversed(full):
        steps.append(0 if size == 1 else step)
        step *= size
    return ([0] * 4 + steps[::-1])[-4:]


def _four(shape: Sequence[int]) -> list[int]:
    return ([1] * 4 + list(shape))[-4:]


def _add(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    sources, out = leaves(node.args), _sizes(like)
    steps = [_broadcast(_sizes(w.walk.like(source)), out) for source in sources]
    in_steps = n.shift.dim() > 0
    w.kernel(c_kernels.STEPS, c_kernels.ADD_IN_STEPS if in_steps else c_kernels.ADD)
    settings = {"terms": len(sources), "elements": math.prod(out), "size": _four(out)}
    shift = {} if in_steps else {"shift": n.shift}
    record = w.record(node, "addition", {**settings, **shift, **_limits(n, node)})
    flat = ", ".join(_c(step) for step in steps)
    w.tables.append(f"static const int {node.name}_step[][4] = {{{flat}}};\n")
    tables = [w.table(node, "zero", "int32_t", n.x_zero)]
    if in_steps:
        tables += [w.table(node, "multiplier", "int64_t", n.multiplier),
                   w.table(node, "shift", "uint8_t", n.shift)]
    else:
        tables.append(w.table(node, "multiplier", "int32_t", n.multiplier))
    read = [w.read(source) for source in sources]
    y = w.output(node, math.prod(out))
    w.steps.append(lambda: (
        f"add(&{record}, (const code *const[]){{{', '.join(map(_place, read))}}}, "
        f"{node.name}_step, {', '.join(tables)}, {_place(y)});"
    ))


def _multiply(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    (a, b), out = leaves(node.args), _sizes(like)
    w.kernel(c_kernels.STEPS, c_kernels.MULTIPLY)
    record = w.record(node, "product", {
        "elements": math.prod(out), "size": _four(out),
        "step_a": _broadcast(_sizes(w.walk.like(a)), out),
        "step_b": _broadcast(_sizes(w.walk.like(b)), out),
        "a_zero": n.a_zero, "b_zero": n.b_zero, "multiplier": n.multiplier, "shift": n.shift,
        **_limits(n, node),
    })
    left, right = w.read(a), w.read(b)
    w.call("multiply", f"&{record}", left, right, w.output(node, math.prod(out)))


def _cat(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    out, axis = _sizes(like), node.kwargs["dim"]
    assert isinstance(axis, int)  # as the reader of the operator has made sure
    blocks, to = math.prod(out[:axis]), math.prod(out[axis:])
    w.kernel(c_kernels.RESCALE)
    sources = [w.read(source) for source in leaves(node.args)]
    y = w.output(node, math.prod(out))
    at = 0
    for i, source in enumerate(sources):
        source.last = max(source.last, len(w.steps))
        name = f"{node.name}_{i}_settings"
        values = {
            "blocks": blocks, "from": source.elements // blocks, "to": to, "at": at,
            "x_zero": n.x_zero[i], "multiplier": n.multiplier[i], "shift": n.shift[i],
            **_limits(n, node),
        }
        text = ", ".join(f".{key} = {_c(value)}" for key, value in values.items())
        w.tables.append(f"static const rescaling {name} = {{{text}}};\n")
        w.flash += 4 * len(values)
        w.call("rescale", f"&{name}", source, y)
        at += source.elements // blocks
    y.last = len(w.steps) - 1


def _batch_norm(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    source, out = _input(node), _sizes(like)
    w.kernel(c_kernels.SCALE_AND_SHIFT)
    channels = len(n.multiplier) if n.multiplier.dim() else 1
    record = w.record(node, "scaling", {
        "channels": channels, "elements": math.prod(out) // channels, "x_zero": n.x_zero,
        **_limits(n, node),
    })
    tables = [
        w.table(node, name, kind, getattr(n, name))
        for name, kind in (("multiplier", "int32_t"), ("offset", "int64_t"), ("shift", "uint8_t"))
    ]
    x = w.read(source)
    w.call("scale_and_shift", f"&{record}", x, *tables, w.output(node, math.prod(out)))


def _windows(w: _Writer, node: fx.Node, like: Like, dims: int, zero: Any) -> str:
    windows = windows_of(node.kwargs, dims)
    channels, height, width = _picture(_sizes(w.walk.like(_input(node))))
    _, rows, columns = _picture(_sizes(like))
    kernel, step = _two(windows.kernel, dims, 1), _two(windows.stride, dims, 1)
    padding, dilation = _two(windows.padding, dims, 0), _two(windows.dilation, dims, 1)
    return w.record(node, "window", {
        "channels": channels, "height": height, "width": width, "rows": rows, "columns": columns,
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": step[0], "stride_w": step[1],
        "top": padding[0], "left": padding[1], "dilation_h": dilation[0],
        "dilation_w": dilation[1], "zero": zero,
    })


def _max_pool(dims: int) -> Callable[..., None]:
    def form(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
        w.kernel(c_kernels.WINDOW, c_kernels.MAX_POOL)
        settings, x = _windows(w, node, like, dims, 0), w.read(_input(node))
        w.call("max_pool", f"&{settings}", x, w.output(node, math.prod(_sizes(like))))

    return form


def _avg_pool(dims: int) -> Callable[..., None]:
    def form(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
        w.kernel(c_kernels.WINDOW, c_kernels.AVERAGE_POOL)
        settings, x = _windows(w, node, like, dims, n.zero), w.read(_input(node))
        before, after = (_sizes(found) for found in (w.walk.like(_input(node)), like))
        counts = window_divisors(before, after, dims, node.kwargs).expand(after[-dims:])
        table = w.table(node, "count", "uint16_t", counts)
        w.call("average_pool", f"&{settings}", x, table, w.output(node, math.prod(after)))

    return form


def _cells(
    w: _Writer, node: fx.Node, n: Any, like: Like, cells: tuple[int, int], inside: bool,
    counted: bool,
) -> None:
    channels, height, width = _picture(_sizes(w.walk.like(_input(node))))
    w.kernel(c_kernels.AVERAGE)
    limits = _limits(n, node)
    if inside:
        limits = {**limits, "inside": n.y_zero, "y_zero": 0}
    record = w.record(node, "average", {
        "channels": channels, "height": height, "width": width, "rows": cells[0],
        "columns": cells[1], "multiplier": n.multiplier, "shift": n.shift, "x_zero": n.x_zero,
        "counted": counted, **limits,
    })
    x = w.read(_input(node))
    w.call("average_cells", f"&{record}", x, w.output(node, math.prod(_sizes(like))))


def _adaptive_avg_pool(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    _, rows, columns = _picture(_sizes(like))
    _cells(w, node, n, like, (rows, columns), inside=False, counted=True)


def _mean(counted: bool) -> Callable[..., None]:
    def form(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
        rank, dim = len(w.walk.like(_input(node)).shape), node.kwargs["dim"]
        dims: Any = dim if isinstance(dim, (tuple, list)) else [dim]
        if None in dims or {d % rank for d in dims} != set(range(2, rank)):
            raise ExportError(f"{describe(node)} averages over channels, which has no C form")
        _cells(w, node, n, like, (1, 1), inside=True, counted=counted)

    return form


def _relu(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    _limit(w, node, int(n.zero), torch.iinfo(like.dtype).max, like)


def _clamp(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    _limit(w, node, int(n.low), int(n.high), like)


def _limit(w: _Writer, node: fx.Node, low: int, high: int, like: Like) -> None:
    w.kernel(c_kernels.LIMIT)
    x = w.read(_input(node))
    w.call("limit", x.elements, x, low, high, w.output(node, math.prod(_sizes(like))))


def _look_up(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    w.kernel(c_kernels.LOOK_UP)
    table, x = w.table(node, "table", w.code, n.table), w.read(_input(node))
    y = w.output(node, math.prod(_sizes(like)))
    w.call("look_up", x.elements, x, table, int(n.lowest), y)


def _zero(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    w.kernel(c_kernels.FILL)
    y = w.output(node, math.prod(_sizes(like)))
    w.call("fill", y.elements, int(n.zero), y)


def _pad(w: _Writer, node: fx.Node, n: Any, like: Like) -> None:
    source = _input(node)
    shape, pad = _sizes(w.walk.like(source)), node.kwargs["pad"]
    places = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    found = torch.nn.functional.pad(places, pad, value=-1).to(torch.int64)  # type: ignore[arg-type]
    w.kernel(c_kernels.PICK)
    table, x = w.table(node, "place", "int32_t", found), w.read(source)
    w.call("pick", found.numel(), table, x, int(n.zero), w.output(node, found.numel()))


_TABLES = ("exp", "sigmoid", "tanh", "silu", "gelu", "hardsigmoid", "hardswish", "elu",
           "leaky_relu")
_FORMS: dict[OpSpec, Callable[..., None]] = {
    op_named("conv1d"): _convolution(1),
    op_named("conv2d"): _convolution(2),
    op_named("linear"): _linear,
    op_named("add"): _add,
    op_named("sub"): _add,
    op_named("weighted_sum"): _add,
    op_named("mul"): _multiply,
    op_named("cat"): _cat,
    **{op_named(name): _batch_norm for name in ("batch_norm", "fixed_batch_norm")},
    **{op_named(f"{kind}_number"): _batch_norm for kind in ("add", "sub", "mul", "div")},
    op_named("neg"): _batch_norm,
    op_named("max_pool1d"): _max_pool(1),
    op_named("max_pool2d"): _max_pool(2),
    op_named("avg_pool1d"): _avg_pool(1),
    op_named("avg_pool2d"): _avg_pool(2),
    **{op_named(f"adaptive_avg_pool{dims}d"): _adaptive_avg_pool for dims in (1, 2)},
    op_named("mean"): _mean(counted=True),
    op_named("sum"): _mean(counted=False),
    op_named("relu"): _relu,
    **{op_named(name): _clamp for name in ("relu6", "hardtanh", "clamp")},
    **{op_named(name): _look_up for name in _TABLES},
    **{op_named(name): _zero for name in ("zero", "new_zeros")},
    op_named("pad"): _pad,
}


def _move(w: _Writer, node: fx.Node) -> None:
    """A value as it lies, a walk with fixed steps, or a list of places."""
    if len({n for n in nodes_in((node.args, node.kwargs)) if n in w.values}) > 1:
        raise ExportError(f"{describe(node)} picks by another value, which has no C form")
    source = _input(node)
    if source in w.parts:
        source, several = w.parts[source]
        found = several[node.args[1]]
    else:
        shape = _sizes(w.walk.like(source))
        places = torch.arange(math.prod(shape)).reshape(shape)
        found = apply_to(w.walk, node, {source: places})
    if not isinstance(found, Tensor):  # split up: each part is picked by a node of its own
        w.parts[node] = source, found
        return
    if torch.equal(found.flatten(), torch.arange(w.values[source].elements)):
        w.values[node] = w.values[source]
        return
    steps = _steps(found)
    x = w.read(source)
    if steps is None:
        w.kernel(c_kernels.PICK)
        table = w.table(node, "place", "int32_t", found)
        w.call("pick", found.numel(), table, x, 0, w.output(node, found.numel()))
        return
    w.kernel(c_kernels.MOVE)
    sizes = ([1] * 6 + list(found.shape))[-6:]
    record = w.record(node, "movement", {
        "elements": found.numel(), "size": sizes, "step": ([0] * 6 + steps)[-6:],
        "first": int(found.flatten()[0]),
    })
    w.call("move", f"&{record}", x, w.output(node, found.numel()))


def _steps(places: Tensor) -> list[int] | None:
    """How far apart neighbours lie along each dimension, if that is the same everywhere."""
    if places.dim() > 6 or not places.numel():
        return None
    first = places.flatten()[0]
    steps = [
        int(places.select(d, 1).flatten()[0] - first) if size > 1 else 0
        for d, size in enumerate(places.shape)
    ]
    expected = first.clone()
    for d, step in enumerate(steps):
        along = torch.arange(places.shape[d]) * step
        expected = expected + along.reshape(-1, *[1] * (places.dim() - 1 - d))
    return steps if torch.equal(expected.expand(places.shape), places) else None
