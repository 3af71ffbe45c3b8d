"""The kernel of one layer: the quickest exact way to sum, and the requantization behind it."""

from __future__ import annotations

import operator
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
    """The sums of a layer and what requantizes them, for codes such as it was made for.

    Others go to `otherwise`, where torch says what is wrong, if anything is: codes of another
    number of dimensions than `dims`, such as one image without a batch; on another device, whose
    memory oneDNN would read unasked; of other channels than `channels`, some of which sums in
    parts would leave out; of lengths below `least`, which hold no window. Channels lie along
    `axis`, those of the input and those of the result.
    """

    sums: Sums
    finish: Finish | FinishByFloor
    dims: int | None
    axis: int
    channels: int
    least: tuple[int, ...]
    otherwise: Callable[..., Tensor]
    why: str

    @property
    def name(self) -> str:
        """Of what adds up."""
        return self.sums.name

    def __call__(self, *inputs: Tensor, **settings: Any) -> Tensor:
        """Codes of the input to codes of the output."""
        (codes,) = inputs
        if not self._takes(codes):
            return self.otherwise(codes, **settings)
        y = self.finish(self.sums(codes))
        if self.axis == -1:
            return y
        return y.permute(0, 3, 1, 2) if self.dims == 4 else y.movedim(-1, self.axis)

    def _takes(self, codes: Tensor) -> bool:
        shape = codes.shape
        if not codes.is_cpu or not shape or len(shape) != (self.dims or len(shape)):
            return False
        lengths = shape[2:] if self.least else ()
        return shape[self.axis] == self.channels and all(map(operator.ge, lengths, self.least))


def layer_kernel(
    layer: Layer, dtype: torch.dtype, choice: KernelChoice, otherwise: Callable[..., Tensor]
) -> Kernel:
    """The first way that is exact; `otherwise` computes in float64."""
    refusals: list[str] = []
    g = layer.geometry
    channels, least = layer.weight.shape[1] * (1 if g is None else g.groups), _least(layer)
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
                channels=channels,
                least=least,
                otherwise=otherwise,
                why="; ".join(refusals),
            )
        refusals.append(f"no {way.__name__.replace('_', ' ')}: {found.why}")
    return Plain(otherwise, "float64", "; ".join(refusals))


def _least(layer: Layer) -> tuple[int, ...]:
    """The shortest lengths that hold a window, padding included, which alone is no input."""
    g = layer.geometry
    if g is None:
        return ()
    reaches = zip(g.dilation, layer.weight.shape[2:], g.padding, strict=True)
    return tuple(max(d * (k - 1) + 1 - sum(padding), 1) for d, k, padding in reaches)


def _ways(layer: Layer, choice: KernelChoice) -> tuple[Way, ...]:
    if choice == "float32":
        return (float32_sums,)
    return (int8_matmul if layer.is_matmul else int8_convolution), float32_sums
