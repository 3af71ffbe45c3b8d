"""The search network: every edge holds every operation, and learns which one it wants.

    edge     x ─┬─ operation 0 ── × softmax(alphas)[edge, 0] ─┬─ add
                └─ operation k ── × softmax(alphas)[edge, k] ─┘
    cell     state i + 2 = the sum of the edges from all states before it
    network  x ── stem ── cells ── pool ── classifier ── logits

All normal cells share one table of alphas, all reduction cells another. A search steps the
weights on one half of the training images and the alphas on the other; then `genotype()` names
the cells to build and to train from scratch.

Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError

from .genotypes import PRIMITIVES, Edge, Genotype
from .operations import OPS, FactorizedReduce, ReLUConvBN

__all__ = ["MixedOp", "SearchCell", "SearchNetwork", "strongest_edges"]


class MixedOp(nn.Module):
    """One edge: (N, C, H, W) to the weighted sum of all operations, (N, C, H', W').

    H' is H/stride, rounded up. Unlike in a final network a BN follows each pool, so that the
    weights compare like with like; no BN is affine, so that no scale competes with the weights.
    """

    def __init__(self, C: int, stride: int, primitives: Sequence[str] = PRIMITIVES) -> None:
        """One operation for each name in `primitives`, in that order."""
        super().__init__()
        self._ops = nn.ModuleList(_operation(name, C, stride) for name in primitives)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """`weights` (operations,), one for each; they need not add up to one."""
        # By index, because plain torch.fx cannot iterate over a tensor.
        out: Tensor = reduce(add, (weights[k] * op(x) for k, op in enumerate(self._ops)))
        return out


def _operation(name: str, C: int, stride: int) -> nn.Module:
    op = OPS[name](C, stride, False)
    return nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if "pool" in name else op


class SearchCell(nn.Module):
    """A cell of all edges: s0 (N, C_prev_prev, ...), s1 (N, C_prev, H, W) to (N, nodes * C, H, W).

    Half as high and wide from a reduction cell.
    """

    def __init__(
        self,
        nodes: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        primitives: Sequence[str] = PRIMITIVES,
    ) -> None:
        """`reduction`: this cell halves the map; `reduction_prev`: the cell before did."""
        super().__init__()
        self.reduction = reduction
        self.nodes = nodes
        self.preprocess0 = (
            FactorizedReduce(C_prev_prev, C, affine=False)
            if reduction_prev
            else ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._ops = nn.ModuleList(
            MixedOp(C, 2 if reduction and state < 2 else 1, primitives)
            for node in range(nodes)
            for state in range(node + 2)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """`weights` (edges, operations), the edges of the first node first."""
        states: list[Tensor] = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(self.nodes):
            first = _edges_before(node)
            states.append(
                reduce(
                    add,
                    (
                        self._ops[first + state](x, weights[first + state])
                        for state, x in enumerate(states)
                    ),
                )
            )
        return torch.cat(states[2:], dim=1)


class SearchNetwork(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes), by the cells still to be found.

    The paper searches with C=16, layers=8 on CIFAR. An optimizer takes `weight_parameters()`,
    another one `arch_parameters()`; `parameters()` are both.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        nodes: int = 4,
        primitives: Sequence[str] = PRIMITIVES,
        in_channels: int = 3,
        stem_multiplier: int = 3,
    ) -> None:
        """`C` channels in the first cell's nodes; `nodes` in every cell, two edges each at last."""
        super().__init__()
        if layers < 3:
            raise ConfigError(
                f"layers: expected at least 3, got {layers}; "
                "cells layers // 3 and 2 * layers // 3 are reduction cells, after a normal one"
            )
        sizes = {"C": C, "num_classes": num_classes, "nodes": nodes, "in_channels": in_channels}
        for name, value in {**sizes, "stem_multiplier": stem_multiplier}.items():
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        _check_primitives(primitives)
        self.primitives = tuple(primitives)

        C_stem = stem_multiplier * C
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, C_stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(C_stem),
        )
        cells: list[nn.Module] = []
        C_prev_prev, C_prev, reduction_prev = C_stem, C_stem, False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            if reduction:
                C *= 2
            cells.append(
                SearchCell(nodes, C_prev_prev, C_prev, C, reduction, reduction_prev, primitives)
            )
            C_prev_prev, C_prev, reduction_prev = C_prev, nodes * C, reduction
        self.cells = nn.ModuleList(cells)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)

        # Nearly equal, so that the search starts undecided.
        shape = _edges_before(nodes), len(primitives)
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(shape))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, num_classes)."""
        normal, reduction = self.alphas_normal.softmax(-1), self.alphas_reduce.softmax(-1)
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduction if cell.reduction else normal)
        logits: Tensor = self.classifier(self.global_pooling(s1).flatten(1))
        return logits

    def arch_parameters(self) -> list[nn.Parameter]:
        """The alphas, (edges, operations): of normal cells, of reduction cells."""
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but the alphas."""
        alphas = {id(alpha) for alpha in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in alphas]

    def genotype(self) -> Genotype:
        """The cells that the alphas prefer now: see `strongest_edges`."""
        normal, reduction = (strongest_edges(a, self.primitives) for a in self.arch_parameters())
        states = range(2, 2 + len(normal) // 2)
        return Genotype(normal, states, reduction, states)


def strongest_edges(alphas: Tensor, primitives: Sequence[str] = PRIMITIVES) -> tuple[Edge, ...]:
    """The two strongest edges into every node, the stronger first: DARTS' rule for one cell.

    `alphas` (edges, operations), the edges of the first node first. An edge is as strong as the
    best of its operations after the softmax, and that is the operation it gets. `none` takes its
    share of the softmax but is never chosen. Of equals the earlier state, or operation, wins.
    """
    _check_primitives(primitives)
    nodes = _nodes_with(len(alphas)) if alphas.dim() == 2 else 0
    if not nodes or alphas.shape[1] != len(primitives):
        raise ConfigError(
            f"alphas: expected 2, 5, 9, 14, ... edges and {len(primitives)} operations, "
            f"got the shape {tuple(alphas.shape)}"
        )
    if not alphas.isfinite().all():
        raise ConfigError("alphas: some are infinite or not a number; did the search diverge?")
    # In float64, so that rounding makes no equals.
    table: list[list[float]] = alphas.detach().double().softmax(-1).tolist()
    allowed = [k for k, name in enumerate(primitives) if name != "none"]
    best = [max(allowed, key=row.__getitem__) for row in table]
    edges: list[Edge] = []
    for node in range(nodes):
        first = _edges_before(node)
        strength = [table[first + state][best[first + state]] for state in range(node + 2)]
        # sorted keeps the order of equals, reversed or not
        strongest = sorted(range(node + 2), key=strength.__getitem__, reverse=True)
        edges += [(primitives[best[first + state]], state) for state in strongest[:2]]
    return tuple(edges)


def _edges_before(node: int) -> int:
    """The edges into all nodes before `node`: 2 into node 0, 3 into node 1, ..."""
    return node * (node + 3) // 2


def _nodes_with(edges: int) -> int:
    """The number of nodes that have so many edges; 0 if none has."""
    return next((n for n in range(1, edges) if _edges_before(n) == edges), 0)


def _check_primitives(primitives: Sequence[str]) -> None:
    unknown = [name for name in primitives if name not in OPS]
    if unknown:
        known = ", ".join(OPS)
        raise ConfigError(f"primitives: unknown operation {unknown[0]!r}, expected {known}")
    if len(set(primitives)) < len(primitives):
        raise ConfigError(f"primitives: expected each operation once, got {', '.join(primitives)}")
    if not set(primitives) - {"none"}:
        raise ConfigError("primitives: expected one operation at least besides 'none'")
