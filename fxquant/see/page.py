"""A page of HTML that needs nothing but itself: style, scripts and data are inside.

Its policy forbids it to load anything, from wherever.
"""

from __future__ import annotations

import html
import json
import math
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fxquant.see.families import carries, family_of
from fxquant.see.groups import groups_of
from fxquant.see.picture import is_part_of_readers

if TYPE_CHECKING:
    import networkx

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_SHARED = ("dagre.min.js", "elements.js", "layout.js", "graph.js")
_SCRIPTS = {
    "graph": ("graph_page.js",),
    "passes": ("log.js", "passes_page.js"),
    "report": ("log.js", "table.js", "tabs.js", "histogram.js", "report_page.js"),
}


def page(title: str, kind: str, data: dict[str, Any]) -> bytes:
    """A page of a `kind`, "graph", "passes" or "report"; `data` is all its scripts are told."""
    scripts = "\n".join(f"<script>{_asset(name)}</script>" for name in _SHARED + _SCRIPTS[kind])
    content = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>{_asset("style.css")}</style>
</head>
<body>
<script type="application/json" id="data">{_encoded(data)}</script>
{scripts}
</body>
</html>
"""
    return content.encode()


def in_notebook(page: bytes) -> str:
    """The page in a frame of its own, for Jupyter: its style stays inside."""
    content = html.escape(page.decode(), quote=True)
    return (
        f'<iframe srcdoc="{content}" sandbox="allow-scripts" title="fxquant" '
        'style="width: 100%; height: 720px; border: 0"></iframe>'
    )


def graph_data(graph: networkx.DiGraph) -> dict[str, Any]:
    """What the page is told of a graph, parameters that operators read by name left out."""
    shown = [name for name in graph if not is_part_of_readers(graph, name)]
    groups = groups_of({name: graph.nodes[name]["module"] for name in shown})
    number = {name: i for i, name in enumerate(shown)}
    edges = [
        [number[a], number[b], ", ".join(facts["arguments"])]
        for a, b, facts in graph.edges(data=True)
        if a in number and b in number
    ]
    nodes = [_node(name, graph.nodes[name], groups.of[name]) for name in shown]
    parents = {_id_of(group): _id_of(parent) for group, parent in groups.parents.items()}
    about = {"name": graph.name, "stage": graph.graph["stage"]}
    return {**about, "nodes": nodes, "edges": edges, "groups": parents}


def _id_of(group: str) -> str:
    """Another than any operator's: `def forward(self, stem): self.stem(stem)` has two of a name."""
    return f"{group}/" if group else ""


def _node(name: str, facts: dict[str, Any], group: str) -> dict[str, Any]:
    kind, dtype = facts["kind"], facts.get("dtype", "")
    inside = facts["module"].removeprefix(group).strip(".") or name
    scale = facts.get("scale")
    given = {
        "id": name,
        "kind": kind,
        "family": family_of(kind),
        "group": _id_of(group),
        "name": "" if inside == kind else inside,
        "module": facts["module"],
        "dtype": dtype,
        "carries": carries(dtype),
        "bits": facts.get("bits"),
        "scale": scale,
        "zero": facts.get("zero_point"),
        "text": f"{dtype} × {scale:.3g}" if scale is not None else dtype,
        "weight": facts.get("weight"),
        "shape": facts.get("shape"),
    }
    return {key: value for key, value in given.items() if value is not None}


def finite(value: float | None) -> float | str | None:
    """A number for JSON, which knows no infinity."""
    if value is None or math.isfinite(value):
        return value
    return "inf" if value > 0 else "-inf" if value < 0 else "nan"


def _encoded(data: dict[str, Any]) -> str:
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")  # so that no name ends the script


def _asset(name: str) -> str:
    return (files("fxquant.see") / "assets" / name).read_text(encoding="utf-8")
