"""A GraphModule that keeps everything its model held, also when it is copied.

torch's own forgets plain attributes in deepcopy, and in deepcopy and in pickles its own name and
the second name of a module or parameter that has two.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from fxquant.graph.tensors import copies_of_nothing, tensors_tied

_MODEL_CLASS = "_fxquant_model_class"


class Network(fx.GraphModule):
    """What fxquant makes of a model, at any stage.

    Methods and class attributes of the model's own class are found on it, too, bound to it: a
    search loop goes on calling `arch_parameters()`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            of_model = _class_attribute(vars(self).get(_MODEL_CLASS), name)
            if of_model is None:
                raise
        bind = getattr(type(of_model), "__get__", None)
        return of_model if bind is None else bind(of_model, self, type(self))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # what .to() and .cuda() are made of: alphas stay leaves, in buffers and lists alike
        with tensors_tied(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __copy__(self) -> Network:
        """Another network over the same modules and parameters, as copies of modules are."""
        own_class = type(self).__bases__[0]  # torch.fx makes a class of its own for each instance
        result = own_class(self, self.graph, class_name=type(self).__name__)
        assert isinstance(result, Network)
        _hand_over(vars(self), result)
        result.training = self.training
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        memo.update(copies_of_nothing(self))
        result = super().__deepcopy__(memo)
        assert isinstance(result, Network)
        # the same copies that torch made, out of the memo
        held = copy.deepcopy(self.__dict__, memo)
        _hand_over(held, result)
        type(result).__name__ = type(self).__name__  # of this instance alone, as fx makes them
        return result

    def __reduce__(self) -> tuple[Callable[..., Network], tuple[Any, ...]]:
        rebuild, arguments = super().__reduce__()
        model_class = arguments[0].get(_MODEL_CLASS)
        if model_class is not None and not _can_be_imported(model_class):
            del arguments[0][_MODEL_CLASS]  # a pickle names classes, and no name leads to this one
        return _unpickle, (rebuild, arguments, type(self).__name__)


def network(model: nn.Module, graph: fx.Graph, name: str | None = None) -> Network:
    """The graph over all that `model` holds: its modules, parameters and attributes."""
    gm = Network(model, graph, class_name=name or type(model).__name__)
    _hand_over(vars(model), gm)
    if not isinstance(model, fx.GraphModule):
        borrow_methods(gm, type(model))
    gm._version = model._version  # what load_state_dict may ask for
    gm.training = model.training
    return gm


def borrow_methods(gm: Network, model_class: type) -> None:
    """Let methods and class attributes of the user's class be found on `gm`."""
    setattr(gm, _MODEL_CLASS, model_class)


def _can_be_imported(model_class: type) -> bool:
    found: Any = sys.modules.get(model_class.__module__)
    for name in model_class.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is model_class


def _class_attribute(model_class: type | None, name: str) -> Any:
    """What the user's class, or one of its bases that are not torch's, holds under `name`."""
    for base in () if model_class is None else model_class.__mro__:
        if base is nn.Module:
            break
        if name in vars(base):
            return vars(base)[name]
    return None


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
    with torch.enable_grad():  # torch.fx traces anew, and a trace under no_grad is refused
        gm = rebuild(*arguments)
    result = Network(gm, gm.graph, class_name=name)
    _hand_over(arguments[0], result)
    return result


def _hand_over(held: dict[str, Any], gm: fx.GraphModule) -> None:
    # the user's own containers, not the empty ones that fx makes on the way to a leaf; and in their
    # order, by which optimizers know the state of parameters
    for table in ("_modules", "_parameters", "_buffers"):
        made = vars(gm)[table]
        ordered = held[table] | {name: made[name] for name in made if name not in held[table]}
        made.clear()
        made.update(ordered)
    gm._non_persistent_buffers_set |= held["_non_persistent_buffers_set"]
    for name, value in held.items():
        if name not in vars(gm):
            setattr(gm, name, value)
