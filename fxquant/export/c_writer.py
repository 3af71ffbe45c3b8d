"""What C code is made of: functions, tables, the steps of the network, and buffers in one arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.export.walk import Walk
from fxquant.graph.place import describe

_LINE = 16  # numbers in a line of a table


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
class Writer:
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

    def record(self, owner: str, kind: str, values: dict[str, Any]) -> str:
        """The name of a record of settings."""
        name = f"{owner}_settings"
        text = ", ".join(f".{key} = {literal(value)}" for key, value in values.items())
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
        if node not in self.values:
            raise ExportError(f"{describe(node)} is a constant that is computed with, which has no "
                              "C form")
        found = self.values[node]
        found.last = len(self.steps)
        return found

    def call(self, function: str, *arguments: object) -> None:
        """The next step. Where buffers lie is not known yet."""
        self.steps.append(lambda: f"{function}({', '.join(place(a) for a in arguments)});")


def literal(value: Any) -> str:
    """A number, or numbers, in C."""
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(map(str, value)) + "}"
    return str(int(value))


def place(argument: object) -> str:
    """An argument in C: of a buffer where it lies, which is known once all are planned."""
    if isinstance(argument, Buffer):
        return argument.place or f"arena + {argument.offset}"
    return str(argument)


def plan(buffers: Sequence[Buffer]) -> int:
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
