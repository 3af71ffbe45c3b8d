"""Tell, pass by pass, what was changed in a graph and what was left alone, and why."""

from __future__ import annotations

from torch import fx

from fxquant.errors import StageError
from fxquant.pipeline import Entry, PassRecord, history, say_stage, stage_of


def explain(gm: fx.GraphModule) -> str:
    """A text of what each pass did to `gm`: a paragraph a pass, nodes of one reason together.

    Raises StageError for anything but what prepare_qat and convert return, and traced graphs.
    """
    if not isinstance(gm, fx.GraphModule):
        raise StageError(
            f"explain takes what prepare_qat or convert returned, got {say_stage(gm)}.\n"
            "What to do: prepare it with prepare_qat first."
        )
    head = f"{type(gm).__name__}: {stage_of(gm).value} of {len(gm.graph.nodes)} nodes"
    return "\n\n".join([head, *(_paragraph(i, r) for i, r in enumerate(history(gm), 1))])


def _paragraph(number: int, record: PassRecord) -> str:
    before, after = record.nodes_before, record.nodes_after
    nodes = f"{after} nodes" if before == after else f"{before} → {after} nodes"
    lines = [f"{number}. {record.name}: {record.summary}  ({nodes})"]
    lines += [f"   note        {sentence}" for sentence in record.notes]
    if not record.changed and not record.left_alone:
        lines.append("   nothing to do")
    lines += _grouped("            ", record.changed)
    lines += _grouped("left alone  ", record.left_alone)
    return "\n".join(lines)


def _grouped(title: str, entries: tuple[Entry, ...]) -> list[str]:
    """Entries with the same text on one line, the first few nodes by name."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.text, []).append(entry.node)
    lines = []
    for text, nodes in groups.items():
        names = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
        lines.append(f"   {title}{names}: {text}")
    return lines
