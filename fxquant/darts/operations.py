"""What stands on the edges of a DARTS cell: one table, and the modules it names.

    separable     relu ── depthwise k x k ── 1 x 1 ── bn        DilConv is one, SepConv is two
    reduce        relu ─┬─ 1 x 1, stride 2 ───────────────┬─ cat ── bn
                        └─ [:, :, 1:, 1:] ─ 1 x 1, stride 2 ┘

Every operation of stride s takes (N, C, H, W) to (N, C, ceil(H/s), ceil(W/s)), odd sizes too.
Module and attribute names are those of the published code, so its checkpoints load.

Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxquant.errors import ConfigError

__all__ = [
    "OPS",
    "DilConv",
    "DropPath",
    "FactorizedReduce",
    "Identity",
    "ReLUConvBN",
    "SepConv",
    "Zero",
]


class ReLUConvBN(nn.Module):
    """relu, convolution, BN: (N, C_in, H, W) to (N, C_out, H', W'), H' as of `nn.Conv2d`."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        """Arguments as of `nn.Conv2d`; `affine` is that of the BN."""
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        out: Tensor = self.op(x)
        return out


def _separable(
    C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, dilation: int, affine: bool
) -> tuple[nn.Module, ...]:
    return (
        nn.ReLU(),
        nn.Conv2d(C_in, C_in, kernel_size, stride, padding, dilation, groups=C_in, bias=False),
        nn.Conv2d(C_in, C_out, 1, bias=False),
        nn.BatchNorm2d(C_out, affine=affine),
    )


class DilConv(nn.Module):
    """A dilated separable convolution: (N, C_in, H, W) to (N, C_out, H', W')."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        affine: bool = True,
    ) -> None:
        """Arguments as of `nn.Conv2d`, for the depthwise one; `affine` is that of the BN."""
        super().__init__()
        self.op = nn.Sequential(
            *_separable(C_in, C_out, kernel_size, stride, padding, dilation, affine)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        out: Tensor = self.op(x)
        return out


class SepConv(nn.Module):
    """Two separable convolutions, the first with the stride: (N, C_in, H, W) to (N, C_out, ...).

    Applying it twice is NASNet's habit, which DARTS kept (arXiv:1707.07012).
    """

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        """Arguments as of `nn.Conv2d`, for the depthwise ones; `affine` is that of the BNs."""
        super().__init__()
        self.op = nn.Sequential(
            *_separable(C_in, C_in, kernel_size, stride, padding, 1, affine),
            *_separable(C_in, C_out, kernel_size, 1, padding, 1, affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        out: Tensor = self.op(x)
        return out


class FactorizedReduce(nn.Module):
    """Halve the map without skipping every other pixel: (N, C_in, H, W) to (N, C_out, H/2, W/2).

    One half of the channels reads the even pixels, the other the odd ones. With H or W odd there
    is one odd pixel too few, where the published code fails; here a row or column of zeros is
    appended, and the output is (H + 1)/2 high. On even sizes no window reaches those zeros, and
    every number is the published one.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        """Each branch gives half of `C_out`, which must be even; `affine` is that of the BN."""
        super().__init__()
        if C_out % 2:
            raise ConfigError(f"FactorizedReduce: expected an even number of channels, got {C_out}")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, ceil(H/2), ceil(W/2))."""
        x = self.relu(x)
        # Padded always, because whether H is odd is not known while tracing.
        odd = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.bn(torch.cat([self.conv_1(x), self.conv_2(odd)], dim=1))
        return out


class Identity(nn.Module):
    """The skip connection. Its own class, because drop path spares it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged."""
        return x


class Zero(nn.Module):
    """No connection: (N, C, H, W) to zeros (N, C, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, stride: int) -> None:
        """`stride` is 2 on the edges that halve the map."""
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        if self.stride == 1:
            return x.mul(0.0)
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class DropPath(nn.Module):
    """While training, drop a sample's whole path with probability `p`; in eval do nothing.

    What stays is divided by 1 - p, so the expectation stays. Same shape out as in, (N, C, H, W).
    No parameters, no buffers. `p` may be changed at any time; training scripts raise it from
    epoch to epoch.

    Source: Larsson et al., FractalNet, ICLR 2017, arXiv:1605.07648; per sample as in NASNet.
    """

    def __init__(self, p: float = 0.0) -> None:
        """`p` is the probability to drop, in [0, 1)."""
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ConfigError(f"DropPath: expected 0 <= p < 1, got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), unchanged in shape."""
        if not self.training or self.p == 0.0:
            return x
        keep = 1.0 - self.p
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        return x / keep * mask

    def extra_repr(self) -> str:
        """The probability, for printing."""
        return f"p={self.p}"


def _conv_7x1_1x7(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


def _skip(C: int, stride: int, affine: bool) -> nn.Module:
    return Identity() if stride == 1 else FactorizedReduce(C, C, affine)


# name -> constructor(C, stride, affine). Pools have no BN here: only the search puts one after.
OPS: Mapping[str, Callable[[int, int, bool], nn.Module]] = MappingProxyType(
    {
        "none": lambda C, stride, affine: Zero(stride),
        "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride, 1),
        "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(
            3, stride, 1, count_include_pad=False
        ),
        "skip_connect": _skip,
        "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine),
        "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine),
        "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine),
        "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine),
        "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine),
        "conv_7x1_1x7": _conv_7x1_1x7,
    }
)
