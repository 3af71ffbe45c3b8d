"""Converted networks against plain integers, against the real operators, and against eval().

    quantized ── every activation ── tests/reference.py       integer for integer
    prepared  ── every operator ──── the real operator        within half a step of its output

The first finds a kernel that computes something else than its numbers say; the second finds
numbers that are wrong, which eval() and `convert` would share.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import called_module
from fxquant.observers import Observer
from fxquant.ops import OPS
from fxquant.ops.new_zeros import NEW_ZEROS
from fxquant.ops.zero import ZERO
from fxquant.schemes import QParams
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import sites
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from tests import reference

CONFIGS = {
    "default": QuantConfig(),
    "fold": QuantConfig(batch_norm="fold"),
    "equalize": QuantConfig(batch_norm="fold", equalize=True),
    "signed": QuantConfig(activation=QuantScheme(signed=True, symmetric=False)),
    "symmetric": QuantConfig(activation=QuantScheme(), weight=QuantScheme()),
    "4 bits": QuantConfig(
        activation=QuantScheme(bits=4, signed=False, symmetric=False),
        weight=QuantScheme(bits=4, narrow=True, per_channel=True),
    ),
}

ROUNDINGS = {
    name: QuantConfig(rounding=name)
    for name in ("half_even", "half_away", "gemmlowp", "ruy", "fp32_rne")
}


# ------------------------------------------------------------------------ networks


def convs() -> nn.Module:
    """Groups, dilation, strides, asymmetric kernels, all spellings of padding."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 12, (1, 7), padding=(0, 3), groups=4),
        nn.Conv2d(12, 6, (7, 1), padding=(3, 0), stride=(1, 2)),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 12, (3, 2), padding="same", dilation=(1, 2), groups=6),
        nn.ReLU6(),
        nn.Conv2d(12, 5, 2, padding="valid"),
        nn.Hardtanh(-0.2, 0.3),
    )


def convs_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3, padding=1, stride=2, dilation=2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Conv1d(6, 6, 5, padding="same", groups=6),
    )


def convs_3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, (1, 3, 2), padding=(0, 1, 1), stride=(2, 1, 2)),
        nn.BatchNorm3d(4),
        nn.Conv3d(4, 4, 3, padding=1, groups=2),
    )


def uneven(model: nn.Module) -> nn.Module:
    """The same with larger weights, a factor of up to 8 apart, so that values reach a ReLU6's 6."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            factors = torch.logspace(0.2, 1.1, len(module.weight))
            module.weight.data *= factors.reshape(-1, *[1] * (module.weight.dim() - 1))
    return model


def transposed() -> nn.Module:
    """Groups, dilation, strides that leave gaps, output padding; batch norms behind."""
    return uneven(nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.ConvTranspose2d(6, 6, (2, 3), stride=(3, 1), padding=(0, 2), dilation=(2, 1), groups=6),
        nn.ReLU6(),
        nn.ConvTranspose2d(6, 4, 1, output_padding=(1, 0), stride=(2, 1)),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 3),
    ))


def transposed_1d() -> nn.Module:
    """As many channels in as out: nothing but numbers tells the axes apart."""
    return nn.Sequential(
        nn.ConvTranspose1d(4, 4, 4, stride=2, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.ConvTranspose1d(4, 4, 3, stride=3, padding=2, output_padding=2, dilation=2, groups=2),
    )


def transposed_3d() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose3d(
            2, 4, (1, 3, 2), (2, 1, 2), padding=(0, 1, 0), output_padding=(1, 0, 1), groups=2
        ),
        nn.BatchNorm3d(4),
        nn.ConvTranspose3d(4, 2, (2, 1, 2), bias=False),
    )


def separable() -> nn.Module:
    """Clamps between layers of uneven ranges: to equalize them takes limits per channel.

    Images as wide as there are channels, 6: then an axis may be taken for the other.
    """
    return uneven(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(),
        nn.Conv2d(8, 6, 1),
        nn.Hardtanh(-0.5, 0.25),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Hardtanh(-0.25, 0.5),
        nn.Linear(5, 4),
    ))


class Residual(nn.Module):
    """A sum whose operands, and what is beside it in a concat, must keep one scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.beside, self.last = nn.ConvTranspose2d(6, 4, 1, groups=2), nn.Conv2d(10, 4, 3)
        uneven(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        y = torch.relu(self.inside(x) + x)
        return self.last(torch.cat([y, F.relu6(self.beside(y))], 1))


def linears() -> nn.Module:
    """On [N, T, I]: the batch norm counts T as channels, so it stays on its own."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.BatchNorm1d(7), nn.Linear(5, 4)
    )


class Pools(nn.Module):
    """Every setting of a pool that moves its windows or their divisors."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, max_pool, avg_pool, adaptive = (
            getattr(nn, f"{name}{dims}d")
            for name in ("Conv", "MaxPool", "AvgPool", "AdaptiveAvgPool")
        )
        self.layer = conv(2, 4, 3, padding=1)
        self.branches = nn.ModuleList(
            [
                max_pool(3, stride=2, padding=1, ceil_mode=True),
                max_pool(2, stride=1, dilation=2),
                avg_pool(3, stride=2, padding=1, count_include_pad=False),
                avg_pool(3, stride=2, padding=1, count_include_pad=True),
                avg_pool(2, stride=3, padding=1, ceil_mode=True, count_include_pad=False),
                avg_pool(3, stride=2, padding=1, ceil_mode=True, count_include_pad=True),
                avg_pool(2),
                adaptive(1),
                adaptive(3),
            ]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.layer(x)
        return tuple(branch(x) for branch in self.branches)


class Means(nn.Module):
    """Two axes that differ, no stride given, a divisor of one's own, an axis left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        return (
            F.avg_pool2d(x, (2, 3), padding=(1, 0), divisor_override=7),
            F.avg_pool2d(x, (3, 2), (1, 2), (0, 1), count_include_pad=False),
            F.max_pool2d(x, (3, 2), padding=(1, 0)),
            F.adaptive_avg_pool2d(x, (None, 4)),
            F.adaptive_avg_pool2d(x, (5, 2)),
            x.mean((2, 3)),
            x.sum((2, 3)),
            torch.sum(x, 1, keepdim=True),
            x.sum(),
            torch.mean(x, 1, keepdim=True),
            x.mean(),
        )


class Readers(nn.Module):
    """Clamps beside other readers of one value, clamps with no rival, a chain of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fused = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU6())
        self.relu6, self.hardtanh = nn.ReLU6(), nn.Hardtanh(-0.3, 0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        y = self.fused(x)
        chain = self.relu6(x) + self.hardtanh(x) + torch.clamp(x, min=-0.1) + torch.relu(x)
        return torch.relu(chain + y), F.hardtanh(y + x, -0.25, 0.5), x.clamp(max=0.1)


class Joined(nn.Module):
    """Three ranges side by side; batch norms that have no layer to go into."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.after_cat, self.after_pool = nn.BatchNorm2d(9), nn.BatchNorm2d(9)
        self.pool = nn.AvgPool2d(2)
        nn.init.normal_(self.wide.weight, 0, 1)
        nn.init.normal_(self.narrow.weight, 0, 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.wide(x), self.narrow(x), x], dim=1)
        return self.after_cat(joined), torch.relu(self.after_pool(self.pool(joined)))


class Mixed(nn.Module):
    """Mixed operations: weights from parameters, also negative ones, sums of sums, a bare term."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)])
        self.alphas = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.softmax(self.alphas, -1)
        y = sum(w * op(x) for w, op in zip(rows[0], self.ops, strict=True))
        y = sum(op(y) * -w for w, op in zip(rows[1], self.ops, strict=True)) + x
        return torch.cat([y, y.new_zeros(y.shape[0], 1, *y.shape[2:]), torch.zeros_like(x)], 1)


class Gated(nn.Module):
    """Operations weighed by a softmax of the input itself, which has 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3)
        self.ops = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        w = torch.softmax(self.gate(x.mean((2, 3))), 1)[:, :, None, None, None]
        return sum(op(x) * w[:, i] for i, op in enumerate(self.ops))


class Constants(nn.Module):
    """Padding with numbers, some clamped, negative padding, zeros, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)
        self.pad, self.zero_pad = nn.ConstantPad2d((1, 2, 0, 1), 0.4), nn.ZeroPad2d(1)
        self.offset = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        padded = F.pad(x, (0, 1, 2, 0, 1, 1), value=-0.7), F.relu6(F.pad(x, (2, -1), value=-3.0))
        cropped = F.pad(x, (-1, 1, 0, -2)) + self.offset
        return self.last(self.pad(x)), self.zero_pad(x), x.mul(0.0) + x, *padded, cropped


class Moves(nn.Module):
    """Elements that change places, and shapes computed from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 8, 1), nn.Linear(6, 3)
        self.shuffle, self.flatten = nn.ChannelShuffle(2), nn.Flatten(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        N, C, H, W = x.shape
        shuffled = x.view(N, 4, C // 4, H, W).transpose(1, 2).contiguous().view(N, -1, H, W)
        left, right = shuffled.chunk(2, dim=1)
        y = torch.cat([self.shuffle(left), right[:, :2]], 1)
        first, second = torch.split(self.flatten(y), 4, dim=1)
        z = F.pixel_shuffle(x, 2).permute(0, 2, 3, 1).unsqueeze(1).squeeze(1)
        return self.last(x.flip((2, 3))), first, second.narrow(2, 1, 3), z, x.flatten(1)


class Functions(nn.Module):
    """Every function that is a table, some clamped, some between layers; softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.between = nn.Sequential(
            nn.Hardswish(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1)
        )
        self.leaky = nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        y = self.between(x)
        return (
            torch.exp(x), x.sigmoid(), torch.tanh(y), F.relu(torch.tanh(x)), F.gelu(x),
            F.gelu(y, approximate="tanh"), F.hardsigmoid(x), F.hardtanh(F.elu(y, 0.8), -0.3, 2.0),
            self.leaky(y), torch.softmax(x, 1), F.softmax(y.flatten(2), dim=-1),
        )


class Arithmetic(nn.Module):
    """Products, differences, plain numbers on either side; a gate, parameters, clamps behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.SiLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid()
        )
        self.scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = self.conv(x), self.other(x)
        excited = a * self.squeeze(a)
        return (
            excited + b, a * self.scale, F.relu(a * b), torch.relu(a - excited), a[:, :1] - b,
            2 * a - 1.5, F.hardtanh(0.25 - b, -0.5, 0.5), -b, b / 3 + 0.01, (a * -0.3).relu(),
            b * b, a / (torch.sigmoid(b) + 0.5), F.hardtanh(b / (excited.sigmoid() - 2), -0.5, 0.1),
        )


class Attention(nn.Module):
    """Two heads over T tokens: products of activations, softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)
        self.mix = nn.Parameter(torch.randn(5, 5))
        uneven(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        joined = self.qkv(x)
        N, T, _ = joined.shape
        q, k, v = joined.view(N, T, 2, 12).transpose(1, 2).chunk(3, dim=3)
        weights = torch.softmax(q @ k.transpose(2, 3) * 0.5, dim=-1)
        heads = torch.matmul(weights, v).transpose(1, 2).reshape(N, T, 8)
        return self.out(heads) + x, F.relu(torch.matmul(self.mix, x))


class Norms(nn.Module):
    """Norms over rows, groups, channels and places, with and without weights, some clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.rows, self.planes = nn.LayerNorm(5), nn.LayerNorm((6, 5), elementwise_affine=False)
        self.between = nn.Sequential(nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.group, self.channels = nn.GroupNorm(2, 6, affine=False), nn.LayerNorm(6, bias=False)
        self.instance, self.other = nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(4)
        self.rms, self.wide = nn.RMSNorm(5), nn.RMSNorm((6, 6, 5), eps=0.1)
        for module in self.modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.RMSNorm)):
                for parameter in module.parameters():
                    nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        y = self.between(x)
        channels_last = self.channels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (
            self.rows(x), self.planes(x), self.group(x), torch.relu(channels_last),
            F.hardtanh(self.instance(x), -0.5, 1.0), self.other(y), self.rms(x), self.wide(x),
            F.normalize(x), F.relu(F.normalize(y, dim=-1, eps=1.0)),
        )


MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Resized(nn.Module):
    """Every way to resize. Factors of 2 and 4, whose weights are exact, so that what is not
    rounded once would show; other factors are in tests/ops/test_interpolate.py.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.layer = getattr(nn, f"Conv{dims}d")(2, 4, 3, padding=1)
        self.linear = MODES[dims]
        self.up = nn.Upsample(scale_factor=2, mode=self.linear)
        self.last = getattr(nn, f"Conv{dims}d")(4, 2, 1)
        self.dims = dims

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.layer(x)
        small = F.interpolate(x, scale_factor=0.5, mode=self.linear)
        corners = [2 * (size - 1) + 1 for size in x.shape[2:]]
        return (
            self.last(self.up(x)), small, F.interpolate(small, size=x.shape[2:], mode=self.linear),
            F.interpolate(x, corners, mode=self.linear, align_corners=True),
            F.interpolate(x, size=(3, 11, 5)[: self.dims]), F.interpolate(x, scale_factor=1.7),
            F.interpolate(x, scale_factor=1.3, mode="nearest-exact", recompute_scale_factor=True),
        )


class Copies(nn.Module):
    """Padding with copies, on its own and in convolutions; elements that change places."""

    def __init__(self) -> None:
        super().__init__()
        modes = ("reflect", "replicate", "circular")
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 3, 3, padding=(1, 2), stride=(1, 2), padding_mode=m) for m in modes[:2]),
            nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2), padding_mode="circular"),
            nn.BatchNorm2d(4), nn.ReLU(),
        )
        self.reflect, self.repeat = nn.ReflectionPad2d((1, 0, 2, 1)), nn.ReplicationPad2d(2)
        self.circular, self.shuffle = nn.CircularPad2d((0, 3, 1, 0)), nn.ChannelShuffle(2)
        self.larger, self.smaller = nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.layers(x)
        return (
            y, self.reflect(y), self.repeat(y), self.circular(y),
            F.pad(y.flatten(2), (1, 2), mode="replicate"), F.pixel_unshuffle(self.larger(y), 4),
            self.shuffle(self.smaller(self.larger(y))),
        )


class Slopes(nn.Module):
    """Slopes of either sign, for each channel and for all; fixed statistics; largest of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.each, self.one = nn.PReLU(4), nn.PReLU(init=1.7)
        self.last = nn.Linear(4, 3)
        nn.init.normal_(self.each.weight)
        self.register_buffer("mean", torch.randn(4) / 4)
        self.register_buffer("var", torch.rand(4) + 0.1)
        self.gamma = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.batch_norm(self.conv(x), self.mean, self.var, self.gamma, eps=0.03)
        y = F.prelu(self.other(self.each(x)), self.one.weight)
        pooled = F.adaptive_max_pool2d(y, 1).flatten(1)
        flat = F.batch_norm(y, self.mean, self.var).flatten(2)
        return (
            self.last(pooled), self.one(pooled), F.relu(self.each(y)),
            F.adaptive_max_pool1d(flat, 5), F.adaptive_max_pool2d(x, (2, 3)),
            F.adaptive_max_pool3d(y.unsqueeze(1), (3, 1, 2)),
        )


class Rows(nn.Module):
    """Rows of a table that is computed, picked by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)
        self.register_buffer("indices", torch.tensor([[0, 3, 1], [3, 3, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(F.embedding(self.indices, self.layer(x).flatten(0, 1)))


def darts() -> nn.Module:
    return NetworkCIFAR(4, 10, 4, DARTS_V2)


def resnet18() -> nn.Module:
    return _torchvision().resnet18(num_classes=10)


def mobilenet_v2() -> nn.Module:
    return _torchvision().mobilenet_v2(num_classes=10)


def _torchvision() -> Any:
    """Its networks. It may be there and not import: beside another torch than it was built for."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return models


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convs": (convs, (3, 15, 14)),
    "convs_1d": (convs_1d, (3, 17)),
    "convs_3d": (convs_3d, (2, 5, 6, 7)),
    "transposed": (transposed, (3, 9, 8)),
    "transposed_1d": (transposed_1d, (4, 7)),
    "transposed_3d": (transposed_3d, (2, 3, 4, 3)),
    "separable": (separable, (3, 7, 6)),
    "residual": (Residual, (3, 6, 5)),
    "linears": (linears, (7, 6)),
    "pools_1d": (lambda: Pools(1), (2, 10)),  # 10: ceil_mode makes a window more
    "pools_2d": (lambda: Pools(2), (2, 11, 8)),
    "pools_3d": (lambda: Pools(3), (2, 7, 8, 5)),
    "means": (Means, (3, 9, 7)),
    "readers": (Readers, (3, 6, 5)),
    "joined": (Joined, (3, 8, 9)),
    "mixed": (Mixed, (3, 6, 5)),
    "gated": (Gated, (3, 6, 5)),
    "constants": (Constants, (3, 5, 6)),
    "moves": (Moves, (4, 4, 6)),
    "functions": (Functions, (3, 6, 5)),
    "arithmetic": (Arithmetic, (3, 6, 5)),
    "attention": (Attention, (5, 6)),
    "norms": (Norms, (3, 6, 5)),
    "resized_1d": (lambda: Resized(1), (2, 8)),
    "resized_2d": (lambda: Resized(2), (2, 6, 4)),
    "resized_3d": (lambda: Resized(3), (2, 4, 6, 2)),
    "copies": (Copies, (3, 12, 16)),
    "slopes": (Slopes, (3, 7, 6)),
    "rows": (Rows, (4, 5)),
}
LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "darts": (darts, (3, 16, 16)),
    "resnet18": (resnet18, (3, 32, 32)),
    "mobilenet_v2": (mobilenet_v2, (3, 32, 32)),
}


class Case(NamedTuple):
    """A prepared network that has seen data, and what it converts to."""

    prepared: fx.GraphModule
    quantized: fx.GraphModule
    shape: tuple[int, ...]

    def inputs(self, batch: int, seed: int = 0) -> Tensor:
        """Normal numbers off centre, some far outside of what the ranges have seen."""
        x = random_inputs(batch, self.shape, seed)
        x[..., 0] *= 5
        return x


def random_inputs(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator) + 0.3


def settle_batch_norms(model: nn.Module) -> None:
    """Scales of both signs and one of 0; statistics that soon follow the data."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum, module.eps = 0.7, 0.02
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, 0, 0.3)
            with torch.no_grad():
                module.weight[0] = 0.0


def prepare(
    build: Callable[[], nn.Module], shape: tuple[int, ...], config: QuantConfig
) -> fx.GraphModule:
    """The network with random parameters, its ranges set by three batches; in train()."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        settle_batch_norms(model)
    example = random_inputs(2, shape, 0)
    prepared = fxquant.prepare_qat(model.train(), example, config).train()
    with torch.no_grad():
        for seed in range(3):
            prepared(random_inputs(4, shape, seed))
    return prepared


@functools.cache
def case(name: str, config: str) -> Case:
    """One network under one configuration, made once; its tests only evaluate it."""
    build, shape = (SMALL | LARGE)[name]
    prepared = prepare(build, shape, (CONFIGS | ROUNDINGS)[config])
    return Case(prepared.eval(), fxquant.convert(prepared), shape)


SMALL_CASES = [(name, config) for name in SMALL for config in CONFIGS]
LARGE_CASES = [
    ("darts", "default"),
    ("darts", "equalize"),
    ("darts", "signed"),
    ("resnet18", "default"),
    ("resnet18", "fold"),
    ("mobilenet_v2", "default"),
    ("mobilenet_v2", "symmetric"),
    ("mobilenet_v2", "4 bits"),
]
ROUNDING_CASES = [(name, rounding) for name in SMALL for rounding in ROUNDINGS]
rounding_cases = pytest.mark.parametrize(("name", "rounding"), ROUNDING_CASES)
small_cases = pytest.mark.parametrize(("name", "config"), SMALL_CASES)
every_case = pytest.mark.parametrize(("name", "config"), SMALL_CASES + LARGE_CASES)


# ------------------------------------------------------------------------ against integers


def activations(gm: fx.GraphModule, x: Tensor) -> dict[str, Any]:
    """What every node gives, by node name."""
    interpreter = fx.Interpreter(gm, garbage_collect_values=False)
    interpreter.run(x)
    return {node.name: value for node, value in interpreter.env.items()}


def assert_equals_reference(quantized: fx.GraphModule, x: Tensor) -> None:
    expected, found = reference.run(quantized, x), activations(quantized, x)
    assert found.keys() == expected.keys()
    wrong = {name: reference.differences(expected[name], found[name]) for name in expected}
    assert not any(wrong.values()), {name: count for name, count in wrong.items() if count}
    for node in quantized.graph.nodes:
        module = called_module(quantized, node)
        if isinstance(module, (Quantize, IntegerOp)):
            assert found[node.name].dtype is module.scheme.dtype


@every_case
def test_every_activation_is_the_reference(name: str, config: str):
    _, quantized, _ = case(name, config)
    assert_equals_reference(quantized, case(name, config).inputs(3))


@pytest.mark.parametrize("rounding", ["half_up", *ROUNDINGS])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_some_weights_of_a_resize_are_not_exact(dims: int, rounding: str):
    """Those of the networks here are, and then it does not matter how they are rounded."""
    model = nn.Sequential(nn.Upsample(size=(7, 12, 5)[:dims], mode=MODES[dims]))
    shape = (2, 5, 7, 3)[: dims + 1]
    prepared = prepare(lambda: model, shape, QuantConfig(rounding=rounding))
    assert_equals_reference(fxquant.convert(prepared), random_inputs(3, shape, 9))


@rounding_cases
def test_every_rounding_is_the_reference(name: str, rounding: str):
    """And eval() is what `convert` gives. Inputs half way between two codes are ties at once."""
    prepared, quantized, shape = case(name, rounding)
    entrance = next(m for m in quantized.modules() if isinstance(m, Quantize))
    steps = torch.arange(2 * math.prod(shape)) % 16 - 8 + 0.5
    for x in (case(name, rounding).inputs(3), (steps * entrance.scale).reshape(2, *shape)):
        assert_equals_reference(quantized, x)
        assert_same(quantized(x), prepared(x))


def test_the_reference_notices_a_bound_that_does_not_hold():
    quantized = copy.deepcopy(case("convs", "default").quantized)
    layer = next(m for m in quantized.modules() if isinstance(m, IntegerOp))
    layer.bound //= 100
    with pytest.raises(AssertionError, match="exceeds its certified bound"):
        reference.run(quantized, case("convs", "default").inputs(1))


def test_every_operator_is_among_the_networks():
    used = {
        module.op.name
        for name in SMALL
        for module in case(name, "default").quantized.modules()
        if isinstance(module, IntegerOp)
    }
    assert used == {op.name for op in OPS} == set(reference.KERNELS)


@pytest.mark.parametrize(("name", "clamps"), [("separable", 4), ("transposed", 2), ("residual", 1)])
def test_some_limits_differ_from_channel_to_channel(name: str, clamps: int):
    """Else the networks would say nothing of limits per channel."""
    modules = case(name, "equalize").quantized.modules()
    numbers = [m.numbers for m in modules if isinstance(m, IntegerOp) and hasattr(m, "high")]
    assert sum(len((n.high - n.low).unique()) > 1 for n in numbers) == clamps


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_the_networks_are_alive(name: str):
    """A network whose codes are all alike would be equal to anything."""
    _, quantized, _ = case(name, "default")
    values = activations(quantized, case(name, "default").inputs(8))
    for node in quantized.graph.nodes:
        module = called_module(quantized, node)
        zeros = isinstance(module, IntegerOp) and module.op in (ZERO, NEW_ZEROS)
        if not zeros and isinstance(values[node.name], Tensor):
            codes = values[node.name]
            assert len(codes.unique()) > min(8, codes.numel() // 8), node.name


class BeyondFloat32(nn.Module):
    """Many terms of one sign, then as many of the other: a small sum after a large one.

        Σ 127·q - Σ 127·q + w·q'         partial sums up to 20000·127·255 > 2^29
    """

    terms = 20_000

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * self.terms + 3, 4, bias=False)
        codes = torch.ones(4, 2 * self.terms + 3)
        codes[:, : self.terms], codes[:, self.terms : -3] = 127, -127
        codes[:, -3:] = torch.tensor([[1, 2, 3], [3, -1, 2], [1, 0, 0], [2, 2, 2]])
        self.linear.weight.data = codes / 127

    def forward(self, x: Tensor) -> Tensor:
        """[N, terms + 3], of which the first `terms` are read with both signs."""
        return self.linear(torch.cat([x[:, : self.terms], x], 1))

    def inputs(self, batch: int, seed: int) -> Tensor:
        return torch.rand(batch, self.terms + 3, generator=torch.Generator().manual_seed(seed))


def test_sums_beyond_float32_are_exact():
    """float32 would be wrong by several units; here a unit is half a step of the output."""
    model = BeyondFloat32()
    prepared = fxquant.prepare_qat(model).train()
    for seed in range(3):
        prepared(model.inputs(8, seed))
    x = model.inputs(16, seed=3)
    quantized = fxquant.convert(prepared)
    assert_equals_reference(quantized, x)
    assert torch.equal(quantized(x), prepared.eval()(x))


# ------------------------------------------------------------------------ against reals


@small_cases
def test_every_operator_is_within_half_a_step_of_the_real_one(name: str, config: str):
    """|y_integer - y_real| <= s_y/2, and half a unit of the accumulator for the rounded bias.

    `y_real` is the operator in float64 on the values that eval() read: with weights rounded
    here, with its batch norm and activation as modules, and limited to what codes can stand for.
    """
    assert_within(0.5, name, config)


@rounding_cases
def test_in_every_rounding_operators_are_near_the_real_ones(name: str, rounding: str):
    """The first of two roundings is half a unit off, and a unit is at most half a step."""
    assert_within(0.75 if rounding in ("gemmlowp", "ruy") else 0.5, name, rounding)


def assert_within(steps: float, name: str, config: str) -> None:
    prepared, _, _ = case(name, config)
    values = activations(prepared, case(name, config).inputs(4))
    for node, site in sites(prepared):
        args, options = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        y, unit = real_output(site, args, options)
        q = site.target.qparams
        error = (values[node.name].double() - limited(y, q)).abs() / q.scale.double()
        assert (error <= steps + unit / q.scale.double() / 2 + 0.01).all(), (node.name, error.max())


def real_output(site: CallSite, args: tuple[Any, ...], options: Any) -> tuple[Tensor, Tensor]:
    """The operator in float64, and what one unit of its accumulator stands for, per channel."""
    options = {name: as_float64(value) for name, value in options.items()}
    norm = options.pop("batch_norm", None) if site.op.folds else None
    unit = torch.tensor(0.0)
    if site.weight_quant is not None:
        groups = options["groups"] if site.op.name.startswith("conv_transpose") else None
        rows = outputs_first(options["weight"], groups)
        scale = largest_per_channel(rows, site.weight_quant.scheme)
        options["weight"] = outputs_first(on_grid(rows, scale), groups)
        unit = scale * site.sources[0].scale.double()
    y = site.op.function(*map(as_float64, args), **options)
    if norm is not None:
        y = norm(y)
        unit = unit * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).abs()
    if site.activation is not None:
        y = clamped(y, site)
    if site.op.name.startswith("conv"):
        unit = unit.reshape(-1, *[1] * (y.dim() - 2))
    return y, unit


def as_float64(value: Any) -> Any:
    """A float64 copy of a tensor or a module, the latter in eval(); anything else as it is."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double().eval()
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().double() if real else value


def outputs_first(weight: Tensor, groups: int | None) -> Tensor:
    """[O, I/G, ...] of a transposed convolution's [I, O/G, ...], and the other way round."""
    if groups is None:
        return weight
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def clamped(y: Tensor, site: CallSite) -> Tensor:
    """`y` within the limits of the site's activation, each channel's divided by its factor."""
    assert site.activation is not None
    divisor = torch.tensor(1.0) if site.clamp_divisor is None else site.clamp_divisor
    low, high = (end / divisor.double() for end in (site.activation.low, site.activation.high))
    return torch.minimum(torch.maximum(y, low), high)


def largest_per_channel(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """`max|w| / qmax` of each output channel, or of the whole weight for all of them."""
    sizes = weight.abs().flatten(1).amax(1)
    sizes = sizes if scheme.per_channel else sizes.max().expand_as(sizes)
    return sizes / (2 ** (scheme.bits - 1) - 1)


def on_grid(weight: Tensor, scale: Tensor) -> Tensor:
    """Each weight as the nearest multiple of its channel's scale; channels of 0 stay 0."""
    step = scale.clamp(min=1e-30).reshape(-1, *[1] * (weight.dim() - 1))
    return torch.floor(weight / step + 0.5) * step


def limited(y: Tensor, q: QParams) -> Tensor:
    """`y` clamped to the first and the last real number that a code stands for."""
    low, high = (float((end - q.zero_point) * q.scale) for end in (q.scheme.qmin, q.scheme.qmax))
    return y.clamp(low, high)


# ------------------------------------------------------------------------ integers only


class IntegersOnly(fx.Interpreter):
    """Looks at every node: nothing but quantize reads a float, nothing but dequantize gives one."""

    looked_at = 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        module = self.module.get_submodule(n.target) if n.op == "call_module" else None
        if n.op not in ("placeholder", "output"):
            reads = [] if isinstance(module, Quantize) else floats((args, kwargs))
            gives = [] if isinstance(module, Dequantize) else floats(value)
            assert not reads, f"{n} reads floats"
            assert not gives, f"{n} gives floats"
            self.looked_at += 1
        return value


def floats(values: Any) -> list[Tensor]:
    """The float tensors in a nested structure."""
    found: list[Any] = []
    fx.node.map_aggregate(values, found.append)
    return [v for v in found if isinstance(v, Tensor) and v.is_floating_point()]


@every_case
def test_there_is_no_float_between_quantize_and_dequantize(name: str, config: str):
    _, quantized, _ = case(name, config)
    interpreter = IntegersOnly(quantized)
    interpreter.run(case(name, config).inputs(2))
    assert interpreter.looked_at >= len(quantized.graph.nodes) - 2
    buffers = [
        buffer
        for module in quantized.modules()
        if isinstance(module, IntegerOp)
        for buffer in module.buffers()
    ]
    assert not floats(buffers)
    assert not list(quantized.parameters())


@every_case
def test_one_quantize_in_and_one_dequantize_per_way_out(name: str, config: str):
    _, quantized, _ = case(name, config)
    kinds = [type(quantized.get_submodule(str(n.target))) if n.op == "call_module" else None
             for n in quantized.graph.nodes]
    assert kinds.count(Quantize) == 1
    for node, kind in zip(quantized.graph.nodes, kinds, strict=True):
        assert kind is not Dequantize or {reader.op for reader in node.users} == {"output"}


# ------------------------------------------------------------------------ against eval()


@every_case
def test_converted_is_eval(name: str, config: str):
    prepared, quantized, shape = case(name, config)
    inputs = [case(name, config).inputs(batch, seed=batch) for batch in (1, 2, 5)]
    for x in (*inputs, torch.zeros(2, *shape), torch.full((1, *shape), 1e30)):
        assert_same(quantized(x), prepared(x))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two torch threads, for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["convs", "linears", "pools_2d", "darts", "resnet18"])
def test_the_number_of_threads_does_not_matter(name: str):
    prepared, quantized, _ = case(name, "default")
    x = case(name, "default").inputs(16)
    in_two = quantized(x)
    assert_same(in_two, prepared(x))
    torch.set_num_threads(1)
    assert_same(in_two, quantized(x))


@pytest.mark.parametrize("name", ["convs", "linears", "darts"])
def test_autocast_does_not_reach_the_integers(name: str):
    """It would round a carrier to 8 bits of mantissa."""
    prepared, quantized, _ = case(name, "default")
    x = case(name, "default").inputs(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(quantized(x), prepared(x))
        found = quantized(x)
    assert_same(found, quantized(x))


# but for "means", whose last output is a mean over the batch, too, and "rows", some of a batch's
@pytest.mark.parametrize("name", sorted({*SMALL, *LARGE} - {"means", "rows"}))
def test_a_sample_does_not_depend_on_its_batch(name: str):
    _, quantized, _ = case(name, "default")
    x = case(name, "default").inputs(4)
    alone = [quantized(sample.unsqueeze(0)) for sample in x]
    assert_same(quantized(x), collated(alone))


def collated(outputs: list[Any]) -> Any:
    """Outputs of single samples as the output of a batch."""
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(outputs)


def assert_same(ours: Any, theirs: Any) -> None:
    """Bit for bit, tuples part by part."""
    ours, theirs = ((y,) if isinstance(y, Tensor) else y for y in (ours, theirs))
    assert [y.shape for y in ours] == [y.shape for y in theirs]
    assert all(map(torch.equal, ours, theirs))


# ------------------------------------------------------------------------ nothing else moves


def frozen(gm: fx.GraphModule) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in gm.state_dict().items()}


def assert_state(gm: fx.GraphModule, expected: dict[str, Tensor]) -> None:
    found = gm.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_nothing_moves_in_eval():
    """Neither the network nor, called on its own, any of its quantizers and observers."""
    prepared = prepare(*SMALL["readers"], CONFIGS["default"]).eval()
    before = frozen(prepared)
    x = random_inputs(4, (3, 6, 5), 9) * 100
    prepared(x)
    for module in prepared.modules():
        if isinstance(module, (ActivationFakeQuant, Observer)):
            module(x)
    assert_state(prepared, before)


@pytest.mark.parametrize("training", [True, False])
def test_convert_leaves_the_prepared_network_as_it_is(training: bool):
    prepared = prepare(*SMALL["convs"], CONFIGS["default"]).train(training)
    before, code = frozen(prepared), prepared.code
    quantized = fxquant.convert(prepared)
    assert_state(prepared, before)
    assert prepared.code == code
    assert {module.training for module in prepared.modules()} == {training}
    theirs = {tensor.data_ptr() for tensor in prepared.state_dict().values()}
    assert theirs.isdisjoint(tensor.data_ptr() for tensor in quantized.state_dict().values())


def test_training_goes_on_as_if_never_converted():
    once, never = (prepare(*SMALL["joined"], CONFIGS["default"]) for _ in range(2))
    fxquant.convert(once)
    once.train()
    for gm in (once, never):
        train(gm, (3, 8, 9))
    assert_state(once, frozen(never))


def train(gm: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Three steps of SGD towards 0."""
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        outputs = gm(random_inputs(4, shape, seed))
        sum(y.square().mean() for y in outputs).backward()
        optimizer.step()


# ------------------------------------------------------------------------ float in, float kept


class Overwriting(nn.Module):
    """DARTS' habit: an in-place ReLU on a value that others read, before it and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        before = self.left(x)
        y = self.relu(x)
        return before + (x + y)


@pytest.mark.parametrize("config", ["default", "fold", "equalize"])
@pytest.mark.parametrize(
    "build", [Overwriting, Readers, Joined, convs, transposed, separable, Residual]
)
def test_until_it_has_seen_data_eval_is_the_float_network(
    build: Callable[[], nn.Module], config: str
):
    """Folded or not, joined or not, in place or not: the same function as the user's module."""
    torch.manual_seed(0)
    model = build()
    settle_batch_norms(model)
    for _ in range(2):
        model.train()(random_inputs(4, (3, 9, 9), 0))
    x = random_inputs(2, (3, 9, 9), 1)
    prepared = fxquant.prepare_qat(model.eval(), config=CONFIGS[config]).eval()
    ours, theirs = prepared(x.clone()), model(x.clone())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def site_names(gm: fx.GraphModule) -> list[str]:
    return [site.op.name for _, site in sites(gm)]


def test_a_folded_network_has_no_batch_norm_left():
    prepared, _, _ = case("convs", "fold")
    assert not [n for n in prepared.graph.nodes if "batch_norm" in n.kwargs]
    assert "batch_norm" not in site_names(prepared)


def test_a_chain_of_sums_is_one_sum_even_where_a_relu_follows():
    prepared, _, _ = case("readers", "default")
    assert site_names(prepared).count("add") == 2  # x1 + x2 + x3 + x4 + y, and y + x
