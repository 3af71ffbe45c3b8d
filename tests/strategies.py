"""Random networks, drawn as small frozen specs so that a failure shrinks to one line.

Every value of a network has the shape [N, channels, 8, 8], so that any step may read any value
before it: branches, fan-out, shared layers and outputs in the middle come about by themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIZE = 8


@dataclass(frozen=True)
class Step:
    """One step: what it does, and how far back lie the values that it reads (0: the last)."""

    kind: str
    reads: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class NetSpec:
    """A network; `outputs` are further values that it returns, counted back from the last."""

    steps: tuple[Step, ...]
    channels: int = 4
    head: bool = False
    outputs: tuple[int, ...] = ()
    seed: int = 0

    def build(self) -> nn.Module:
        """The network with random weights and settled batch-norm statistics, in eval()."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return _Net(self).eval()

    def inputs(self, batch: int = 2, seed: int = 0) -> Tensor:
        """A random batch."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.channels, SIZE, SIZE, generator=generator)


def chain(*kinds: str, channels: int = 4, head: bool = False, seed: int = 0) -> NetSpec:
    """A network in which each step reads the one before it."""
    return NetSpec(tuple(Step(kind) for kind in kinds), channels, head, (), seed)


def _conv(c: int, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(c, c, kernel, padding="same", **options)  # type: ignore[arg-type]


def _batch_norm(c: int, **options: bool) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(c, **options)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.normal_(0, 0.5)
    bn.running_var.uniform_(0.25, 2)
    if bn.affine:
        nn.init.normal_(bn.weight)  # negative ones too
        nn.init.normal_(bn.bias)
        bn.weight.data[0] *= 0.0
    return bn


class _Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class _CatConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * c, c, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.reduce(torch.cat([x, y], dim=1))


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class _DropPath(nn.Module):
    """As search code writes it: does something in training only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).bernoulli_(0.5) / 0.5


class _Reshaped(nn.Module):
    """A layer over values of another shape: reshaped on the way in and back on the way out."""

    def __init__(
        self, layer: nn.Module, into: Callable[[Tensor], Tensor], back: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.layer, self.into, self.back = layer, into, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.layer(self.into(x)), x)


def _inverted_bottleneck(c: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(c, 2 * c, 1, bias=False),
        _batch_norm(2 * c),
        nn.ReLU6(),
        nn.Conv2d(2 * c, 4 * c, 3, padding=1, groups=2 * c),
        nn.ReLU(),
        nn.Conv2d(4 * c, c, 1),
    )


def _down_and_up(c: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(c, 2 * c, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2 * c, c, 4, 2, 1)
    )


class _Mixed(nn.Module):
    """A mixed operation: two operations, weighted by what a plain tensor decides."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList([nn.Conv2d(c, c, 1), nn.MaxPool2d(3, 1, 1)])
        self.alphas = torch.randn(2, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.alphas, dim=-1)
        return sum(op(x) * w for op, w in zip(self.ops, weights, strict=True))


class _Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(self.squeeze(x)))


class _Functional(nn.Module):
    """A conv that is called as a function, with dropout that asks for the mode itself."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c, c, 1, 1) / c**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.conv2d(x, self.weight), 0.5, self.training)


ONE_INPUT: dict[str, Callable[[int], nn.Module]] = {
    "conv": lambda c: _conv(c),
    "conv_no_bias": lambda c: _conv(c, bias=False),
    "conv_depthwise": lambda c: _conv(c, groups=c),
    "conv_grouped": lambda c: _conv(c, groups=2),
    "conv_dilated": lambda c: _conv(c, dilation=2),
    "conv_asymmetric": lambda c: _conv(c, (1, 5)),
    "conv_functional": _Functional,
    "conv_transposed": lambda c: nn.ConvTranspose2d(c, c, 3, padding=1, groups=2),
    "conv1d": lambda c: _Reshaped(
        nn.Conv1d(c, c, 3, padding=1), lambda x: x.flatten(2), lambda y, x: y.view(x.shape)
    ),
    "conv3d": lambda c: _Reshaped(
        nn.Conv3d(c, c, (1, 3, 3), padding=(0, 1, 1)),
        lambda x: x.unsqueeze(2),
        lambda y, x: y.squeeze(2),
    ),
    "linear_last": lambda c: _Reshaped(
        nn.Linear(c, c), lambda x: x.permute(0, 2, 3, 1), lambda y, x: y.permute(0, 3, 1, 2)
    ),
    "inverted_bottleneck": _inverted_bottleneck,
    "down_and_up": _down_and_up,
    "bn": _batch_norm,
    "bn_plain": lambda c: _batch_norm(c, affine=False),
    "relu": lambda c: nn.ReLU(),
    "relu_twice": lambda c: _Function(lambda x: F.relu(x) + torch.relu(x)),
    "relu_inplace": lambda c: nn.ReLU(inplace=True),
    "relu_method": lambda c: _Function(lambda x: x.relu_()),
    "relu6": lambda c: nn.ReLU6(),
    "clamp": lambda c: _Function(lambda x: x.clamp(-0.5, 1.5)),
    "leaky_relu": lambda c: nn.LeakyReLU(0.1),
    "hardswish": lambda c: nn.Hardswish(inplace=True),
    "sigmoid": lambda c: _Function(torch.sigmoid),
    "numbers": lambda c: _Function(lambda x: 0.5 - x / 3),
    "max_pool": lambda c: nn.MaxPool2d(3, 1, 1),
    "avg_pool": lambda c: nn.AvgPool2d(3, 1, 1),
    "avg_pool_inside": lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "mixed": _Mixed,
    "gate": _Gate,
    "softmax": lambda c: nn.Softmax(1),
    "identity": lambda c: nn.Identity(),
    "dropout": lambda c: nn.Dropout(0.5),
    "drop_path": lambda c: _DropPath(),
    "zero": lambda c: _Function(lambda x: x.mul(0.0)),
    "shift": lambda c: _Function(lambda x: F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))),
    "shuffle": lambda c: _Shuffle(),
}
TWO_INPUTS: dict[str, Callable[[int], nn.Module]] = {
    "add": lambda c: _Function(operator.add),
    "sub": lambda c: _Function(operator.sub),
    "mul": lambda c: _Function(lambda x, y: x * torch.tanh(y)),  # else products of products
    "add_inplace": lambda c: _Function(lambda x, y: x.clone().add_(y)),
    "cat_conv": _CatConv,
}
# these call again, or share a weight with, the last convolution or batch norm before them
SHARING = ("again", "tied", "again_bn")
KINDS = (*ONE_INPUT, *TWO_INPUTS, *SHARING)


class _Net(nn.Module):
    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.steps = nn.ModuleList()
        last, last_norm = _conv(spec.channels), _batch_norm(spec.channels)
        for step in spec.steps:
            if step.kind == "tied":
                layer: nn.Module = _conv(spec.channels)
                layer.weight = last.weight
            elif step.kind == "again":
                layer = last
            elif step.kind == "again_bn":
                layer = last_norm
            else:
                layer = {**ONE_INPUT, **TWO_INPUTS}[step.kind](spec.channels)
            if isinstance(layer, nn.Conv2d) and layer.weight.shape == last.weight.shape:
                last = layer
            elif isinstance(layer, nn.BatchNorm2d):
                last_norm = layer
            self.steps.append(layer)
        if spec.head:
            self.pool = nn.AdaptiveAvgPool2d((2, 3))
            self.classifier = nn.Linear(spec.channels * 6, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [x]
        for step, layer in zip(self.spec.steps, self.steps, strict=True):
            values.append(layer(*(values[-1 - min(r, len(values) - 1)] for r in step.reads)))
        y = values[-1]
        if self.spec.head:
            y = self.classifier(torch.flatten(self.pool(y), 1))
        if not self.spec.outputs:
            return y
        return (y, *(values[-1 - min(back, len(values) - 1)] for back in self.spec.outputs))


def steps() -> st.SearchStrategy[Step]:
    """One step of any kind, reading any values before it."""
    one = st.builds(
        Step, st.sampled_from((*ONE_INPUT, *SHARING)), st.tuples(st.integers(0, 3))
    )
    two = st.builds(
        Step, st.sampled_from(tuple(TWO_INPUTS)), st.tuples(st.integers(0, 3), st.integers(0, 3))
    )
    return st.one_of(one, one, two)


def net_specs(max_steps: int = 8) -> st.SearchStrategy[NetSpec]:
    """Networks of up to `max_steps` steps."""
    return st.builds(
        NetSpec,
        steps=st.lists(steps(), min_size=1, max_size=max_steps).map(tuple),
        channels=st.sampled_from((2, 4, 6)),
        head=st.booleans(),
        outputs=st.lists(st.integers(0, 3), max_size=2).map(tuple),
        seed=st.integers(0, 3),
    )
