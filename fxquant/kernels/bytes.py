"""Tables of functions of one code of one byte, whatever they are: 256 results each.

    q_y = table[q_x]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.schemes import QuantScheme


class ByteTable(NamedTuple):
    """`table` [256]: the result for each byte that a code may be `stored` as, [256]."""

    stored: Tensor
    table: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        """Same shape."""
        # index_select on a flat int32 index is several times faster than table[index]
        index = codes.view(torch.uint8).to(torch.int32)
        return look_up_in(self.table, index)


def look_up_in(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` in the memory order of the index."""
    if index.dim() != 4 or index.is_contiguous():
        return torch.index_select(table, 0, index.flatten()).view(index.shape)
    last = index.movedim(1, -1)  # channels_last, as a rule
    return torch.index_select(table, 0, last.flatten()).view(last.shape).movedim(-1, 1)


def byte_table(function: Callable[[Tensor], Tensor], scheme: QuantScheme) -> ByteTable | None:
    """The table of a function of codes; None where it gives every code back as it is."""
    stored = torch.arange(256).to(torch.uint8).view(scheme.dtype)
    table = function(stored)
    return None if torch.equal(table, stored) else ByteTable(stored, table)
