"""A picture of a graph, laid out by Graphviz: SVG, PNG, PDF, DOT."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fxquant.extras import needs_extra
from fxquant.see.families import carries, family_of

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

_FILLS = {
    **{"layer": "#cfe2f8", "norm": "#c6ece8", "activation": "#fde3c4", "pool": "#d6efcf"},
    **{"sum": "#e6dcf5", "boundary": "#f9d0d4", "end": "#ffffff", "other": "#eeeeee"},
}
_ARROWS = {"uint": ("blue", "#1f5fbf"), "int": ("green", "#0a7d4f"), "float": ("grey", "#8a8a8a")}


def draw(graph: networkx.DiGraph, ending: str) -> bytes:
    """The picture of `to_networkx` of a graph, in one of `ENDINGS`.

    Operators are coloured by what they do and grouped by the module (in DARTS: the cell) they
    come from; arrows are coloured by the dtype of what they carry. DOT is the input of Graphviz,
    without coordinates.

    Raises MissingExtraError if pygraphviz is not installed.
    """
    with needs_extra("draw"):
        import pygraphviz  # noqa: F401
    with _quiet():
        drawing = _drawing(graph)
        if ending == "dot":
            return str(drawing.to_string()).encode()
        return bytes(drawing.draw(prog="dot", format=ending))


def _drawing(graph: networkx.DiGraph) -> Any:
    """The networkx graph as a pygraphviz one (which is published without types)."""
    import pygraphviz

    drawing = pygraphviz.AGraph(directed=True, strict=False, name=graph.name or "graph")
    drawing.graph_attr.update(
        _PAGE, label=f"{graph.name}: {graph.graph['stage']}\\n{_legend(graph)}"
    )
    drawing.node_attr.update(_NODE)
    drawing.edge_attr.update(_EDGE)
    shown = [name for name in graph if not is_part_of_readers(graph, name)]
    groups = _groups(graph, shown)
    for name in shown:
        facts = graph.nodes[name]
        drawing.add_node(
            name,
            label=_label(name, facts, groups.get(name, "")),
            tooltip="\\n".join(f"{key}: {value}" for key, value in facts.items() if value != ""),
            fillcolor=_FILLS[family_of(facts["kind"])],
        )
    for group in dict.fromkeys(groups.values()):
        members = [name for name in shown if groups.get(name) == group]
        drawing.add_subgraph(members, name=f"cluster_{group}", label=group, **_GROUP)
    for source, reader, reads in graph.edges(data=True):
        if source in shown:
            dtype = graph.nodes[source].get("dtype", "")
            scale = f" in steps of {reads['scale']:.4g}" if "scale" in reads else ""
            tooltip = f"{source} → {reader} ({', '.join(reads['arguments'])}) {dtype}{scale}"
            drawing.add_edge(source, reader, color=_ARROWS[carries(dtype)][1], tooltip=tooltip)
    return drawing


def is_part_of_readers(graph: networkx.DiGraph, name: str) -> bool:
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
    named = ", ".join(f"{dtype} {_ARROWS[carries(dtype)][0]}" for dtype in sorted(dtypes))
    return f"arrows: {named}" if named else ""


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
