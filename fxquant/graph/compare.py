"""Whether two modules compute the same, told by running copies of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxquant.graph.tensors import copy_of


def largest_difference(
    ours: nn.Module, theirs: nn.Module, inputs: Sequence[Any], training: bool
) -> float:
    """The largest difference of any output, as a share of the largest output of `theirs`.

    Both run in that mode on copies, with the same random numbers. Infinite where the outputs
    have other structures, shapes or values that are not numbers.
    """
    results = []
    for module in (ours, theirs):
        copied = copy_of(module)
        arguments = pytree.tree_map(_copy, list(inputs))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            results.append(pytree.tree_leaves(copied.train(training)(*arguments)))
    if len(results[0]) != len(results[1]):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(*results, strict=True)), default=0.0)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _difference(ours: Any, theirs: Any) -> float:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return 0.0 if ours is theirs or ours == theirs else float("inf")
    if ours.shape != theirs.shape:
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
