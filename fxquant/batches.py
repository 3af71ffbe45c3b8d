"""What data loaders give, as the arguments of a network; what cannot be used is refused.

    (images, labels), (images, labels), …  ──  (images,), (images,), …
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import DataError, FxQuantError
from fxquant.fields import is_number


def arguments(
    gm: fx.GraphModule, batches: Iterable[Any], count: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """The arguments of `gm` of each batch, or of the first `count`: a tensor, or what a tuple or a
    list begins with (labels behind them are left out).

    Raises DataError where a batch is empty, holds NaN or infinity or too few arguments, where there
    is none, and for what holds no batches.
    """
    takes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    needs = sum(not node.args for node in takes)  # those without a default
    number = -1
    for number, batch in enumerate(islice(each(batches), count)):
        if not isinstance(batch, (Tensor, tuple, list)):
            raise DataError(
                f"batch {number} is a {type(batch).__name__}.\nWhat to do: give tensors, or tuples "
                "that begin with the arguments of the network."
            )
        inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch[: len(takes)])
        if len(inputs) < needs:
            raise DataError(
                f"batch {number} holds {len(inputs)} of {needs} arguments.\n"
                "What to do: give tuples that begin with the arguments of the network."
            )
        for x in inputs:
            if isinstance(x, Tensor):
                _check(x, number)
        yield inputs
    if number < 0:
        raise DataError(
            "there is no batch to measure on.\n"
            "What to do: hand in a list or a DataLoader; a generator gives its batches only once."
        )


def each(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, one after another; DataError where there can be none."""
    try:
        return iter(batches)
    except TypeError as error:
        raise DataError(
            f"batches are many, as of a list or a DataLoader, not a {type(batches).__name__}.\n"
            "What to do: put a single batch into a list."
        ) from error


def _check(x: Tensor, number: int) -> None:
    if x.is_meta or x.is_complex():
        raise DataError(
            f"batch {number} holds no real numbers: {x.dtype} on '{x.device}'.\n"
            "What to do: give what the float network takes."
        )
    if x.numel() == 0:
        raise DataError(
            f"batch {number} is empty: there is nothing to measure on it.\n"
            "What to do: leave empty batches out."
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise DataError(
            f"batch {number}, of shape {tuple(x.shape)}, holds NaN or infinity.\n"
            "What to do: leave it out, or look where it comes from."
        )


@contextmanager
def named(inputs: tuple[Any, ...], number: int) -> Iterator[None]:
    """Around a run of a network: what fails there is an error that names the batch."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{_said(inputs, number)}: {error}") from error
    except FxQuantError:
        raise
    except Exception as error:
        raise DataError(
            f"{_said(inputs, number)}: {error}.\n"
            "What to do: give batches that the float network takes, too."
        ) from error


def _said(inputs: tuple[Any, ...], number: int) -> str:
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
    which = f"batch {number}, of shape {shapes}," if shapes else f"batch {number}"
    return f"{which} does not run"


def part_of(batches: Iterable[Any], share: float) -> int | None:
    """How many batches, at least one, are so large a share of all; None for all of them."""
    if not is_number(share) or not 0.0 < share <= 1.0:
        raise DataError(
            f"share lies in (0, 1], got {share!r}.\nWhat to do: give 0.05 for 5 % of the batches."
        )
    if share == 1.0:
        return None
    if not isinstance(batches, Sized):
        raise DataError(
            f"share={share} needs data that knows its length, got a {type(batches).__name__}.\n"
            "What to do: give a list or a DataLoader, or as many batches as are wanted."
        )
    return math.ceil(share * len(batches))
