"""Nodes grouped by the module, in DARTS by the cell, that they come from.

    'cells.0._ops.1.op.2'   in   'cells.0._ops.1'   in   'cells.0'

An entry of a list is one step with its list. A list that holds only operators, which run one after
the other, is a group itself. A group of one is none, and neither is one that holds all that its
parent holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple


class Groups(NamedTuple):
    """`of` says the group of each node, "" at the top; `parents` that of each group."""

    of: dict[str, str]
    parents: dict[str, str]


def groups_of(modules: Mapping[str, str]) -> Groups:
    """The groups of nodes, given the module path of each."""
    outer = {name: _outer(path) for name, path in modules.items()}
    containers = {path for paths in outer.values() for path in paths}
    sequences = _sequences(list(modules.values())) - {_list(path) for path in containers}
    for name, path in modules.items():
        if _list(path) in sequences:
            outer[name].append(_list(path))
    inside = {
        name: [*outer[name], *([path] if path in containers else [])]
        for name, path in modules.items()
    }
    sizes = Counter(path for paths in inside.values() for path in paths)
    kept: dict[str, list[str]] = {}
    for name, paths in inside.items():
        kept[name] = []
        for path, within in zip(paths, [len(modules), *map(sizes.get, paths)], strict=False):
            if 1 < sizes[path] != within:
                kept[name].append(path)
    parents: dict[str, str] = {}
    for paths in kept.values():
        parents |= dict(zip(paths, ["", *paths], strict=False))
    return Groups({name: paths[-1] if paths else "" for name, paths in kept.items()}, parents)


def _sequences(paths: list[str]) -> set[str]:
    """The lists whose operators stand next to each other: others would make loops of groups."""
    runs = [path for path, _ in groupby(map(_list, paths)) if path]
    return {path for path, count in Counter(runs).items() if count == 1}


def _list(path: str) -> str:
    """The path of the list that `path` is an entry of, or ""."""
    owner, _, entry = path.rpartition(".")
    return owner if entry.isdigit() else ""


def _outer(path: str) -> list[str]:
    """The modules around the one at `path`, from the outside in."""
    steps: list[str] = []
    for step in path.split("."):
        if step.isdigit() and steps:
            steps[-1] += f".{step}"
        else:
            steps.append(step)
    return [".".join(steps[: i + 1]) for i in range(len(steps) - 1)]
