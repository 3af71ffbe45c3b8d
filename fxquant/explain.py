"""Tell, pass by pass, what was changed in a graph and what was left alone, and why."""

from __future__ import annotations

from torch import fx

from fxquant.pipeline import Entry, history, stage_of


def explain(gm: fx.GraphModule) -> str:
    """A text of what each pass did to `gm`: one paragraph a pass, reasons grouped."""
    records = history(gm)
    lines = [f"{type(gm).__name__}: a {stage_of(gm).value} graph of {len(gm.graph.nodes)} nodes"]
    width = max((len(record.name) for record in records), default=0)
    for i, record in enumerate(records, 1):
        counts = f"{record.nodes_before} → {record.nodes_after} nodes"
        lines.append(f"\n{i}. {record.name:{width}}  {counts}. {record.summary}")
        lines += _grouped("changed", record.changed)
        lines += _grouped("left alone", record.left_alone)
    return "\n".join(lines)


def _grouped(title: str, entries: tuple[Entry, ...]) -> list[str]:
    """Entries with the same text on one line, the first few nodes by name."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.text, []).append(entry.node)
    lines = []
    for text, nodes in groups.items():
        names = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
        lines.append(f"   {title}: {names}: {text}")
    return lines
