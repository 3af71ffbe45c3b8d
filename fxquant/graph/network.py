"""A GraphModule that keeps everything its model held, also when it is copied.

torch's own forgets plain attributes in deepcopy, and in deepcopy and in pickles its own name and
the second name of a module or parameter that has two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn


class Network(fx.GraphModule):
    """What fxquant makes of a model, at any stage."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        result = super().__deepcopy__(memo)
        assert isinstance(result, Network)
        # the same copies that torch made, out of the memo
        held = copy.deepcopy(self.__dict__, memo)
        _hand_over(held, result)
        type(result).__name__ = type(self).__name__  # of this instance alone, as fx makes them
        return result

    def __reduce__(self) -> tuple[Callable[..., Network], tuple[Any, ...]]:
        rebuild, arguments = super().__reduce__()
        return _unpickle, (rebuild, arguments, type(self).__name__)


def network(model: nn.Module, graph: fx.Graph) -> Network:
    """The graph over all that `model` holds: its modules, parameters and attributes."""
    gm = Network(model, graph, class_name=type(model).__name__)
    _hand_over(vars(model), gm)
    gm._version = model._version  # what load_state_dict may ask for
    gm.training = model.training
    return gm


def restore(gm: fx.GraphModule, earlier: fx.GraphModule) -> None:
    """Make `gm` what its copy `earlier` is."""
    vars(gm).clear()
    vars(gm).update(vars(earlier))
    gm.graph = earlier.graph  # which also compiles its code anew, for gm


class IntegerNetwork(Network):
    """A converted network: train() leaves it, and any float layer inside, in eval()."""

    def train(self, mode: bool = True) -> IntegerNetwork:
        """Does nothing but eval()."""
        super().train(False)
        return self


def _unpickle(
    rebuild: Callable[..., fx.GraphModule], arguments: tuple[Any, ...], name: str
) -> Network:
    gm = rebuild(*arguments)
    result = Network(gm, gm.graph, class_name=name)
    _hand_over(arguments[0], result)
    return result


def _hand_over(held: dict[str, Any], gm: fx.GraphModule) -> None:
    # the user's own containers, not the empty ones that fx makes on the way to a leaf
    for table in ("_modules", "_parameters", "_buffers"):
        vars(gm)[table].update(held[table])
    gm._non_persistent_buffers_set |= held["_non_persistent_buffers_set"]
    for name, value in held.items():
        if name not in vars(gm):
            setattr(gm, name, value)
