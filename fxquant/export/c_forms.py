"""Operators and moves in C: each form writes down the step of one node, and what it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.export import c_kernels
from fxquant.export.c_writer import Buffer, Writer, literal, place
from fxquant.export.moves import apply_to
from fxquant.export.walk import Like
from fxquant.graph.edit import nodes_in
from fxquant.graph.nested import leaves
from fxquant.graph.place import describe
from fxquant.ops import op_named
from fxquant.ops.avg_pool import window_divisors
from fxquant.ops.spec import OpSpec, per_dimension
from fxquant.ops.windows import windows_of

Form = Callable[[Writer, fx.Node, Any, Like], None]
"""Of a node, the numbers of its operator, and what it gives."""


def sizes_of(like: Like) -> tuple[int, ...]:
    """The shape of a value of one picture."""
    return tuple(size for size in like.shape if size is not None)


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


def _convolution(dims: int) -> Form:
    def form(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
        source = _input(node)
        shape, s = sizes_of(w.walk.like(source)), dict[str, Any](node.kwargs)
        channels, height, width = _picture(shape)
        outputs, rows, columns = _picture(sizes_of(like))
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
        settings = w.record(node.name, "convolution", {
            "channels": channels, "height": height, "width": width, "outputs": outputs,
            "rows": rows, "columns": columns, "kernel_h": kernel[0], "kernel_w": kernel[1],
            "stride_h": stride[0], "stride_w": stride[1], "top": top, "left": left,
            "dilation_h": dilation[0], "dilation_w": dilation[1], "groups": s["groups"],
            "x_zero": n.x_zero, **_limits(n, node),
        })
        _layer(w, node, n, settings, w.read(source), like)

    return form


def _linear(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    """A convolution of one row of pictures, each as large as the kernel."""
    source = _input(node)
    shape = sizes_of(w.walk.like(source))
    if math.prod(shape[:-1]) != 1:
        raise ExportError(f"{describe(node)} reads several rows, which has no C form")
    settings = w.record(node.name, "convolution", {
        "channels": shape[-1], "height": 1, "width": 1, "outputs": len(n.weight), "rows": 1,
        "columns": 1, "kernel_h": 1, "kernel_w": 1, "stride_h": 1, "stride_w": 1, "top": 0,
        "left": 0, "dilation_h": 1, "dilation_w": 1, "groups": 1, "x_zero": n.x_zero,
        **_limits(n, node),
    })
    _layer(w, node, n, settings, w.read(source), like)


def _layer(
    w: Writer, node: fx.Node, n: Any, settings: str, source: Buffer, like: Like
) -> None:
    w.kernel(c_kernels.CONVOLVE)
    tables = [
        w.table(node, name, kind, getattr(n, name))
        for name, kind in (("weight", "int8_t"), ("bias", "int32_t"), ("multiplier", "int32_t"),
                           ("shift", "uint8_t"))
    ]
    y = w.output(node, math.prod(sizes_of(like)))
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


def _add(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    sources, out = leaves(node.args), sizes_of(like)
    steps = [_broadcast(sizes_of(w.walk.like(source)), out) for source in sources]
    in_steps = n.shift.dim() > 0
    w.kernel(c_kernels.STEPS, c_kernels.ADD_IN_STEPS if in_steps else c_kernels.ADD)
    settings = {"terms": len(sources), "elements": math.prod(out), "size": _four(out)}
    shift = {} if in_steps else {"shift": n.shift}
    record = w.record(node.name, "addition", {**settings, **shift, **_limits(n, node)})
    flat = ", ".join(literal(step) for step in steps)
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
        f"add(&{record}, (const code *const[]){{{', '.join(map(place, read))}}}, "
        f"{node.name}_step, {', '.join(tables)}, {place(y)});"
    ))


def _multiply(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    (a, b), out = leaves(node.args), sizes_of(like)
    w.kernel(c_kernels.STEPS, c_kernels.MULTIPLY)
    record = w.record(node.name, "product", {
        "elements": math.prod(out), "size": _four(out),
        "step_a": _broadcast(sizes_of(w.walk.like(a)), out),
        "step_b": _broadcast(sizes_of(w.walk.like(b)), out),
        "a_zero": n.a_zero, "b_zero": n.b_zero, "multiplier": n.multiplier, "shift": n.shift,
        **_limits(n, node),
    })
    left, right = w.read(a), w.read(b)
    w.call("multiply", f"&{record}", left, right, w.output(node, math.prod(out)))


def _cat(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    out, axis = sizes_of(like), node.kwargs["dim"]
    assert isinstance(axis, int)  # as the reader of the operator has made sure
    blocks, to = math.prod(out[:axis]), math.prod(out[axis:])
    w.kernel(c_kernels.RESCALE)
    sources = [w.read(source) for source in leaves(node.args)]
    y = w.output(node, math.prod(out))
    at = 0
    for i, source in enumerate(sources):
        source.last = max(source.last, len(w.steps))
        record = w.record(f"{node.name}_{i}", "rescaling", {
            "blocks": blocks, "from": source.elements // blocks, "to": to, "at": at,
            "x_zero": n.x_zero[i], "multiplier": n.multiplier[i], "shift": n.shift[i],
            **_limits(n, node),
        })
        w.call("rescale", f"&{record}", source, y)
        at += source.elements // blocks
    y.last = len(w.steps) - 1


def _batch_norm(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    source, out = _input(node), sizes_of(like)
    w.kernel(c_kernels.SCALE_AND_SHIFT)
    channels = len(n.multiplier) if n.multiplier.dim() else 1
    record = w.record(node.name, "scaling", {
        "channels": channels, "elements": math.prod(out) // channels, "x_zero": n.x_zero,
        **_limits(n, node),
    })
    tables = [
        w.table(node, name, kind, getattr(n, name))
        for name, kind in (("multiplier", "int32_t"), ("offset", "int64_t"), ("shift", "uint8_t"))
    ]
    x = w.read(source)
    w.call("scale_and_shift", f"&{record}", x, *tables, w.output(node, math.prod(out)))


def _windows(w: Writer, node: fx.Node, like: Like, dims: int, zero: Any) -> str:
    windows = windows_of(node.kwargs, dims)
    channels, height, width = _picture(sizes_of(w.walk.like(_input(node))))
    _, rows, columns = _picture(sizes_of(like))
    kernel, step = _two(windows.kernel, dims, 1), _two(windows.stride, dims, 1)
    padding, dilation = _two(windows.padding, dims, 0), _two(windows.dilation, dims, 1)
    return w.record(node.name, "window", {
        "channels": channels, "height": height, "width": width, "rows": rows, "columns": columns,
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": step[0], "stride_w": step[1],
        "top": padding[0], "left": padding[1], "dilation_h": dilation[0],
        "dilation_w": dilation[1], "zero": zero,
    })


def _max_pool(dims: int) -> Form:
    def form(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
        w.kernel(c_kernels.WINDOW, c_kernels.MAX_POOL)
        settings, x = _windows(w, node, like, dims, 0), w.read(_input(node))
        w.call("max_pool", f"&{settings}", x, w.output(node, math.prod(sizes_of(like))))

    return form


def _avg_pool(dims: int) -> Form:
    def form(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
        w.kernel(c_kernels.WINDOW, c_kernels.AVERAGE_POOL)
        settings, x = _windows(w, node, like, dims, n.zero), w.read(_input(node))
        before, after = (sizes_of(found) for found in (w.walk.like(_input(node)), like))
        counts = window_divisors(before, after, dims, node.kwargs).expand(after[-dims:])
        table = w.table(node, "count", "uint16_t", counts)
        w.call("average_pool", f"&{settings}", x, table, w.output(node, math.prod(after)))

    return form


def _cells(
    w: Writer, node: fx.Node, n: Any, like: Like, cells: tuple[int, int], inside: bool,
    counted: bool,
) -> None:
    """Means of cells, or sums if they are not `counted`; `inside` says that the zero point is added
    before what is divided is rounded.
    """
    channels, height, width = _picture(sizes_of(w.walk.like(_input(node))))
    w.kernel(c_kernels.AVERAGE)
    limits = _limits(n, node)
    if inside:
        limits = {**limits, "inside": n.y_zero, "y_zero": 0}
    record = w.record(node.name, "average", {
        "channels": channels, "height": height, "width": width, "rows": cells[0],
        "columns": cells[1], "multiplier": n.multiplier, "shift": n.shift, "x_zero": n.x_zero,
        "counted": counted, **limits,
    })
    x = w.read(_input(node))
    w.call("average_cells", f"&{record}", x, w.output(node, math.prod(sizes_of(like))))


def _adaptive_avg_pool(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    _, rows, columns = _picture(sizes_of(like))
    _cells(w, node, n, like, (rows, columns), inside=False, counted=True)


def _mean(counted: bool) -> Form:
    def form(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
        rank, dim = len(w.walk.like(_input(node)).shape), node.kwargs["dim"]
        dims: Any = dim if isinstance(dim, (tuple, list)) else [dim]
        if None in dims or {d % rank for d in dims} != set(range(2, rank)):
            raise ExportError(f"{describe(node)} averages over channels, which has no C form")
        _cells(w, node, n, like, (1, 1), inside=True, counted=counted)

    return form


def _relu(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    _limit(w, node, int(n.zero), torch.iinfo(like.dtype).max, like)


def _clamp(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    _limit(w, node, int(n.low), int(n.high), like)


def _limit(w: Writer, node: fx.Node, low: int, high: int, like: Like) -> None:
    w.kernel(c_kernels.LIMIT)
    x = w.read(_input(node))
    w.call("limit", x.elements, x, low, high, w.output(node, math.prod(sizes_of(like))))


def _look_up(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    w.kernel(c_kernels.LOOK_UP)
    table, x = w.table(node, "table", w.code, n.table), w.read(_input(node))
    y = w.output(node, math.prod(sizes_of(like)))
    w.call("look_up", x.elements, x, table, int(n.lowest), y)


def _zero(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    w.kernel(c_kernels.FILL)
    y = w.output(node, math.prod(sizes_of(like)))
    w.call("fill", y.elements, int(n.zero), y)


def _pad(w: Writer, node: fx.Node, n: Any, like: Like) -> None:
    source = _input(node)
    shape, pad = sizes_of(w.walk.like(source)), node.kwargs["pad"]
    places = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    found = torch.nn.functional.pad(places, pad, value=-1).to(torch.int64)  # type: ignore[arg-type]
    w.kernel(c_kernels.PICK)
    table, x = w.table(node, "place", "int32_t", found), w.read(source)
    w.call("pick", found.numel(), table, x, int(n.zero), w.output(node, found.numel()))


_TABLES = ("exp", "sigmoid", "tanh", "silu", "gelu", "hardsigmoid", "hardswish", "elu",
           "leaky_relu")
FORMS: dict[OpSpec, Form] = {
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


def move(w: Writer, node: fx.Node) -> None:
    """A value as it lies, a walk with fixed steps, or a list of places."""
    if len({n for n in nodes_in((node.args, node.kwargs)) if n in w.values}) > 1:
        raise ExportError(f"{describe(node)} picks by another value, which has no C form")
    source = _input(node)
    if source in w.parts:
        source, several = w.parts[source]
        found = several[node.args[1]]
    else:
        shape = sizes_of(w.walk.like(source))
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
    record = w.record(node.name, "movement", {
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
