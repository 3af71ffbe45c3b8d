"""Where a node comes from in the user's own code: module path, file and line.

With it, an example of its value where capture knew one: shapes without memory, and numbers.
Both live in `node.meta` while a recipe runs, and nothing that must last depends on them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import fx

_KEY, _EXAMPLE, _TAKEN = "fxquant_place", "fxquant_example", "fxquant_taken_in"
_OWN = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (torch.__file__, __file__)
)


@dataclass(frozen=True)
class Place:
    """A module path ("" at the top) and, where known, a file and line of the user's source."""

    module: str
    file: str | None = None
    line: int = 0

    def __str__(self) -> str:
        inside = f"in '{self.module}'" if self.module else "in the model's own forward"
        return f"{inside} ({self.file}:{self.line})" if self.file else inside


def set_place(node: fx.Node, place: Place) -> None:
    """Write down where `node` comes from."""
    node.meta[_KEY] = place


def place_of(node: fx.Node) -> Place:
    """Where `node` comes from; an empty place if that was lost."""
    place = node.meta.get(_KEY)
    return place if isinstance(place, Place) else Place("")


def take_in(node: fx.Node, other: fx.Node) -> None:
    """Write down that `node` gives from here on what `other`, which goes, gave."""
    node.meta[_TAKEN] = (*taken_in(node), place_of(other), *taken_in(other))


def taken_in(node: fx.Node) -> tuple[Place, ...]:
    """The places of the calls whose values `node` gives in their stead."""
    found: tuple[Place, ...] = node.meta.get(_TAKEN, ())
    return found


def copy_place(source: fx.Node, target: fx.Node) -> None:
    """Let a new node stand for the one it replaces: at its place, with its example."""
    set_place(target, place_of(source))
    target.meta[_TAKEN] = taken_in(source)
    set_example(target, example_of(source))


def set_example(node: fx.Node, value: Any) -> None:
    """Write down what `node` gives for the example inputs; tensors on the meta device."""
    node.meta[_EXAMPLE] = value


def example_of(node: fx.Node) -> Any:
    """What `node` gives for the example inputs, or None where capture could not know."""
    return node.meta.get(_EXAMPLE)


def rank_of(node: fx.Node) -> int | None:
    """How many dimensions `node` gives, where capture knew its shape."""
    example = example_of(node)
    return example.dim() if isinstance(example, torch.Tensor) else None


def describe(node: fx.Node) -> str:
    """A node for an error message: its name, what it calls, and its place."""
    call = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"node '{node.name}' ({node.op} {call}) {place_of(node)}"


def is_user_code(frame: FrameType) -> bool:
    """Whether a frame belongs to neither torch nor the capture."""
    file = frame.f_code.co_filename
    return not file.startswith((*_OWN, "<"))


def caller_place(module: str, capture: CodeType) -> Place:
    """The innermost line of user code that is running now, inside `module`.

    The walk ends where `capture` began: beyond lies whoever called us, who is not to blame.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_code(frame):
        if frame.f_code is capture:
            return Place(module)
        frame = frame.f_back
    if frame is None:
        return Place(module)
    return Place(module, frame.f_code.co_filename, frame.f_lineno)


def raised_at(traceback: TracebackType | None) -> str:
    """`file:line` of the innermost user code that an exception came through."""
    at = "an unknown line"
    while traceback is not None:
        if is_user_code(traceback.tb_frame):
            at = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return at
