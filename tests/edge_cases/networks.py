"""Small networks on which a rewrite of the graph easily crashes or changes the function.

Each makes one point, in a few layers. Batch norms come with settled, non-trivial statistics, so
that a wrong fold shows. Imports torch alone: other tools run these networks too, where nothing else
is installed.

    torch.manual_seed(0)
    model = network.make().eval()              # float32
    model(torch.randn(network.input_shape))    # a tensor, or a nest of tensors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 4
IMAGE = (2, C, 8, 8)
ROWS = (5, C)  # what a Linear with a BatchNorm1d reads
TOKENS = (2, C, C)  # as many tokens as features: a batch norm on the wrong axis still runs


@dataclass(frozen=True)
class Network:
    """One network: which edge case it belongs to, and how to make it.

    number       the edge case; several networks may share one
    name         unique
    make         builds it, with weights from torch's global generator: seed that first
    input_shape  of the one input, a float32 tensor
    """

    number: int
    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"edge cases count from 1, '{self.name}' got {self.number}")


class Net(nn.Module):
    """Some layers, and a forward that is handed in."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **members: object) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(c_in: int = C, c_out: int = C, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width, unless `options` say otherwise."""
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(c_in, c_out, kernel, **options)


def batch_norm(c: int = C, kind: type = nn.BatchNorm2d, **options: Any) -> Any:
    """A batch norm that has seen data: no statistic, weight or bias is trivial."""
    bn = kind(c, **options)
    if bn.track_running_stats:
        bn.running_mean.normal_(0, 0.5)
        bn.running_var.uniform_(0.25, 2)
        bn.num_batches_tracked.fill_(10)
    if bn.affine:
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
    return bn


def gammas(*values: float) -> nn.BatchNorm2d:
    """A batch norm with these weights."""
    bn = batch_norm(len(values))
    bn.weight.data.copy_(torch.tensor(values))
    return bn


def scaled(layer: nn.Conv2d, *factors: float) -> nn.Conv2d:
    """The layer, each output channel multiplied by its factor."""
    column = torch.tensor(factors)
    layer.weight.data.mul_(column[:, None, None, None])
    layer.bias.data.mul_(column)
    return layer


def pair(function: Callable[[Any, Tensor], Any], **members: object) -> Net:
    """Two convolutions `a` and `b`, and whatever else the forward needs."""
    return Net(function, a=conv(), b=conv(), **members)


def uneven() -> nn.Conv2d:
    """A convolution whose channels differ three-hundredfold."""
    return scaled(conv(), 0.1, 1, 3, 30)


def around(*middle: nn.Module, **options: Any) -> nn.Sequential:
    """conv, something, conv: what equalization across layers looks for."""
    return nn.Sequential(uneven(), *middle, conv(**options))


def tied(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """The second layer, with the first one's weight."""
    second.weight = first.weight
    return second


# --- the networks that take more than a line ------------------------------------------------------


def two_names() -> nn.Module:
    layer = conv()
    return Net(lambda s, x: s.b(F.relu(s.a(x))), a=layer, b=layer)


def tied_convs() -> nn.Module:
    a = conv()
    return Net(lambda s, x: s.b(F.relu(s.a(x))), a=a, b=tied(a, conv()))


def tied_convs_batch_norms() -> nn.Module:
    a = conv()
    layers = {"a": a, "b": tied(a, conv()), "bn1": batch_norm(), "bn2": batch_norm()}
    return Net(lambda s, x: s.bn2(s.b(F.relu(s.bn1(s.a(x))))), **layers)


def functional() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = F.conv2d(x, s.weight, s.bias, padding=1)
        y = F.batch_norm(y, s.mean, s.var, s.gamma, s.beta, False, 0.1, 1e-3)
        return F.conv2d(F.relu(y), s.weight2)

    net = Net(
        forward,
        weight=nn.Parameter(torch.randn(C, C, 3, 3) / 6),
        weight2=nn.Parameter(torch.randn(C, C, 1, 1) / 2),
        bias=nn.Parameter(torch.randn(C)),
        gamma=nn.Parameter(torch.rand(C) + 0.5),
        beta=nn.Parameter(torch.randn(C)),
    )
    net.register_buffer("mean", torch.randn(C) / 2)
    net.register_buffer("var", torch.rand(C) + 0.25)
    return net


def methods(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).relu()
    y = y.add(s.b(y)).clamp(min=-1.0, max=2.0)
    return y.mean((2, 3)).flatten(1)


def operators(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y = y + torch.relu(input=s.b(y))
    y += torch.max_pool2d(x, 3, stride=1, padding=1)
    return F.adaptive_avg_pool2d(y, output_size=1)[:, :, 0, 0]


def odd_names() -> nn.Module:
    net = nn.Sequential()
    for name, layer in (("2<-0", conv()), ("bn 1", batch_norm()), ("σ", nn.ReLU())):
        net.add_module(name, layer)
    net.add_module("2<-1", conv())
    return net


def nested_outputs(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    return {"logits": s.b(F.relu(y)).mean((2, 3)), "rest": (F.relu(y), [y.flatten(1), None])}


def tiny_variance() -> nn.Module:
    bn = batch_norm()
    bn.running_var[:2] = torch.tensor([1e-12, 0.0])
    return nn.Sequential(conv(), bn, nn.ReLU())


def tokens() -> nn.Module:
    """The batch norm works on tokens, the Linear on features: one does not fold into the other."""
    return nn.Sequential(nn.Linear(C, C), batch_norm(kind=nn.BatchNorm1d), nn.ReLU())


class FactorizedReduce(nn.Module):
    """As DARTS has it: two halves, one of them shifted, batch norm after the concat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(C, C, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C, C, 1, stride=2, bias=False)
        self.bn = batch_norm(2 * C, eps=1e-2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def separable() -> nn.Module:
    """As DARTS has it: only the last conv may take the batch norm."""
    return nn.Sequential(
        nn.ReLU(), conv(groups=C, bias=False), conv(kernel=1, bias=False), batch_norm()
    )


def shared_pair() -> nn.Module:
    return Net(lambda s, x: s.bn(s.a(F.relu(s.bn(s.a(x))))), a=conv(), bn=batch_norm())


def shared_conv() -> nn.Module:
    """One convolution called twice, each time with another batch norm behind it."""
    bns = {"bn1": batch_norm(), "bn2": batch_norm()}
    return Net(lambda s, x: s.bn2(s.a(F.relu(s.bn1(s.a(x))))), a=conv(), **bns)


def residual() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = F.relu(s.stem(x))
        y = F.relu(y + s.b(F.relu(s.a(y))))
        return s.head(y)

    return pair(forward, stem=uneven(), head=conv())


def concat() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.head(torch.cat([F.relu(s.a(x)), F.relu(s.b(x))], dim=1))

    return Net(forward, a=uneven(), b=conv(), head=conv(2 * C, C))


class ChannelShuffle(nn.Sequential):
    """conv, relu, shuffle in two groups, conv."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self[0](x))
        y = y.reshape(-1, 2, C // 2, 8, 8).transpose(1, 2).reshape(-1, C, 8, 8)
        return self[1](y)


def biased() -> nn.Module:
    """Channels that are nearly constant: small weights, big biases of either sign."""
    net = around(nn.ReLU())
    net[0].weight.data.mul_(1e-3)
    net[0].bias.data.copy_(torch.tensor([8.0, -8.0, 3.0, 50.0]))
    return net


def high_bias(padding: int) -> nn.Module:
    """Most of the ReLU's inputs lie far above zero; what the next conv pads with does not."""
    bn = batch_norm()
    bn.weight.data.fill_(0.3)
    bn.bias.data.copy_(torch.tensor([6.0, 4.0, 2.0, 8.0]))
    return nn.Sequential(conv(), bn, nn.ReLU(), conv(padding=padding))


def alphas(s: Any, x: Tensor) -> Tensor:
    w = F.softmax(s.alpha, dim=-1)
    return sum(w[i] * op(x) for i, op in enumerate((s.a, s.b, F.relu)))


def zero_op(s: Any, x: Tensor) -> Tensor:
    """As DARTS has it: an edge that carries nothing, beside one that does."""
    y = s.a(x)
    return s.b(y) + y.mul(0.0)


def in_place(s: Any, x: Tensor) -> Tensor:
    """The in-place ReLU is seen by whoever reads `y` later, and by nobody before."""
    y = s.a(x)
    before = s.b(y)
    after = s.c(F.relu(y, inplace=True))
    return before + after + y


def batch_norm_after_sum() -> nn.Module:
    return pair(lambda s, x: F.relu(s.bn(s.a(x) + s.b(x))), bn=batch_norm())


def conv_read_elsewhere(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return F.relu(s.bn(y)) + s.b(y)


def conv_is_an_output(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = s.a(x)
    return F.relu(s.bn(y)), y


def two_batch_norms(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return F.relu(s.bn1(y)) + s.bn2(y)


def relu_and_another_reader(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return F.relu(y) + s.b(y)


def fan_out(s: Any, x: Tensor) -> Tensor:
    y = F.relu(s.stem(x))
    return s.a(y) + s.b(y)


def output_between(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(s.stem(x))
    return s.a(y), y


def constant_added(s: Any, x: Tensor) -> Tensor:
    return s.a(F.relu(s.stem(x) + s.constant))


def scalar_added(s: Any, x: Tensor) -> Tensor:
    return s.a(F.relu(s.stem(x) + 0.5))


def called_twice(s: Any, x: Tensor) -> Tensor:
    """Equalizing stem and a changes the weight with which a reads its own output."""
    return s.a(F.relu(s.a(F.relu(s.stem(x)))))


def flattened() -> nn.Module:
    return nn.Sequential(
        uneven(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * C, C)
    )


NETWORKS: tuple[Network, ...] = (
    # capture
    Network(
        1,
        "conv called three times",
        lambda: Net(lambda s, x: s.a(F.relu(s.a(F.relu(s.a(x))))), a=conv()),
        IMAGE,
    ),
    Network(2, "one conv under two names", two_names, IMAGE),
    Network(2, "one weight in two convs", tied_convs, IMAGE),
    Network(
        3,
        "one ReLU and one pool for all",
        lambda: Net(
            lambda s, x: s.pool(s.f(s.b(s.f(s.pool(s.f(s.a(x))))))),
            a=conv(),
            b=conv(),
            f=nn.ReLU(),
            pool=nn.MaxPool2d(2),
        ),
        IMAGE,
    ),
    Network(
        5, "sum over a generator", lambda: pair(lambda s, x: sum(op(x) for op in (s.a, s.b))), IMAGE
    ),
    Network(7, "functional conv and batch norm", functional, IMAGE),
    Network(7, "tensor methods", lambda: pair(methods), IMAGE),
    Network(7, "operators and functions", lambda: pair(operators), IMAGE),
    Network(8, "nested outputs with None", lambda: pair(nested_outputs), IMAGE),
    Network(11, "odd module names", odd_names, IMAGE),
    # batch norm
    Network(
        13,
        "batch norm affine=False",
        lambda: nn.Sequential(conv(), batch_norm(affine=False), nn.ReLU()),
        IMAGE,
    ),
    Network(
        13,
        "batch norm affine=False after linear",
        lambda: nn.Sequential(nn.Linear(C, C), batch_norm(kind=nn.BatchNorm1d, affine=False)),
        ROWS,
    ),
    Network(
        14,
        "gamma zero and negative",
        lambda: nn.Sequential(conv(), gammas(0.0, -1.0, 1.5, -0.2), nn.ReLU(), conv()),
        IMAGE,
    ),
    Network(
        14,
        "gamma zero everywhere",
        lambda: nn.Sequential(conv(), gammas(0.0, 0.0, 0.0, 0.0), nn.ReLU()),
        IMAGE,
    ),
    Network(
        15,
        "track_running_stats=False",
        lambda: nn.Sequential(conv(), batch_norm(track_running_stats=False), nn.ReLU()),
        IMAGE,
    ),
    Network(
        15,
        "momentum=None",
        lambda: nn.Sequential(conv(), batch_norm(momentum=None), nn.ReLU()),
        IMAGE,
    ),
    Network(
        16,
        "eps of its own",
        lambda: nn.Sequential(conv(), batch_norm(eps=0.1, momentum=0.3), nn.ReLU()),
        IMAGE,
    ),
    Network(
        18, "conv also read elsewhere", lambda: pair(conv_read_elsewhere, bn=batch_norm()), IMAGE
    ),
    Network(18, "conv also an output", lambda: pair(conv_is_an_output, bn=batch_norm()), IMAGE),
    Network(
        19,
        "one conv, two batch norms",
        lambda: pair(two_batch_norms, bn1=batch_norm(), bn2=batch_norm()),
        IMAGE,
    ),
    Network(
        19,
        "one conv called for each of two batch norms",
        lambda: Net(
            lambda s, x: s.bn1(s.a(x)) + s.bn2(s.a(x)),
            a=conv(),
            bn1=batch_norm(),
            bn2=batch_norm(),
        ),
        IMAGE,
    ),
    Network(20, "conv and batch norm called twice", shared_pair, IMAGE),
    Network(20, "conv called twice, own batch norms", shared_conv, IMAGE),
    Network(21, "one weight in two convs with batch norms", tied_convs_batch_norms, IMAGE),
    Network(
        22,
        "transposed conv",
        lambda: nn.Sequential(nn.ConvTranspose2d(C, 6, 3, stride=2), batch_norm(6), nn.ReLU()),
        IMAGE,
    ),
    Network(
        22,
        "transposed conv, grouped",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(C, 6, 3, stride=2, groups=2), batch_norm(6), nn.ReLU()
        ),
        IMAGE,
    ),
    Network(23, "depthwise", lambda: nn.Sequential(conv(groups=C), batch_norm(), nn.ReLU()), IMAGE),
    Network(
        23,
        "depthwise, multiplier 2",
        lambda: nn.Sequential(conv(C, 2 * C, groups=C), batch_norm(2 * C), nn.ReLU()),
        IMAGE,
    ),
    Network(
        23, "grouped", lambda: nn.Sequential(conv(C, 6, groups=2), batch_norm(6), nn.ReLU()), IMAGE
    ),
    Network(
        24,
        "linear on rows",
        lambda: nn.Sequential(nn.Linear(C, C), batch_norm(kind=nn.BatchNorm1d), nn.ReLU()),
        ROWS,
    ),
    Network(24, "linear on tokens", tokens, TOKENS),
    Network(
        25,
        "batch norm before conv",
        lambda: nn.Sequential(conv(), nn.ReLU(), batch_norm(), conv(padding=0)),
        IMAGE,
    ),
    Network(
        25,
        "batch norm before padded conv",
        lambda: nn.Sequential(conv(), nn.ReLU(), batch_norm(), conv()),
        IMAGE,
    ),
    Network(26, "batch norm after concat", FactorizedReduce, IMAGE),
    Network(
        27,
        "batch norm after pool",
        lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), batch_norm(), conv()),
        IMAGE,
    ),
    Network(27, "batch norm after sum", batch_norm_after_sum, IMAGE),
    Network(27, "batch norm alone", lambda: nn.Sequential(batch_norm()), IMAGE),
    Network(28, "relu, conv, conv, batch norm", separable, IMAGE),
    Network(
        29,
        "conv without bias",
        lambda: nn.Sequential(conv(bias=False), batch_norm(), nn.ReLU()),
        IMAGE,
    ),
    Network(
        30,
        "SyncBatchNorm",
        lambda: nn.Sequential(conv(), batch_norm(kind=nn.SyncBatchNorm), nn.ReLU()),
        IMAGE,
    ),
    Network(31, "tiny variance", tiny_variance, IMAGE),
    Network(
        31,
        "one value per channel",
        lambda: nn.Sequential(conv(kernel=1), batch_norm(), nn.ReLU()),
        (1, C, 1, 1),
    ),
    # cross-layer equalization
    Network(
        33,
        "channels of zeros and huge ratios",
        lambda: nn.Sequential(scaled(conv(), 0.0, 1e-6, 1.0, 1e6), nn.ReLU(), conv()),
        IMAGE,
    ),
    Network(
        34,
        "depthwise between",
        lambda: nn.Sequential(uneven(), nn.ReLU(), conv(groups=C), nn.ReLU(), conv(kernel=1)),
        IMAGE,
    ),
    Network(
        34,
        "depthwise between, multiplier 2",
        lambda: nn.Sequential(
            uneven(), nn.ReLU(), conv(C, 2 * C, groups=C), nn.ReLU(), conv(2 * C, C)
        ),
        IMAGE,
    ),
    Network(34, "conv, grouped conv", lambda: around(nn.ReLU(), groups=2), IMAGE),
    Network(35, "PReLU per channel", lambda: around(nn.PReLU(C)), IMAGE),
    Network(35, "LeakyReLU", lambda: around(nn.LeakyReLU(0.1)), IMAGE),
    Network(36, "ReLU6", lambda: around(nn.ReLU6()), IMAGE),
    Network(36, "Hardtanh", lambda: around(nn.Hardtanh(-1.0, 2.0)), IMAGE),
    Network(
        36,
        "clamp",
        lambda: pair(lambda s, x: s.b(torch.clamp(s.stem(x), 0.0, 1.0)), stem=uneven()),
        IMAGE,
    ),
    Network(37, "GELU", lambda: around(nn.GELU()), IMAGE),
    Network(37, "SiLU", lambda: around(nn.SiLU()), IMAGE),
    Network(37, "sigmoid", lambda: around(nn.Sigmoid()), IMAGE),
    Network(38, "residual", residual, IMAGE),
    Network(38, "concat", concat, IMAGE),
    Network(39, "scalar added", lambda: pair(scalar_added, stem=uneven()), IMAGE),
    Network(
        39,
        "constant added",
        lambda: pair(constant_added, stem=uneven(), constant=nn.Parameter(torch.randn(C, 1, 1))),
        IMAGE,
    ),
    Network(40, "fan-out", lambda: pair(fan_out, stem=uneven()), IMAGE),
    Network(
        41, "value between is also an output", lambda: pair(output_between, stem=uneven()), IMAGE
    ),
    Network(42, "second conv called twice", lambda: pair(called_twice, stem=uneven()), IMAGE),
    Network(43, "flatten before linear", flattened, IMAGE),
    Network(
        43,
        "pixel shuffle",
        lambda: nn.Sequential(uneven(), nn.ReLU(), nn.PixelShuffle(2), conv(1, C)),
        IMAGE,
    ),
    Network(43, "channel shuffle", lambda: ChannelShuffle(uneven(), conv()), IMAGE),
    Network(44, "max pool between", lambda: around(nn.ReLU(), nn.MaxPool2d(2)), IMAGE),
    Network(44, "average pool between", lambda: around(nn.ReLU(), nn.AvgPool2d(3, 1, 1)), IMAGE),
    Network(45, "biases larger than weights", biased, IMAGE),
    Network(46, "high biases, no padding", lambda: high_bias(0), IMAGE),
    Network(46, "high biases before padding", lambda: high_bias(1), IMAGE),
    # numbers that become integers
    Network(51, "zero operation", lambda: pair(zero_op), IMAGE),
    Network(
        63,
        "padding with a constant",
        lambda: pair(
            lambda s, x: s.b(F.pad(F.relu(s.bn(s.a(x))), (1, 0, 1, 0), value=1.0)), bn=batch_norm()
        ),
        IMAGE,
    ),
    Network(
        63,
        "reflected and circular padding",
        lambda: nn.Sequential(
            conv(padding_mode="reflect"), batch_norm(), nn.ReLU(), conv(padding_mode="circular")
        ),
        IMAGE,
    ),
    Network(
        65,
        "sum weighted by a softmax",
        lambda: pair(alphas, alpha=nn.Parameter(torch.randn(3))),
        IMAGE,
    ),
    Network(
        66,
        "average pool without padding in the count",
        lambda: nn.Sequential(
            conv(), batch_norm(), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        ),
        IMAGE,
    ),
    Network(
        66,
        "average pool with ceil_mode",
        lambda: nn.Sequential(conv(), batch_norm(), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True)),
        IMAGE,
    ),
    Network(
        66,
        "average pool with a divisor",
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)),
        IMAGE,
    ),
    Network(67, "ReLU and another reader", lambda: pair(relu_and_another_reader), IMAGE),
    Network(67, "in-place ReLU read before and after", lambda: pair(in_place, c=conv()), IMAGE),
)
