"""What is torch's own, and what is the user's: the one is known, the other has to be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # the tables, hooks and mode


def is_torchs_module(module: nn.Module) -> bool:
    """Whether `module` is of a class in torch.nn."""
    return type(module).__module__.startswith("torch.nn.")


def is_torchs_function(function: Callable[..., Any]) -> bool:
    """Whether `function` is defined in torch."""
    return function.__module__.partition(".")[0] == "torch"


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """What a module holds as plain attributes, besides what every module has."""
    return {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
