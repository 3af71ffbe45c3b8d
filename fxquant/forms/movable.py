"""Moving and picking elements of a value that a file will compute, in any format of files.

    reflect            gather(index) along each dimension
    largest of cells   gather(cells), then the largest of each

A form that does nothing else is written once for all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

Shape = tuple[int | None, ...]


class Movable(Protocol):
    """A value; `sizes` is its shape where the batch, if it has any size, counts as 1."""

    @property
    def shape(self) -> Shape | None: ...

    @property
    def sizes(self) -> tuple[int, ...]: ...

    def reshape(self, shape: Iterable[int | None]) -> Self: ...

    def permute(self, order: Sequence[int]) -> Self: ...

    def gather(self, index: Any, axis: int = 0) -> Self: ...

    def slice(self, dim: int, start: int | None, end: int | None, step: int = 1) -> Self: ...

    def flip(self, dims: Sequence[int]) -> Self: ...

    def split(self, sizes: Sequence[int], dim: int) -> Sequence[Self]: ...

    def expand(self, shape: Shape, batch: Any = None) -> Self: ...

    def repeat(self, repeats: Shape, batch: Any = None) -> Self: ...

    def largest(self, dims: Sequence[int], keepdim: bool = True) -> Self: ...


V = TypeVar("V", bound=Movable)


def along_axes(x: V, dims: int, index: Callable[[int], Tensor], cells: bool = False) -> V:
    """Pick elements along each of the last `dims` dimensions: `index(axis)` says which. Where they
    are cells it has two dimensions, a cell for each place, and the largest of each is taken.
    """
    rank = len(x.sizes)
    for axis in range(rank - dims, rank):
        x = x.gather(index(axis), axis)
        if cells:
            x = x.largest([axis + 1], keepdim=False)
    return x


def widths_in_order(pad: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of F.pad, which has the last dimension first, in the order of the dimensions."""
    return [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]


def padded_with_copies(x: V, widths: Sequence[tuple[int, int]], mode: str) -> V:
    """Copies of what is there before and behind, along the last dimensions, as torch's F.pad."""
    sizes = x.sizes

    def index(axis: int) -> Tensor:
        places = torch.arange(sizes[axis], dtype=torch.float64)[None]
        width = widths[axis - len(sizes)]
        return torch.nn.functional.pad(places, width, mode)[0].to(torch.int64)

    return along_axes(x, len(widths), index)
