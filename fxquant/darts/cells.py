"""One cell of a final network, built from a genotype.

    s0 ── preprocess0 ── state 0 ─┐
    s1 ── preprocess1 ── state 1 ─┤  state i + 2 = drop(op(state j)) + drop(op(state k))
                                  └─ states in concat ── cat ── out

In a reduction cell the edges from states 0 and 1 have stride 2. After a reduction cell, s0 is
twice as large as s1, and preprocess0 halves it.
"""

import torch
from torch import Tensor, nn

from .genotypes import Genotype
from .operations import OPS, DropPath, FactorizedReduce, Identity, ReLUConvBN

__all__ = ["Cell"]


class Cell(nn.Module):
    """The normal or the reduction cell of a genotype.

    s0 (N, C_prev_prev, ...) and s1 (N, C_prev, H, W) to (N, multiplier * C, H, W), or half as
    high and wide from a reduction cell; `multiplier` is the number of states in the concat.

    Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055.
    """

    def __init__(
        self,
        genotype: Genotype,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        drop_path_prob: float = 0.0,
    ) -> None:
        """`reduction`: this cell halves the map; `reduction_prev`: the cell before did."""
        super().__init__()
        edges = genotype.reduce if reduction else genotype.normal
        self._concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self._indices = tuple(state for _, state in edges)
        self.multiplier = len(self._concat)
        self.preprocess0 = (
            FactorizedReduce(C_prev_prev, C)
            if reduction_prev
            else ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        self._ops = nn.ModuleList(
            OPS[name](C, 2 if reduction and state < 2 else 1, True) for name, state in edges
        )
        self.drop_path = DropPath(drop_path_prob)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        """The outputs of the two cells before, older first, to this cell's output."""
        states: list[Tensor] = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = [*zip(self._ops, self._indices, strict=True)]
        for first, second in zip(edges[::2], edges[1::2], strict=True):
            states.append(self._edge(states, *first) + self._edge(states, *second))
        return torch.cat([states[i] for i in self._concat], dim=1)

    def _edge(self, states: list[Tensor], op: nn.Module, state: int) -> Tensor:
        out: Tensor = op(states[state])
        if isinstance(op, Identity):
            return out
        dropped: Tensor = self.drop_path(out)
        return dropped
