"""The kernel of one layer: the quickest exact way to sum, and the requantization behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.kernels.finish import Finish, FinishByFloor, finish
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.kernels.sums import (
    Found,
    InOneDimension,
    Layer,
    Sums,
    Way,
    float32_sums,
    in_parts,
    in_two_dimensions,
    int8_convolution,
    int8_matmul,
)


@dataclass(frozen=True, eq=False)
class LayerKernel:
    """Codes of another number of dimensions than `dims`, such as one image without a batch, go to
    `otherwise`, and so do those of another device, whose memory oneDNN would read unasked: there
    torch says what is wrong. The channels of its result lie along `axis`.
    """

    sums: Sums
    finish: Finish | FinishByFloor
    dims: int | None
    axis: int
    otherwise: Callable[..., Tensor]
    why: str

    @property
    def name(self) -> str:
        """Of what adds up."""
        return self.sums.name

    def __call__(self, *inputs: Tensor, **settings: Any) -> Tensor:
        """Codes of the input to codes of the output."""
        (codes,) = inputs
        if codes.dim() != (self.dims or codes.dim()) or not codes.is_cpu:
            return self.otherwise(codes, **settings)
        y = self.finish(self.sums(codes))
        if self.axis == -1:
            return y
        return y.permute(0, 3, 1, 2) if self.dims == 4 else y.movedim(-1, self.axis)


def layer_kernel(
    layer: Layer, dtype: torch.dtype, choice: KernelChoice, otherwise: Callable[..., Tensor]
) -> Kernel:
    """The first way that is exact; `otherwise` computes in float64."""
    refusals: list[str] = []
    g = layer.geometry
    flat = g is not None and len(g.stride) == 1
    layer = in_two_dimensions(layer) if flat else layer
    for way in _ways(layer, choice):
        found = in_parts(way, layer)
        if isinstance(found, Found):
            return LayerKernel(
                sums=InOneDimension(found.sums) if flat else found.sums,
                finish=finish(layer.numbers, found.bias, dtype),
                dims=None if g is None else 2 + len(g.stride),
                axis=-1 if g is None else 1,
                otherwise=otherwise,
                why="; ".join(refusals),
            )
        refusals.append(f"no {way.__name__.replace('_', ' ')}: {found.why}")
    return Plain(otherwise, "float64", "; ".join(refusals))


def _ways(layer: Layer, choice: KernelChoice) -> tuple[Way, ...]:
    if choice == "float32":
        return (float32_sums,)
    return (int8_matmul if layer.is_matmul else int8_convolution), float32_sums
