"""Whatever computes, the integers are the same: those of slow, plain arithmetic."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant.errors import ConfigError
from fxquant.intmath import FLOAT32_EXACT, LayerNumbers
from fxquant.kernels import canary
from fxquant.kernels.bytes import byte_table
from fxquant.kernels.finish import Finish, FinishByFloor, finish
from fxquant.kernels.kernel import KernelChoice
from fxquant.kernels.sums import (
    Found,
    Geometry,
    Layer,
    Parts,
    Refused,
    float32_sums,
    in_parts,
    int8_convolution,
    int8_matmul,
)
from fxquant.kernels.windows import Windows, largest_in_windows
from fxquant.ops.accumulator import IntegerCall, Operand
from fxquant.ops.cat import CAT
from fxquant.ops.operands import OperandNumbers
from fxquant.rounding import GEMMLOWP, HALF_UP, ROUNDINGS
from fxquant.schemes import UINT8, QuantScheme
from fxquant.sites.integer import IntegerOp
from tests import laws, reference
from tests.strategies import chain
from tests.test_reference import (
    LARGE,
    SMALL,
    SMALL_CASES,
    assert_equals_reference,
    assert_same,
    case,
)

INT8 = QuantScheme(symmetric=False)
ROOT = Path(__file__).parent.parent
needs_int8 = pytest.mark.skipif(
    canary.why_no_int8_convolution() is not None or canary.why_no_int8_matmul() is not None,
    reason="this processor has no exact int8 kernels",
)


def chosen(quantized, choice):
    """A copy that computes with other kernels."""
    found = copy.deepcopy(quantized)
    fxquant.use_kernels(found, choice)
    return found


# ------------------------------------------------------------------------ whole networks


@pytest.mark.parametrize("config", ["default", "signed", "equalize", "fp32_rne"])
@pytest.mark.parametrize("name", ["convs", "convs_1d", "convs_3d", "linears", "readers"])
def test_float32_kernels_are_the_reference(name, config):
    x = case(name, config).inputs(3)
    assert_equals_reference(chosen(case(name, config).quantized, "float32"), x)


@pytest.mark.parametrize("choice", ["auto", "float32"])
@pytest.mark.parametrize("name", LARGE)
def test_how_images_lie_in_memory_does_not_matter(name, choice):
    quantized = chosen(case(name, "default").quantized, choice)
    x = case(name, "default").inputs(2)
    found = quantized(x.contiguous(memory_format=torch.channels_last))
    assert_same(found, quantized(x))
    assert_same(found, chosen(quantized, "plain")(x))


@pytest.mark.parametrize("choice", ["auto", "float32"])
def test_kernels_of_other_backends_are_not_taken(choice):
    """NNPACK's convolutions are Winograd and FFT, which round on the way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3))
    prepared = fxquant.prepare_qat(net)
    laws.settle(prepared, torch.randn(2, 64, 8, 8))
    quantized = chosen(fxquant.convert(prepared), choice)
    x = torch.randn(16, 64, 8, 8)
    expected = quantized(x)
    torch._C._set_mkldnn_enabled(False)
    try:
        assert torch.equal(quantized(x), expected)
    finally:
        torch._C._set_mkldnn_enabled(True)
    with torch.backends.nnpack.flags(enabled=False):
        assert torch.equal(quantized(x), expected)


@pytest.mark.parametrize("choice", ["auto", "float32"])
@pytest.mark.parametrize("name", ["convs", "linears"])
def test_autocast_reaches_no_kernel(name, choice):
    quantized = chosen(case(name, "default").quantized, choice)
    x = case(name, "default").inputs(2)
    expected = quantized(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(quantized(x), expected)


def test_a_batch_may_be_empty():
    spec = chain("conv", "relu", "conv_depthwise", head=True)
    prepared = fxquant.prepare_qat(spec.build())
    laws.settle(prepared)
    quantized = fxquant.convert(prepared)
    for choice in ("auto", "float32"):
        fxquant.use_kernels(quantized, choice)
        assert quantized(spec.inputs(2)[:0]).shape == prepared(spec.inputs(2)[:0]).shape


@pytest.mark.parametrize("choice", ["auto", "float32", "plain"])
@pytest.mark.parametrize("name", ["convs", "linears"])
def test_no_kernel_reads_the_memory_of_another_device(name, choice):
    """oneDNN would: of a tensor on `meta`, none, and the process ended."""
    quantized = chosen(case(name, "default").quantized, choice)
    with pytest.raises(RuntimeError):
        quantized(case(name, "default").inputs(2).to("meta"))


class Viewed(nn.Module):
    """`view` takes only what lies in memory as it says."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(288, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(x.shape[0], -1)), x


def test_codes_that_lie_otherwise_can_still_be_viewed():
    prepared = fxquant.prepare_qat(Viewed(), torch.randn(2, 3, 8, 8))
    laws.settle(prepared, torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    ours, theirs = fxquant.convert(prepared)(x), prepared(x)
    assert_same(ours, theirs)
    assert ours[1].is_contiguous()


# ------------------------------------------------------------------------ sums


def layer_of(weight, bias, zero, codes, geometry, shift=60):
    """The numbers of a layer; with that shift not even sums of 2^24 reach the end of a clamp."""
    channels = len(weight)
    whole = torch.zeros(channels, dtype=torch.int64)
    number = torch.tensor(0, dtype=torch.int32)
    numbers = LayerNumbers(
        weight=weight.to(torch.int8),
        bias=bias.to(torch.int32),
        bound=whole,
        multiplier=whole + 2**30,
        shift=whole + shift,
        x_zero=number + zero,
        y_zero=number,
        low=number,
        high=number + 255,
        rounding=HALF_UP,
    )
    return Layer(numbers, codes, geometry, None)


@st.composite
def convolutions(draw):
    """A layer over one or two dimensions, some codes, and Σ w·(q - z) + b."""
    scheme = draw(st.sampled_from([UINT8, INT8]))
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 1)]))
    two = st.tuples(*[st.integers(1, 3)] * 2)
    kernel, stride, dilation = draw(two), draw(two), draw(two)
    padding = tuple(draw(st.tuples(*[st.integers(0, 2)] * 2)) for _ in range(2))
    seed, extreme = draw(st.integers(0, 999)), draw(st.booleans())
    draws = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        found = torch.randint(low, high + 1, shape, generator=draws)
        ends = torch.randint(0, 2, shape, generator=draws).bool()
        return torch.where(ends, low, high) if extreme else found

    weight = integers(-127, 127, groups * draw(st.integers(1, 3)), per_group, *kernel)
    bias = integers(-10_000, 10_000, len(weight))
    zero = draw(st.sampled_from([scheme.qmin, scheme.qmax, 3]))
    q = integers(scheme.qmin, scheme.qmax, 2, groups * per_group, 9, 8)
    layer = layer_of(weight, bias, zero, scheme, Geometry(stride, padding, dilation, groups))
    widths = [*padding[1], *padding[0]]
    sums = F.conv2d(
        F.pad((q - zero).double(), widths), weight.double(), bias.double(), stride, 0, dilation,
        groups,
    )
    return layer, q.to(scheme.dtype), sums.to(torch.int64).movedim(1, -1)


def assert_adds_up(found, codes, expected):
    assert isinstance(found, Found)
    for lie in (torch.contiguous_format, torch.channels_last):
        total = found.sums(codes.contiguous(memory_format=lie)).to(torch.int64) + found.bias
        assert torch.equal(total, expected)


@needs_int8
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(convolutions())
def test_every_way_to_sum_a_convolution_is_exact(drawn):
    layer, codes, expected = drawn
    assert_adds_up(int8_convolution(layer), codes, expected)
    assert_adds_up(float32_sums(layer), codes, expected)
    if layer.is_matmul and layer.weight.shape[1] > 1:
        assert_adds_up(int8_matmul(layer), codes, expected)


@needs_int8
@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding", "width"), [
    (3, 2, 3, 0, 8), (5, 2, 1, 1, 3), (4, 2, 1, 1, 2), (2, 3, 1, 0, 3), (5, 2, 1, 1, 4),
])
def test_one_column_of_strided_windows(kernel, stride, dilation, padding, width):
    """With AMX oneDNN is wrong there, in all rows but the first."""
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (4, 3, 2, kernel))
    geometry = Geometry((1, stride), ((0, 0), (padding, padding)), (1, dilation), 1)
    for zero in (0, 9):
        layer = layer_of(weight, torch.tensor([5, -6, 7, 8]), zero, UINT8, geometry)
        q = torch.randint(0, 256, (2, 3, 9, width))
        expected = F.conv2d(
            (q - zero).double(), weight.double(), layer.numbers.bias.double(), (1, stride),
            (0, padding), (1, dilation),
        )
        assert expected.shape[-1] == 1
        assert_adds_up(
            int8_convolution(layer), q.to(torch.uint8), expected.long().movedim(1, -1)
        )


@pytest.mark.parametrize("way", [int8_convolution, float32_sums])
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_bias_that_leads_to_2_to_the_24_is_added_later(way, beyond):
    """255·127·518 = 16,775,430; the bias makes it 2^24 - 1, the most that float32 holds beside all
    integers below it, or 2^24.
    """
    weight = torch.full((2, 518, 1, 1), 127)
    weight[1] = -127
    bias = torch.tensor([1, -1]) * (FLOAT32_EXACT - 1 + beyond - 255 * 127 * 518)
    geometry = Geometry((1, 1), ((0, 0), (1, 1)), (1, 1), 1)
    layer = layer_of(weight, bias, 0, UINT8, geometry)
    found = in_parts(way, layer)
    if isinstance(found, Refused):
        pytest.skip(found.why)
    assert not isinstance(found.sums, Parts)
    assert bool(found.bias.any()) == bool(beyond)  # left for the finish to add
    codes = torch.full((1, 518, 2, 2), 255, dtype=torch.uint8)
    total = found.sums(codes).to(torch.int64) + found.bias
    inner = total[0, 0, 1:3]
    assert inner.unique().tolist() == [-FLOAT32_EXACT + 1 - beyond, FLOAT32_EXACT - 1 + beyond]


@pytest.mark.parametrize("way", [int8_convolution, float32_sums])
def test_parts_add_up(way):
    torch.manual_seed(0)
    weight = torch.randint(100, 128, (3, 300, 3, 3))
    layer = layer_of(weight, torch.tensor([5, -7, 10**6]), 7, UINT8, Geometry(
        (1, 1), ((1, 1), (1, 1)), (1, 1), 1
    ))
    found = in_parts(way, layer)
    if isinstance(found, Refused):
        pytest.skip(found.why)
    assert isinstance(found.sums, Parts)
    q = torch.randint(0, 256, (2, 300, 5, 4))
    expected = F.conv2d((q - 7).double(), weight.double(), layer.numbers.bias.double(), padding=1)
    total = found.sums(q.to(torch.uint8)).to(torch.int64) + found.bias
    assert torch.equal(total, expected.to(torch.int64).movedim(1, -1))


@pytest.mark.parametrize("way", [int8_convolution, float32_sums])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.integers(20, 44))
def test_parts_are_exact_although_the_whole_is_clamped(way, seed, shift):
    """600·127·255 = 19,431,000 of the second half, and a bias that brings the sum back."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randint(-9, 10, (2, 1200, 1, 1), generator=draws)
    weight[:, 600:] = torch.tensor([127, -127]).reshape(2, 1, 1, 1)
    bias = torch.tensor([-1, 1]) * torch.randint(17_000_000, 19_431_000, (2,), generator=draws)
    geometry = Geometry((1, 1), ((0, 0), (1, 1)), (1, 1), 1)
    layer = layer_of(weight, bias, 0, UINT8, geometry, shift)
    found = in_parts(way, layer)
    if isinstance(found, Refused):
        pytest.skip(found.why)
    q = torch.randint(220, 256, (1, 1200, 4, 3), generator=draws)
    expected = F.conv2d(q.double(), weight.double(), bias.double(), padding=(0, 1))
    assert_adds_up(found, q.to(torch.uint8), expected.long().movedim(1, -1))


@needs_int8
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_sums_that_are_clamped_anyway_need_not_be_exact(rounding):
    """Up to 2^27, which float32 holds in steps of 8; the clamp ends at 255·2^14 < 2^22."""
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (6, 1024, 3, 3))
    weight[:2] = torch.tensor([127, -127]).reshape(2, 1, 1, 1)
    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    layer = layer_of(weight, torch.tensor([7, -9, 0, 1, 2, 3]), 0, UINT8, geometry, shift=44)
    factor = layer.numbers.multiplier.double() * 2.0**-44
    multiplier, shift = rounding.rescale(factor.to(rounding.reals))
    numbers = layer.numbers._replace(multiplier=multiplier, shift=shift, rounding=rounding)
    found = int8_convolution(layer._replace(numbers=numbers))
    assert isinstance(found, Found)
    q = torch.randint(0, 256, (2, 1024, 4, 4))
    q[0, :, :2] = 255
    total = F.conv2d(q.double(), weight.double(), layer.numbers.bias.double(), padding=1)
    exact = finish(numbers, torch.zeros(6, dtype=torch.int64), torch.uint8)
    ours = finish(numbers, found.bias, torch.uint8)(found.sums(q.to(torch.uint8)))
    assert (total.abs() >= FLOAT32_EXACT).any()
    assert torch.equal(ours, exact(total.movedim(1, -1)))


def test_sums_that_cannot_be_split_are_refused():
    """Groups share no inputs; a depthwise sum of 600 products is one part by itself."""
    weight = torch.full((2, 1, 25, 24), 127)
    layer = layer_of(weight, torch.zeros(2), 0, UINT8, Geometry((1, 1), ((0, 0),) * 2, (1, 1), 2))
    found = in_parts(float32_sums, layer)
    assert isinstance(found, Refused)
    assert "19431000, beyond 2^24" in found.why


# ------------------------------------------------------------------------ finish


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 44), st.integers(2**30, 2**31 - 1), st.integers(-(2**30), 2**30),
    st.integers(0, 255), st.integers(0, 255), st.sampled_from([torch.uint8, torch.int8]),
)
def test_a_floor_of_floats_is_the_shift_of_integers(shift, multiplier, bias, zero, low, dtype):
    """At every tie within reach, next to it, and at the ends of 32 bits."""
    lowest = torch.iinfo(dtype).min
    layer = layer_of(torch.ones(1, 1), torch.zeros(1), 0, UINT8, None).numbers._replace(
        multiplier=torch.tensor([multiplier]),
        shift=torch.tensor([shift]),
        y_zero=torch.tensor(zero + lowest),
        low=torch.tensor(low + lowest),
        high=torch.tensor(255 + lowest),
    )
    b = torch.tensor([bias])
    quick = finish(layer, b, dtype)
    slow = Finish(
        HALF_UP, layer.multiplier, layer.shift, b, zero + lowest, low + lowest, 255 + lowest, dtype
    )
    halves = torch.arange(-600, 600) * 2 ** max(shift - 1, 0) // multiplier
    near = torch.cat([halves + offset for offset in (-1, 0, 1)]) - bias
    ends = torch.tensor([-(2**31) + 1, 2**31 - 1, 0]) - bias
    for acc in (near.clamp(-(2**31) + 1, 2**31 - 1), ends.clamp(-(2**31) + 1, 2**31 - 1)):
        total = acc.reshape(-1, 1)
        assert torch.equal(quick(total.double()), slow(total))
        many = total.repeat(1 + 2**16 // len(total), 1)
        assert torch.equal(quick(many.double()), slow(many))


def test_a_vector_may_be_longer_than_a_cache():
    """A linear layer of one input without a batch."""
    n = layer_of(torch.ones(70_000, 1), torch.zeros(70_000), 0, UINT8, None, shift=30).numbers
    quick = finish(n, torch.zeros(70_000, dtype=torch.int64), torch.uint8)
    assert isinstance(quick, FinishByFloor)
    total = torch.arange(70_000) % 300
    assert torch.equal(quick(total), total.clamp(max=255).to(torch.uint8))


def test_float64_is_asked_only_where_it_is_exact():
    weight = torch.ones(1, 1)
    n = layer_of(weight, torch.zeros(1), 0, UINT8, None, shift=40).numbers
    nothing, much = torch.zeros(1, dtype=torch.int64), torch.tensor([2**30])
    assert isinstance(finish(n._replace(shift=n.shift + 4), nothing, torch.uint8), FinishByFloor)
    assert isinstance(finish(n._replace(shift=n.shift + 5), nothing, torch.uint8), Finish)
    assert isinstance(finish(n._replace(shift=n.shift + 4), nothing, torch.int16), Finish)
    assert isinstance(finish(n, much, torch.uint8), Finish)
    assert isinstance(finish(n._replace(rounding=GEMMLOWP), nothing, torch.uint8), Finish)


# ------------------------------------------------------------------------ bytes


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.booleans(),
    st.sampled_from([torch.uint8, torch.int8]), st.integers(0, 99),
)
def test_maxima_of_shifted_codes_are_a_max_pool(
    kernel, stride, padding, dilation, ceil_mode, dtype, seed
):
    padding = min(padding, kernel // 2)
    limits = torch.iinfo(dtype)
    draws = torch.Generator().manual_seed(seed)
    codes = torch.randint(limits.min, limits.max + 1, (2, 3, 9, 8), generator=draws).to(dtype)
    expected = F.max_pool2d(codes.double(), kernel, stride, padding, dilation, ceil_mode)
    both = ((number, number) for number in (kernel, stride, padding, dilation))
    found = largest_in_windows(codes, Windows(*both, ceil_mode))
    assert found.dtype is dtype
    assert torch.equal(found.double(), expected)


@pytest.mark.parametrize("scheme", [UINT8, INT8])
def test_a_table_holds_every_byte(scheme):
    codes = torch.arange(scheme.qmin, scheme.qmax + 1).to(scheme.dtype).reshape(2, 8, 4, 4)
    table = byte_table(lambda q: torch.clamp(q, 7, 100), scheme)
    for lie in (torch.contiguous_format, torch.channels_last):
        laid = codes.contiguous(memory_format=lie)
        assert torch.equal(table(laid), codes.clamp(7, 100))
        assert table(laid).is_contiguous(memory_format=lie)
    assert byte_table(lambda q: q.clone(), scheme) is None


@given(
    ratios=st.lists(st.floats(0.01, 3), min_size=3, max_size=6),
    zero=st.integers(0, 255),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_compiled_concats_are_those_by_table(ratios, zero, rounding):
    """Compiled they compute in int32, where its shorter multiplier gives what the table has."""
    operand = Operand(UINT8, None)
    rescale = rounding.rescale(torch.tensor(ratios, dtype=torch.float64))
    numbers = OperandNumbers(
        *rescale, x_zero=torch.arange(len(ratios), dtype=torch.int32) * 40,
        y_zero=torch.tensor(zero, dtype=torch.int32), low=torch.tensor(0), high=torch.tensor(255),
        rounding=rounding,
    )
    call = IntegerCall(numbers, (operand,) * len(ratios), {"dim": 0}, 32)
    kernel, every = CAT.fast(call, torch.uint8, "auto"), torch.arange(256).to(torch.uint8)
    codes = [every] * len(ratios)
    expected = CAT.kernel(numbers, torch.uint8, *codes, dim=0)
    assert_same(kernel(*codes, dim=0), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert_same(kernel(*codes, dim=0), expected)


# ------------------------------------------------------------------------ the choice


def test_kernels_that_there_are_not_are_refused():
    quantized = case("convs", "default").quantized
    with pytest.raises(ConfigError, match="one of 'auto', 'float32', 'plain'; got 'int4'"):
        fxquant.use_kernels(quantized, "int4")
    with pytest.raises(ConfigError, match="Linear has no integer operators"):
        fxquant.use_kernels(nn.Linear(2, 2), "auto")


@needs_int8
def test_the_choice_is_kept_by_copies_and_is_no_state():
    quantized = chosen(case("convs", "default").quantized, "float32")
    names = [m.kernel.name for m in quantized.modules() if isinstance(m, IntegerOp)]
    assert "float32 convolution" in names
    for again in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert [m.kernel.name for m in again.modules() if isinstance(m, IntegerOp)] == names
    auto = case("convs", "default").quantized
    assert auto.state_dict().keys() == quantized.state_dict().keys()
    assert "int8 convolution" in [m.kernel.name for m in auto.modules() if isinstance(m, IntegerOp)]


def another(quantized):
    """The same network with other weights and biases, of the same shapes."""
    found = copy.deepcopy(quantized)
    for module in found.modules():
        if isinstance(module, IntegerOp) and hasattr(module, "weight"):
            module.weight, module.bound = module.weight.flip(0), module.bound.flip(0)
            module.bias = module.bias + 100
    return found


@pytest.mark.parametrize("choice", ["auto", "float32", "plain"])
def test_kernels_follow_the_numbers(choice):
    """However these come: from a state_dict, by `.to()`, or written into the buffers."""
    x = case("convs", "default").inputs(2)
    quantized = chosen(case("convs", "default").quantized, choice)
    other = chosen(another(quantized), choice)
    expected = reference.run(other, x)["output"]
    assert reference.differences(expected, other(x)) == 0
    assert reference.differences(expected, quantized(x)) > 0
    loaded = copy.deepcopy(quantized)
    loaded.load_state_dict(other.state_dict())
    assert reference.differences(expected, loaded(x)) == 0
    assigned = copy.deepcopy(quantized)
    assigned.load_state_dict(other.state_dict(), assign=True)
    assert reference.differences(expected, assigned(x)) == 0
    for mine, theirs in zip(quantized.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
    assert reference.differences(expected, quantized(x)) == 0
    assert reference.differences(expected, quantized.to("cpu")(x)) == 0


class Doubled(nn.Module):
    def forward(self, x):
        return x + torch.relu(x)


def test_kernels_follow_numbers_that_are_replaced_twice():
    """The second tensor may lie where the one did that the kernel was made of."""
    x = torch.randn(2, 3)
    prepared = fxquant.prepare_qat(Doubled(), x)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    (add,) = [m for m in quantized.modules() if isinstance(m, IntegerOp) and m.op.name == "add"]
    for _ in range(20):
        quantized(x)
        add.y_zero = add.y_zero + 1
        add.y_zero = add.y_zero + 1
        assert torch.equal(quantized(x), copy.deepcopy(quantized)(x))


def codes_in(quantized, x):
    """What each integer operator gives, in the order of the calls."""
    found = []

    def note(module, inputs, y):
        found.append(y)

    operators = [m for m in quantized.modules() if isinstance(m, IntegerOp)]
    hooks = [operator.register_forward_hook(note) for operator in operators]
    quantized(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("config", ["default", "fp32_rne"])
def test_no_float_type_changes_an_integer(config, dtype):
    """half() leaves scales and multipliers what they are, and so does double() the multipliers."""
    x = case("convs", config).inputs(3).to(dtype)
    quantized = copy.deepcopy(case("convs", config).quantized)
    expected = codes_in(quantized, x.float())
    y = quantized.to(dtype)(x)
    assert laws.flat(y)[0].dtype is dtype
    found = codes_in(quantized, x)
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, codes_in(quantized.float(), x.float()), expected))


def test_networks_made_without_gradients_run_with_them():
    with torch.inference_mode():
        quantized = copy.deepcopy(case("convs", "default").quantized)
        x = case("convs", "default").inputs(2)
        expected = quantized(x)
    assert_same(quantized(case("convs", "default").inputs(2)), expected)


# ------------------------------------------------------------------------ other processors


ON_ANOTHER = """
import sys, torch
import fxquant
from fxquant.kernels import canary
from tests import reference
from tests.test_reference import case

for name, config in (("convs", "default"), ("linears", "default"), ("separable", "fold")):
    quantized, x = case(name, config).quantized, case(name, config).inputs(3)
    expected = reference.run(quantized, x)["output"]
    for choice in ("auto", "float32"):
        fxquant.use_kernels(quantized, choice)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert reference.differences(expected, quantized(x)) == 0, (name, choice, threads)
print(canary.why_no_int8_matmul(), canary.why_no_int8_convolution(), sep="\\n")
"""


@pytest.mark.parametrize("isa", [
    "AVX2",
    pytest.param("SSE41", marks=pytest.mark.slow),
    pytest.param("AVX512_CORE", marks=pytest.mark.slow),
    pytest.param("AVX512_CORE_VNNI", marks=pytest.mark.slow),
])
def test_on_other_processors(isa):
    """Without VNNI oneDNN's int8 kernels saturate, and then nobody uses them."""
    variables = {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER], cwd=ROOT, env=os.environ | variables, check=False,
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    if torch.backends.mkldnn.is_available() and isa in ("AVX2", "SSE41"):
        assert "add up exactly" in done.stdout


# ------------------------------------------------------------------------ torch.compile


def compiled(quantized, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(quantized, fullgraph=True, backend=backend, **options)


COMPILED = ("convs", "convs_1d", "pools_2d", "constants", "attention", "mixed")


@pytest.mark.parametrize("name", [
    *COMPILED,
    *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name not in COMPILED),
])
def test_networks_compile_without_a_break(name):
    quantized, x = case(name, "default").quantized, case(name, "default").inputs(2)
    with torch.no_grad():
        assert_same(compiled(quantized, "eager")(x), quantized(x))


@pytest.mark.parametrize("rounding", [r.name for r in ROUNDINGS if r is not HALF_UP])
def test_every_rounding_compiles(rounding):
    quantized, x = case("convs", rounding).quantized, case("convs", rounding).inputs(2)
    assert_same(compiled(quantized)(x), quantized(x))


@pytest.mark.parametrize("choice", ["auto", "float32"])
def test_a_compiled_network_takes_any_batch(choice):
    quantized = chosen(case("separable", "default").quantized, choice)
    network = compiled(quantized, dynamic=True)
    for batch in (2, 3, 7):
        x = case("separable", "default").inputs(batch)
        assert_same(network(x), quantized(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler, in torch 2.13
@pytest.mark.parametrize("choice", ["auto", pytest.param("float32", marks=pytest.mark.slow)])
def test_inductor_gives_the_same_integers(choice):
    spec = chain("conv", "relu", channels=4, head=True)
    prepared = fxquant.prepare_qat(spec.build(), spec.inputs(2))
    laws.settle(prepared, spec.inputs(2))
    quantized = chosen(fxquant.convert(prepared), choice)
    x = spec.inputs(2, seed=3)
    with torch.no_grad():
        assert torch.equal(compiled(quantized, "inductor")(x), prepared(x))


class PoolsOfParts(nn.Module):
    """Max pools of tensors that do not lie in memory of their own."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        _, b = y.chunk(2, 1)
        parts = b, y[:, :, 2:, 1:], x[1:, 1:], y.transpose(2, 3)
        return [self.pool(part) for part in parts]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler, in torch 2.13
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_pools_of_parts(backend):
    x = torch.randn(3, 3, 10, 10)
    prepared = fxquant.prepare_qat(PoolsOfParts(), x)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    with torch.no_grad():
        assert_same(compiled(quantized, backend)(x), prepared(x))


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["auto", "float32"])
@pytest.mark.parametrize("name", LARGE)
def test_inductor_gives_the_same_integers_of_large_networks(name, choice):
    quantized = chosen(case(name, "default").quantized, choice)
    x = case(name, "default").inputs(2)
    with torch.no_grad():
        assert_same(compiled(quantized, "inductor")(x), case(name, "default").prepared(x))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), SMALL_CASES)
def test_float32_kernels_are_the_reference_everywhere(name, config):
    quantized = chosen(case(name, config).quantized, "float32")
    assert_equals_reference(quantized, case(name, config).inputs(3))


def test_parts_leave_out_no_channel():
    x = torch.randn(2, 600, 5, 5)
    prepared = fxquant.prepare_qat(nn.Conv2d(600, 4, 3), x)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    fxquant.use_kernels(quantized, "float32")
    assert "in 4 parts" in str(fxquant.audit(quantized))
    with pytest.raises(RuntimeError, match="to have 600 channels, but got 700"):
        quantized(torch.randn(2, 700, 5, 5))


@pytest.mark.parametrize("choice", get_args(KernelChoice))
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 8, 3, padding=2), (1, 4, 6, 0)),
        (nn.Conv2d(4, 8, 1, padding=1, groups=4), (2, 4, 0, 5)),
        (nn.Conv1d(4, 8, 2, padding=2, stride=3), (1, 4, 0)),
        (nn.Conv3d(4, 8, 2, padding=1), (1, 4, 3, 0, 3)),
    ],
    ids=str,
)
def test_padding_alone_is_no_input(layer, shape, choice):
    x = torch.randn(2, 4, *[6] * len(shape[2:]))
    prepared = fxquant.prepare_qat(layer, x)
    laws.settle(prepared, x)
    quantized = chosen(fxquant.convert(prepared), choice)
    for network in (prepared.eval(), quantized):
        with pytest.raises(RuntimeError, match="zero"):
            network(torch.zeros(shape))


@pytest.mark.parametrize("choice", get_args(KernelChoice))
@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool1d(2), (7,)),
        (nn.MaxPool1d(2), (1, 1, 4, 7)),
        (nn.MaxPool1d(3, 1), (1, 4, 2)),
        (nn.MaxPool2d(2), (1, 1, 4, 7, 7)),
        (nn.MaxPool2d((1, 2), 1), (1, 4, 3, 1)),
        (nn.MaxPool3d((1, 1, 3), 1), (1, 4, 3, 3, 2)),
    ],
    ids=str,
)
def test_a_pool_of_other_shapes_is_refused_by_every_kernel(pool, shape, choice):
    x = torch.randn(2, 4, *[6] * int(type(pool).__name__[-2]))
    prepared = fxquant.prepare_qat(pool, x)
    laws.settle(prepared, x)
    quantized = chosen(fxquant.convert(prepared), choice)
    for network in (pool, prepared.eval(), quantized):
        with pytest.raises(RuntimeError):
            network(torch.zeros(shape))
