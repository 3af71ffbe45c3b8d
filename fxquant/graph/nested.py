"""What arguments and results hold, nested in tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils import _pytree as pytree


def leaves(value: Any) -> list[Any]:
    """Everything that is no container, in order."""
    return pytree.tree_leaves(value)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same containers, with `function` of everything that is none."""
    return pytree.tree_map(function, value)
