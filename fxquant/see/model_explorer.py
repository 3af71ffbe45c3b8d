"""A graph in the JSON that Model Explorer opens.

Source of the format: https://github.com/google-ai-edge/model-explorer/wiki/6.-Develop-Adapter-Extension
and the records of its `graph_builder`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fxquant.see.facts import ValueFacts

if TYPE_CHECKING:
    import networkx


def encode(graph: networkx.DiGraph) -> bytes:
    """A collection of one graph: nodes by namespace (module path), with what each edge carries."""
    nodes = [_node(graph, name, facts) for name, facts in graph.nodes(data=True)]
    only = {"id": graph.name or "graph", "nodes": nodes}
    return json.dumps({"label": graph.graph["stage"], "graphs": [only]}, indent=1).encode()


def _node(graph: networkx.DiGraph, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    incoming = [
        {"sourceNodeId": source, "sourceNodeOutputId": "0", "targetNodeInputId": argument}
        for source, _, reads in graph.in_edges(name, data=True)
        for argument in reads["arguments"]
    ]
    return {
        "id": name,
        "label": facts["kind"],
        "namespace": facts["module"].replace(".", "/"),
        "attrs": _pairs(facts, ("op", "target", "weight")),
        "incomingEdges": incoming,
        "outputsMetadata": [{"id": "0", "attrs": _pairs(facts, ValueFacts.__annotations__)}],
    }


def _pairs(facts: dict[str, Any], keys: Iterable[str]) -> list[dict[str, str]]:
    return [{"key": key, "value": str(facts[key])} for key in keys if key in facts]
