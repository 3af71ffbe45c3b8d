"""Whether two modules compute the same, told by running copies of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxquant.errors import CaptureError
from fxquant.graph.modes import evaluating
from fxquant.graph.place import raised_at
from fxquant.graph.spell_out import spelled_out
from fxquant.graph.tensors import copy_of


def largest_differences(
    ours: nn.Module, theirs: nn.Module, inputs: Sequence[Any], modes: Sequence[bool]
) -> Iterator[float]:
    """In each mode (True is train()) the largest difference of any output, as a share of the
    largest output of `theirs`.

    Both run on copies, with the same random numbers. Infinite where outputs have other structures
    or shapes, are NaN in other places, or are no tensors and not equal.
    """
    copies = (copy_of(ours), copy_of(theirs))
    for training in modes:
        results = []
        for module in copies:
            arguments = pytree.tree_map(_copy, list(inputs))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                results.append(pytree.tree_leaves(module.train(training)(*arguments)))
        if len(results[0]) != len(results[1]):
            yield float("inf")
        else:
            yield max((_difference(a, b) for a, b in zip(*results, strict=True)), default=0.0)


def arguments_apart(arguments: Any) -> Any:
    """A copy of what a module is called with, on its own memory and without gradients."""
    return pytree.tree_map(_copy, arguments)


def equal_in_eval(ours: nn.Module, theirs: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether both give the same in eval(), bit for bit, on the device of `ours`."""
    device = next(ours.buffers()).device
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to(device), (args, kwargs))
    with torch.no_grad(), evaluating(ours, theirs):
        results = [pytree.tree_leaves(module(*args, **kwargs)) for module in (ours, theirs)]
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
        for a, b in zip(*results, strict=True)
    )


def check_capture(gm: nn.Module, model: nn.Module, example_inputs: Sequence[Any]) -> str | None:
    """Run `gm` and a copy of `model` on the example inputs, in both modes, and compare.

    Returns why they could not be compared in train(), if so: a batch norm may need more values
    than an example has. Raises CaptureError where they differ: the forward does something that
    its trace does not show, such as asking whether its input is a tensor. Also where the model
    itself cannot run in eval().
    """
    name = type(model).__name__
    differences = largest_differences(model, gm, example_inputs, (False, True))
    for mode in ("eval", "train"):
        try:
            with spelled_out():
                difference = next(differences)
        except Exception as error:
            text = (
                f"{name}.forward cannot run on the example inputs in {mode}(), at "
                f"{raised_at(error.__traceback__)}: {error}"
            )
            if mode == "train":
                return text
            text += "\nWhat to do: pass example_inputs that it runs on."
            raise CaptureError(text) from error
        if difference > 0.0:
            raise CaptureError(
                f"the graph of {name} gives other outputs than the model in {mode}() on the "
                "example inputs.\n"
                "What to do: look for what its forward asks of its inputs besides their values and "
                "shapes (isinstance, attributes); keep that submodule in float (keep_float)."
            )
    return None


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _difference(ours: Any, theirs: Any) -> float:
    if is_dataclass(ours) and type(ours) is type(theirs):
        parts = [(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(ours)]
        return max((_difference(*pair) for pair in parts), default=0.0)
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return 0.0 if ours is theirs or ours == theirs else float("inf")
    if ours.shape != theirs.shape or not torch.equal(ours.isnan(), theirs.isnan()):
        return float("inf")
    if ours.numel() == 0 or torch.equal(ours.nan_to_num(), theirs.nan_to_num()):
        return 0.0
    a, b = ours.double().nan_to_num(), theirs.double().nan_to_num()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def random_like(inputs: Any) -> Any:
    """Inputs of the same shapes with normally distributed numbers; integers as they are."""

    def random(x: Any) -> Any:
        floats = isinstance(x, Tensor) and x.is_floating_point()
        return torch.randn(x.shape, dtype=x.dtype, device=x.device) if floats else x

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pytree.tree_map(random, inputs)
