"""A graph as a networkx graph, and that as a picture.

    GraphModule ── to_networkx ── DiGraph ── visualize ── SVG, PNG, PDF, DOT, Jupyter

Works on graphs of every stage, and on what plain `torch.fx.symbolic_trace` gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError
from fxquant.extras import needs_extra
from fxquant.files import write_whole
from fxquant.graph.edit import SITES, get_attribute, module_at
from fxquant.graph.place import place_of
from fxquant.graph.values import scalars
from fxquant.ops.site import CallSite
from fxquant.pipeline import Stage, stage_of
from fxquant.see.grid import Grid, grids_of
from fxquant.see.kind import kind_of, name_of

if TYPE_CHECKING:
    import networkx  # imported where it is used: it would make `import fxquant` slow

ENDINGS = ("svg", "png", "pdf", "dot")

_FONT = "sans-serif"
_PAGE = {"nodesep": "0.18", "ranksep": "0.3", "fontname": _FONT, "fontsize": "13", "labelloc": "t"}
_NODE = {
    **{"shape": "box", "style": "filled,rounded", "color": "#666666", "height": "0.3"},
    **{"fontname": _FONT, "fontsize": "11", "margin": "0.09,0.04"},
}
_EDGE = {"arrowsize": "0.6", "penwidth": "1.3"}
_GROUP = {
    **{"style": "filled,rounded", "color": "#b0b0b0", "fillcolor": "#fafafa"},
    **{"labeljust": "l", "fontcolor": "#333333"},
}

# The first family that the operator's name starts with gives the fill.
_FILLS = (
    (("conv", "linear", "matmul"), "#cfe2f8"),
    (("batch_norm", "fixed_batch_norm", "layer_norm", "group_norm"), "#c6ece8"),
    (("instance_norm", "rms_norm", "normalize"), "#c6ece8"),
    (("relu", "hardtanh", "clamp", "leaky_relu", "prelu", "elu", "silu", "gelu"), "#fde3c4"),
    (("sigmoid", "tanh", "hardsigmoid", "hardswish", "exp", "softmax"), "#fde3c4"),
    (("max_pool", "avg_pool", "adaptive", "mean", "interpolate"), "#d6efcf"),
    (("add", "cat", "sub", "mul", "div", "neg", "scale"), "#e6dcf5"),
    (("quantize", "dequantize", "fake_quant"), "#f9d0d4"),
    (("input", "output"), "#ffffff"),
)
_OTHER_FILL = "#eeeeee"

# The first word that the dtype starts with gives the arrow.
_ARROWS = (("uint", "blue", "#1f5fbf"), ("int", "green", "#0a7d4f"), ("", "grey", "#8a8a8a"))


def to_networkx(gm: fx.GraphModule) -> networkx.DiGraph:
    """The graph as a networkx one: a node per fx node, by name, in order.

    Attributes of a node; those from `dtype` on are there only where they are known:

        kind        str     what it does: 'conv2d → relu', 'max_pool2d', 'quantize', 'input'
        op          str     the fx opcode
        target      str     the fx target
        module      str     the module path that it comes from, "" at the top
        dtype       str     of its value: 'uint8' (in a prepared graph: its fake-quant), 'float'
        bits        int     of such an integer
        scale       float   of such an integer, once the range is known
        zero_point  int     the same
        weight      str     the scheme of the weight: 'int8/channel'

    An edge has `arguments`, the places where the reader takes the value in: ('0', 'weight'),
    or ('0[1]',) for the second entry of a list. Parameters are nodes too, as they are in fx;
    a picture leaves out those that an operator reads by name.
    """
    import networkx

    values, numbers = grids_of(gm), scalars(gm.graph)
    graph = networkx.DiGraph(name=type(gm).__name__, stage=stage_of(gm).value)
    for node in gm.graph.nodes:
        graph.add_node(
            node.name,
            kind=kind_of(gm, node),
            op=node.op,
            target=node.target if isinstance(node.target, str) else name_of(node.target),
            module=_module_path(node),
            **({} if node in numbers else _value(gm, node, values.get(node))),
        )
        reads: dict[str, tuple[str, ...]] = {}
        for source, argument in _arguments(node):
            reads[source.name] = (*reads.get(source.name, ()), argument)
        for source_name, arguments in reads.items():
            graph.add_edge(source_name, node.name, arguments=arguments)
    return graph


def visualize(gm: fx.GraphModule, path: str | os.PathLike[str] | None = None) -> Picture:
    """A picture of the graph, which shows itself in Jupyter; written to `path` if given.

    Operators are coloured by what they do and grouped by the module (in DARTS: the cell) they
    come from; arrows are coloured by the dtype of what they carry.

    Args:
        gm: any fx graph: float, prepared or converted.
        path: ends in .svg, .png, .pdf or .dot; written whole or not at all.

    Raises:
        ConfigError: another ending.
        MissingExtraError: pygraphviz is not installed.
    """
    if path is not None:
        _ending(path)  # before any work
    picture = Picture(to_networkx(gm))
    if path is not None:
        picture.save(path)
    return picture


class Picture:
    """A drawn graph."""

    def __init__(self, graph: networkx.DiGraph) -> None:
        with needs_extra("draw"):
            import pygraphviz  # noqa: F401
        self.graph = graph

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, in the format that the file's ending names, whole or not at all."""
        write_whole(path, self.render(_ending(path)))

    def render(self, ending: str) -> bytes:
        """It in one of `ENDINGS`; DOT is the input of Graphviz, without coordinates."""
        with _quiet():
            drawing = _drawing(self.graph)
            if ending == "dot":
                return str(drawing.to_string()).encode()
            return bytes(drawing.draw(prog="dot", format=ending))

    def _repr_svg_(self) -> str:
        return self.render("svg").decode()


# What is known of a node


def _value(gm: fx.GraphModule, node: fx.Node, integer: Grid | None) -> dict[str, Any]:
    """The attributes from `dtype` on."""
    facts: dict[str, Any] = {}
    if integer is not None:
        scheme, q = integer
        facts = {"dtype": str(scheme), "bits": scheme.bits}
        if q is not None:
            facts |= {"scale": float(q.scale), "zero_point": int(q.zero_point)}
    elif node.op == "get_attr" and isinstance(at := get_attribute(gm, str(node.target)), Tensor):
        facts["dtype"] = _dtype(at.dtype)
    elif isinstance(known := getattr(node.meta.get("tensor_meta"), "dtype", None), torch.dtype):
        facts["dtype"] = _dtype(known)  # after torch.fx's ShapeProp
    elif stage_of(gm) in (Stage.FAKE_QUANT, Stage.INTEGER) and node.op != "output":
        facts["dtype"] = "float"  # all that is neither integer nor a size
    module = module_at(gm, node)
    if isinstance(module, CallSite) and module.weight_quant is not None:
        facts["weight"] = str(module.weight_quant.scheme)
    return facts


def _dtype(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else str(dtype).removeprefix("torch.")


def _module_path(node: fx.Node) -> str:
    """Where the node comes from: as fxquant wrote it down, or else as torch.fx did."""
    path = place_of(node).module
    if path:
        return path
    stack = node.meta.get("nn_module_stack")
    if stack:
        return str(next(reversed(stack)))
    own = str(node.target).startswith(f"{SITES}.")
    return str(node.target) if node.op == "call_module" and not own else ""


def _arguments(node: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    """Every node that `node` reads, with the place: '0', 'weight', '0[1]', "0['x']"."""

    def walk(value: Any, at: str) -> Iterator[tuple[fx.Node, str]]:
        if isinstance(value, fx.Node):
            yield value, at
        elif isinstance(value, (tuple, list)):
            for i, entry in enumerate(value):
                yield from walk(entry, f"{at}[{i}]")
        elif isinstance(value, dict):
            for key, entry in value.items():
                yield from walk(entry, f"{at}[{key!r}]")
        elif isinstance(value, slice):
            for name in ("start", "stop", "step"):
                yield from walk(getattr(value, name), f"{at}.{name}")

    for i, value in enumerate(node.args):
        yield from walk(value, str(i))
    for name, value in node.kwargs.items():
        yield from walk(value, name)


# The picture


def _drawing(graph: networkx.DiGraph) -> Any:
    """The networkx graph as a pygraphviz one (which is published without types)."""
    import pygraphviz

    drawing = pygraphviz.AGraph(directed=True, strict=False, name=graph.name or "graph")
    drawing.graph_attr.update(
        _PAGE, label=f"{graph.name}: {graph.graph['stage']}\\n{_legend(graph)}"
    )
    drawing.node_attr.update(_NODE)
    drawing.edge_attr.update(_EDGE)
    shown = [name for name in graph if not _is_part_of_readers(graph, name)]
    groups = _groups(graph, shown)
    for name in shown:
        facts = graph.nodes[name]
        drawing.add_node(
            name,
            label=_label(name, facts, groups.get(name, "")),
            tooltip="\\n".join(f"{key}: {value}" for key, value in facts.items() if value != ""),
            fillcolor=_fill(facts["kind"]),
        )
    for group in dict.fromkeys(groups.values()):
        members = [name for name in shown if groups.get(name) == group]
        drawing.add_subgraph(members, name=f"cluster_{group}", label=group, **_GROUP)
    for source, reader, reads in graph.edges(data=True):
        if source in shown:
            dtype = graph.nodes[source].get("dtype", "")
            tooltip = f"{source} → {reader} ({', '.join(reads['arguments'])}) {dtype}"
            drawing.add_edge(source, reader, color=_arrow(dtype)[1], tooltip=tooltip)
    return drawing


def _is_part_of_readers(graph: networkx.DiGraph, name: str) -> bool:
    """Whether this is a parameter that every reader takes by name, as call sites do."""
    arguments = [a for _, _, reads in graph.out_edges(name, data=True) for a in reads["arguments"]]
    return (
        graph.nodes[name]["op"] == "get_attr"
        and bool(arguments)
        and not any(argument[0].isdigit() for argument in arguments)
    )


def _groups(graph: networkx.DiGraph, names: list[str]) -> dict[str, str]:
    """For each node the module at the top that holds it, or its entry of a list: 'cells.0'."""
    paths = {name: graph.nodes[name]["module"].split(".") for name in names}
    containers = {tuple(path[:n]) for path in paths.values() for n in (1, 2) if n < len(path)}
    groups: dict[str, str] = {}
    for name, path in paths.items():
        for group in (path[:2], path[:1]):
            if tuple(group) in containers and (len(group) == 1 or group[1].isdigit()):
                groups[name] = ".".join(group)
                break
    return groups


def _label(name: str, facts: dict[str, Any], group: str) -> str:
    """What it does; below, what it is called inside its group, and its integers."""
    kind, dtype = facts["kind"], facts.get("dtype", "float")
    inside = facts["module"].removeprefix(group).strip(".") or name
    below = [part for part in (inside, dtype) if part not in (kind, "float")]
    return "\\n".join((kind, " · ".join(below))) if below else str(kind)


def _legend(graph: networkx.DiGraph) -> str:
    dtypes = {facts["dtype"] for _, facts in graph.nodes(data=True) if "dtype" in facts}
    named = ", ".join(f"{dtype} {_arrow(dtype)[0]}" for dtype in sorted(dtypes))
    return f"arrows: {named}" if named else ""


def _fill(kind: str) -> str:
    for starts, colour in _FILLS:
        if kind.startswith(starts):
            return colour
    return _OTHER_FILL


def _arrow(dtype: str) -> tuple[str, str]:
    """The name and the colour of an arrow that carries this."""
    return next((name, colour) for start, name, colour in _ARROWS if dtype.startswith(start))


def _ending(path: str | os.PathLike[str]) -> str:
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in ENDINGS:
        listed = ", ".join(f".{known}" for known in ENDINGS)
        raise ConfigError(f"a picture's file ends in one of {listed}, got '{os.fspath(path)}'")
    return ending


@contextmanager
def _quiet() -> Iterator[None]:
    """No stderr: the fontconfig inside Graphviz complains of newer systems' own settings."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
