"""Where a node comes from in the user's own code: module path, file and line.

With it, the rank of its tensor where capture knew it. Both live in `node.meta` while a
recipe runs, and nothing that must last depends on them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from types import FrameType, TracebackType

import torch
from torch import fx

_KEY, _RANK = "fxquant_place", "fxquant_rank"
_OWN = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (torch.__file__, os.path.dirname(__file__))
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


def copy_place(source: fx.Node, target: fx.Node) -> None:
    """Let a new node stand for the one it replaces: at its place, with its rank."""
    set_place(target, place_of(source))
    set_rank(target, rank_of(source))


def set_rank(node: fx.Node, rank: int | None) -> None:
    """Write down how many dimensions the tensor that `node` gives has."""
    node.meta[_RANK] = rank


def rank_of(node: fx.Node) -> int | None:
    """How many dimensions `node` gives, where the capture knew its shape."""
    rank = node.meta.get(_RANK)
    return rank if isinstance(rank, int) else None


def describe(node: fx.Node) -> str:
    """A node for an error message: its name, what it calls, and its place."""
    call = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"node '{node.name}' ({node.op} {call}) {place_of(node)}"


def is_user_code(frame: FrameType) -> bool:
    """Whether a frame belongs to neither torch nor fxquant."""
    file = frame.f_code.co_filename
    return not file.startswith((*_OWN, "<"))


def caller_place(module: str) -> Place:
    """The innermost line of user code that is running now, inside `module`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_code(frame):
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
