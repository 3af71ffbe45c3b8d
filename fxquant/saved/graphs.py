"""Graphs as JSON and back: a list of nodes, each with its call and its arguments.

What is generated from a graph is Python code, so every name that would stand in it is checked: a
name is an identifier, a path leads to something that the network holds, a function or method is
in a list (`callables`).
"""

from __future__ import annotations

import keyword
from collections.abc import Callable

from torch import fx

from fxquant.errors import FileError
from fxquant.graph.place import Place, describe, example_of, place_of, set_example, set_place
from fxquant.saved.callables import check_names, function_named, name_of
from fxquant.saved.values import Json, Reader, Writer

_OPS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")


def write_graph(graph: fx.Graph, writer: Writer) -> Json:
    """The nodes of a graph, in order. Raises FileError at what a file cannot hold."""
    return [_write_node(node, writer) for node in graph.nodes]


def _write_node(node: fx.Node, writer: Writer) -> Json:
    try:
        check_names(node)
        target = node.target if isinstance(node.target, str) else name_of(node.target)
        args, kwargs = writer.write(node.args), writer.write(node.kwargs)
    except FileError as error:
        raise FileError(
            f"{describe(node)} cannot be saved: {error}.\n"
            "What to do: save the state_dict() instead, and load it into what prepare_qat makes "
            "of the model again."
        ) from error
    # a path in the model, but not the file and line: they say where the author's sources lie
    data = {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}
    return data | {"place": place_of(node).module, "example": _example(node, writer)}


def _example(node: fx.Node, writer: Writer) -> Json:
    try:
        return writer.write(example_of(node))
    except FileError:
        return None


def read_graph(data: Json, reader: Reader, holds: Callable[[str], bool]) -> fx.Graph:
    """The graph of these nodes; `holds` says whether a path leads to something.

    Raises FileError, or what a field of a wrong type raises.
    """
    if [entry["op"] for entry in data].index("output") != len(data) - 1:
        raise FileError("the output does not come last")
    graph, nodes = fx.Graph(), dict(reader.nodes)
    reader = Reader(nodes, reader.modules)
    for entry in data:
        node = _read_node(graph, entry, reader, holds)
        nodes[node.name] = node
    graph.lint()
    return graph


def _read_node(
    graph: fx.Graph, entry: Json, reader: Reader, holds: Callable[[str], bool]
) -> fx.Node:
    name, op, target = (_text(entry[key]) for key in ("name", "op", "target"))
    args, kwargs = reader.read(entry["args"]), reader.read(entry["kwargs"])
    for word in (name, *kwargs):
        _check_identifier(word)
    if op == "placeholder":
        _check_identifier(target.lstrip("*"))
    elif op in ("get_attr", "call_module") and not holds(target):
        raise FileError(f"node '{name}' reads '{target}', which the file does not hold")
    elif op not in _OPS:
        raise FileError(f"node '{name}' is of an unknown kind, {op!r}")
    called = function_named(target) if op == "call_function" else target
    node = graph.create_node(op, called, args, kwargs, name=name)
    if node.name != name:
        raise FileError(f"two nodes are called '{name}', or it is a name of Python's")
    check_names(node)
    set_place(node, Place(_text(entry["place"])))
    example = reader.read(entry["example"])
    if example is not None:
        set_example(node, example)
    return node


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise FileError(f"a name is text, not {value!r}")
    return value


def _check_identifier(name: object) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise FileError(f"{name!r} is no name that code could have")
