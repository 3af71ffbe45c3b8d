"""The laws of operators, on every listed one.

An example is the operator as a module; its inputs are random. What must hold of each: the
integers lie within one step of quantize ∘ real ∘ dequantize, where nothing is clipped; eval()
of a prepared model and the converted one agree; the record is complete.
"""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.graph.edit import called_module
from fxquant.kernels.kernel import KernelChoice
from fxquant.ops import OPS, op_named
from fxquant.ops.clamp import ClampNumbers
from fxquant.ops.spec import Output, not_spelled
from fxquant.ops.table import TableNumbers
from fxquant.rounding import HALF_UP, ROUNDINGS
from fxquant.sites.flow import sites
from fxquant.sites.integer import IntegerOp
from tests import laws


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def settled(bn):
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    return bn


def drawn(norm):
    """The norm with weights of both signs."""
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm
class FixedNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn = settled(nn.BatchNorm2d(channels))

    def forward(self, x):
        mean, var = self.bn.running_mean, self.bn.running_var
        return F.batch_norm(x, mean, var, self.bn.weight, self.bn.bias, eps=self.bn.eps)


def slopes(prelu):
    nn.init.normal_(prelu.weight)
    return prelu


class Rows(nn.Module):
    """Of a table that is handed in."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("indices", torch.randint(rows, (2, 7)))

    def forward(self, table):
        return F.embedding(self.indices, table)


class Weighted(nn.Module):
    """A sum weighted by softmax(alphas), one operand as it is, one weight negative."""

    def __init__(self):
        super().__init__()
        self.alphas = nn.Parameter(torch.randn(3))

    def forward(self, x, y, z):
        w = torch.softmax(self.alphas, 0)
        return w[0] * x + y * -w[1] + z


class Scaled(nn.Module):
    """LayerScale: one factor a channel, a negative one and zero among them."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor([1e-6, -0.7, 0.0, 3.0]).reshape(4, 1, 1))

    def forward(self, x):
        return self.gamma * x


IMAGE = (2, 4, 7, 6)
EXAMPLES = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), [(2, 4, 9)]),
    "conv2d": (lambda: nn.Conv2d(4, 6, (1, 3), (2, 1), (0, 2), (1, 2), groups=2), [IMAGE]),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, padding="same"), [(1, 4, 4, 4, 4)]),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1), [(2, 4, 9)]),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), [IMAGE]),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 2, 2, dilation=2), [(1, 4, 3, 3, 3)]),
    "linear": (lambda: nn.Linear(6, 5), [(2, 3, 6)]),
    "batch_norm": (lambda: settled(nn.BatchNorm2d(4)), [IMAGE]),
    "fixed_batch_norm": (lambda: FixedNorm(4), [IMAGE]),
    "relu": (nn.ReLU, [IMAGE]),
    "relu6": (nn.ReLU6, [IMAGE]),
    "hardtanh": (lambda: nn.Hardtanh(-0.3, 1.1), [IMAGE]),
    "clamp": (lambda: Call(lambda x: x.clamp(max=0.7)), [IMAGE]),
    "add": (lambda: Call(lambda x, y, z: x + y + z), [IMAGE, IMAGE, (1, 4, 1, 1)]),
    "weighted_sum": (Weighted, [IMAGE, IMAGE, (1, 4, 1, 1)]),
    "sum_of_products": (
        lambda: Call(lambda a, b, c, d: a * c + b * d),
        [IMAGE, IMAGE, (2, 4, 1, 1), (1, 4, 1, 1)],
    ),
    "scale": (Scaled, [IMAGE]),
    "cat": (lambda: Call(lambda x, y: torch.cat([x, 0.0 * x, y], 1)), [IMAGE, IMAGE]),
    "max_pool1d": (lambda: nn.MaxPool1d(3, 2, 1), [(2, 4, 9)]),
    "max_pool2d": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), [IMAGE]),
    "max_pool3d": (lambda: nn.MaxPool3d(2), [(1, 4, 4, 4, 4)]),
    "avg_pool1d": (lambda: nn.AvgPool1d(3, 2, 1), [(2, 4, 9)]),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 2, 1, True, False), [IMAGE]),
    "avg_pool3d": (lambda: nn.AvgPool3d(2, padding=1, divisor_override=9), [(1, 4, 4, 4, 4)]),
    "adaptive_avg_pool1d": (lambda: nn.AdaptiveAvgPool1d(4), [(2, 4, 9)]),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d((3, None)), [IMAGE]),
    "adaptive_avg_pool3d": (lambda: nn.AdaptiveAvgPool3d(3), [(1, 4, 4, 4, 4)]),
    "adaptive_max_pool1d": (lambda: nn.AdaptiveMaxPool1d(4), [(2, 4, 9)]),
    "adaptive_max_pool2d": (lambda: nn.AdaptiveMaxPool2d((3, None)), [IMAGE]),
    "adaptive_max_pool3d": (lambda: nn.AdaptiveMaxPool3d(3), [(1, 4, 4, 4, 4)]),
    "interpolate_nearest": (lambda: nn.UpsamplingNearest2d(size=(9, 4)), [IMAGE]),
    "interpolate_linear": (
        lambda: Call(lambda x: F.interpolate(x, (11, 9), mode="bilinear")), [IMAGE],
    ),
    "embedding": (lambda: Rows(5), [(5, 3)]),
    "mean": (lambda: Call(lambda x: x.mean((2, 3))), [IMAGE]),
    "sum": (lambda: Call(lambda x: x.sum(1, keepdim=True)), [IMAGE]),
    "new_zeros": (
        lambda: Call(lambda x: x.new_zeros((x.shape[0], 2), dtype=x.dtype, device=x.device)),
        [IMAGE],
    ),
    "zero": (lambda: Call(lambda x: x.mul(0.0)), [IMAGE]),
    "pad": (lambda: Call(lambda x: F.pad(x, (1, 2, -1, 0))), [IMAGE]),
    "exp": (lambda: Call(torch.exp), [IMAGE]),
    "sigmoid": (nn.Sigmoid, [IMAGE]),
    "tanh": (nn.Tanh, [IMAGE]),
    "silu": (nn.SiLU, [IMAGE]),
    "gelu": (lambda: nn.GELU("tanh"), [IMAGE]),
    "hardsigmoid": (nn.Hardsigmoid, [IMAGE]),
    "hardswish": (nn.Hardswish, [IMAGE]),
    "elu": (lambda: nn.ELU(0.7), [IMAGE]),
    "prelu": (lambda: slopes(nn.PReLU(4)), [IMAGE]),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), [IMAGE]),
    "softmax": (lambda: nn.Softmax(1), [IMAGE]),
    "layer_norm": (lambda: drawn(nn.LayerNorm((7, 6), eps=0.01)), [IMAGE]),
    "group_norm": (lambda: drawn(nn.GroupNorm(2, 4, eps=0.01)), [IMAGE]),
    "instance_norm": (lambda: drawn(nn.InstanceNorm2d(4, affine=True, eps=0.01)), [IMAGE]),
    "rms_norm": (lambda: drawn(nn.RMSNorm((7, 6), eps=0.01)), [IMAGE]),
    "normalize": (lambda: Call(lambda x: F.normalize(x, dim=-1)), [IMAGE]),
    "mul": (lambda: Call(lambda x, y: x * y), [IMAGE, (2, 4, 1, 1)]),
    "sub": (lambda: Call(lambda x, y: x - y), [IMAGE, (1, 4, 1, 6)]),
    "add_number": (lambda: Call(lambda x: 1.5 + x), [IMAGE]),
    "sub_number": (lambda: Call(lambda x: 0.3 - x), [IMAGE]),
    "div": (lambda: Call(lambda x, y: x / y), [IMAGE, lambda: torch.rand(2, 4, 1, 1) + 0.5]),
    "mul_number": (lambda: Call(lambda x: x * -1.7), [IMAGE]),
    "div_number": (lambda: Call(lambda x: x / 3), [IMAGE]),
    "neg": (lambda: Call(lambda x: -x), [IMAGE]),
    "matmul": (lambda: Call(torch.matmul), [(2, 3, 5, 6), (3, 6, 4)]),
    "pad_copies": (lambda: nn.ReflectionPad2d((1, 2, 0, 3)), [IMAGE]),
    "pad_value": (lambda: nn.ConstantPad2d((1, 0, 2, 0), 9.5), [IMAGE]),
}


def draw(shape):
    """Normal numbers of a shape, or what a function draws instead."""
    return shape() if callable(shape) else torch.randn(shape)


def quantized_example(name, seed, config=None):
    make, shapes = EXAMPLES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module, inputs = make(), [draw(shape) for shape in shapes]
    module = nn.Sequential(module) if len(inputs) == 1 else module
    prepared = fxquant.prepare_qat(module.eval(), inputs, config)
    # a standalone batch norm would change its statistics while ranges settle
    state = {k: v.clone() for k, v in module.state_dict().items()}
    laws.settle(prepared, *inputs)
    prepared.load_state_dict(state, strict=False)
    return module, inputs, prepared, fxquant.convert(prepared)


def test_every_operator_has_an_example():
    assert set(EXAMPLES) == {op.name for op in OPS}


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_integers_follow_the_real_operator(name, seed):
    """Within one step of the output, where the real operator reads what the integers stand for."""
    assert_near_the_real_operator(name, *quantized_example(name, seed))


@pytest.mark.parametrize("rounding", [r.name for r in ROUNDINGS if r is not HALF_UP])
@pytest.mark.parametrize("name", EXAMPLES)
def test_in_every_rounding_integers_follow_the_real_operator(name, rounding):
    """And eval() is what `convert` gives."""
    example = quantized_example(name, 0, QuantConfig(rounding=rounding))
    assert_near_the_real_operator(name, *example)
    _, inputs, prepared, quantized = example
    for x in ([3 * i for i in inputs], [torch.zeros_like(i) for i in inputs]):
        laws.assert_equal(quantized(*x), prepared(*x))


def assert_near_the_real_operator(name, module, inputs, prepared, quantized):
    kinds = [m.op.name for m in quantized.modules() if isinstance(m, IntegerOp)]
    assert name in kinds
    sources = [m for n, m in prepared.fxquant.named_children() if n.startswith("quantize_")]
    real = module(*(source(x) for source, x in zip(sources, inputs, strict=True)))
    (*_, (_, last)) = sites(prepared)
    step = float(last.quantizer.scale)
    # a range that moved on after its first batch may clip: such values say nothing here
    q = last.quantizer.qparams
    low = (q.scheme.qmin - q.zero_point) * q.scale
    high = (q.scheme.qmax - q.zero_point) * q.scale
    weights = 0.0 if last.weight_quant is None else _weight_error(last, prepared)
    error = (quantized(*inputs) - real.clamp(low, high)).abs().max()
    assert error <= step * 1.01 + weights


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_shifts_divides_or_looks_up_asks_the_rounding(name):
    """A shift of its own, without the rounding that goes with it, would be half-up for ever."""
    for rounding in ROUNDINGS:
        _, _, prepared, quantized = quantized_example(name, 0, QuantConfig(rounding=rounding.name))
        assert {site.rounding for _, site in sites(prepared)} == {rounding}
        for module in quantized.modules():
            if isinstance(module, IntegerOp):
                numbers = module.numbers
                assert getattr(numbers, "rounding", rounding) is rounding
                assert hasattr(numbers, "rounding") == rounds(module)


def rounds(module):
    """Whether an operator rounds when it runs, and not before: tables, and limits of clamps."""
    made_before = isinstance(module.numbers, (TableNumbers, ClampNumbers))
    return module.op.output is not Output.EXACT and not made_before


def _weight_error(site, prepared):
    """Half a step of every weight, times the largest input, summed: the most rounding can do."""
    weight = next(p for p in prepared.parameters() if p.dim() > 1)
    largest = float(site.sources[0].scale) * 255
    elements = site.weight_quant.channels.rows(weight).shape[1]
    return float((site.weight_quant.scale(weight) / 2).max()) * elements * largest


@pytest.mark.parametrize("name", EXAMPLES)
def test_eval_is_what_convert_gives(name):
    _, inputs, prepared, quantized = quantized_example(name, 0)
    for x in ([3 * i for i in inputs], [torch.zeros_like(i) for i in inputs]):
        laws.assert_equal(quantized(*x), prepared(*x))


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_eval_refuses_every_kernel_refuses(name):
    """Other channels, lengths without a window, nothing at all; what it takes, they take."""
    _, (x, *others), prepared, quantized = quantized_example(name, 0)
    for dim, length in enumerate(x.shape):
        for other in {0, 1, 2, length + 1, 2 * length} - {length}:
            given = torch.ones((*x.shape[:dim], other, *x.shape[dim + 1 :]), dtype=x.dtype)
            expected = given_by(prepared, given, *others)
            for choice in get_args(KernelChoice):
                fxquant.use_kernels(quantized, choice)
                found = given_by(quantized, given, *others)
                laws.assert_equal(found, expected)


def given_by(net, *inputs):
    """None where it raises an error."""
    try:
        return net(*inputs)
    except (RuntimeError, ValueError, IndexError):
        return None


@pytest.mark.parametrize(
    "function",
    [torch.relu, F.relu6, lambda x: x.clamp(-0.1, 0.1), lambda x: x + x, lambda x: x.mul(0.0)],
)
def test_a_number_alone_keeps_its_integer_type(function):
    """Of no dimension, so that torch would let another operand's type win."""
    x = torch.randn(IMAGE)
    prepared = fxquant.prepare_qat(Call(lambda x: function(x.mean())), x)
    laws.settle(prepared, x)
    quantized, seen = fxquant.convert(prepared), []
    for module in quantized.modules():
        if isinstance(module, IntegerOp):
            module.register_forward_hook(lambda m, _, y: seen.append((m.op.name, y.dtype)))
    laws.assert_equal(quantized(x), prepared(x))
    assert {dtype for _, dtype in seen} == {torch.uint8}
    alone = fxquant.prepare_qat(Call(function), x.mean())  # where no mean takes the clamp in
    laws.settle(alone, x.mean())
    seen.clear()
    for module in (quantized := fxquant.convert(alone)).modules():
        if isinstance(module, IntegerOp):
            module.register_forward_hook(lambda m, _, y: seen.append((m.op.name, y.dtype)))
    laws.assert_equal(quantized(x.mean()), alone(x.mean()))
    assert [dtype for _, dtype in seen] == [torch.uint8]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_records_agree_with_themselves(op):
    assert op.functions or op.methods or op.modules or op.read is not_spelled
    assert op.folds == (op.weight_axis is not None)
    assert op.output is Output.OWN or not op.folds  # a layer has a range of its own
    assert op.output is Output.OWN or op.range is None
    assert not op.homogeneous or len(EXAMPLES[op.name][1]) == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_real_number_is_left_beside_the_integers(name):
    """All that is real about a call is in its numbers; its kernel takes what is left."""
    *_, quantized = quantized_example(name, 0)
    for node in quantized.graph.nodes:
        module = called_module(quantized, node)
        if isinstance(module, IntegerOp):
            settings = laws.flat(dict(node.kwargs))
            assert not any(isinstance(value, (float, torch.Tensor)) for value in settings)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_sum_is_proved_to_fit(name):
    assert op_named(name).accumulator is not None
    for rounding in ROUNDINGS:
        *_, quantized = quantized_example(name, 0, QuantConfig(rounding=rounding.name))
        assert [row for row in fxquant.audit(quantized).rows if not row.proved] == []


def test_exact_operators_stay_on_the_grid():
    """An operator that claims to keep the grid rounds nothing: integers equal the real result."""
    for op in OPS:
        if op.output is Output.EXACT:
            module, inputs, prepared, quantized = quantized_example(op.name, 1)
            sources = [m for n, m in prepared.fxquant.named_children() if n.startswith("quantize_")]
            real = module(*(source(x) for source, x in zip(sources, inputs, strict=True)))
            laws.assert_equal(quantized(*inputs), real)


@pytest.mark.parametrize("name", [op.name for op in OPS if op.homogeneous])
def test_homogeneous_operators_let_a_positive_factor_through(name):
    """c·f(x) and f(c·x), channel by channel: c are powers of two, which round nothing."""
    make, [shape] = EXAMPLES[name]
    function, x = make(), torch.randn(shape)
    c = torch.tensor([0.25, 1.0, 2.0, 8.0]).reshape(1, -1, 1, 1)
    laws.assert_equal(function(c * x), c * function(x))


@pytest.mark.parametrize("name", EXAMPLES)
def test_until_it_has_seen_data_it_is_the_float_operator(name):
    """Every option included: an approximate GELU is not the exact one."""
    make, shapes = EXAMPLES[name]
    module, inputs = make().eval(), [draw(shape) for shape in shapes]
    whole = nn.Sequential(module) if len(inputs) == 1 else module
    prepared = fxquant.prepare_qat(whole, inputs).eval()
    torch.testing.assert_close(prepared(*inputs), module(*inputs))


CURVED = ("elu", "exp", "gelu", "hardsigmoid", "hardswish", "sigmoid", "silu", "tanh")


@pytest.mark.parametrize("op", [op for op in OPS if op.name in CURVED], ids=lambda op: op.name)
def test_curved_operators_let_no_factor_through(op):
    make, [shape] = EXAMPLES[op.name]
    function, x = make(), torch.randn(shape)
    assert not op.homogeneous
    assert not torch.allclose(function(2.0 * x), 2.0 * function(x), atol=1e-3)
