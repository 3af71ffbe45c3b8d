"""audit: what an integer network's sums may reach, whatever it reads.

By hand, a layer of w = (127, -64) with x in uint8, z = 100, b_q = 9 beside them:

    127·(255 - 100) + 64·100 = 26,085        127·100 + 64·155 = 22,620        worst 26,085 + 9
"""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.errors import AccumulatorError, ConfigError, StageError
from fxquant.intmath import layer_numbers
from fxquant.ops import op_named
from fxquant.ops.accumulator import IntegerCall, Operand
from fxquant.schemes import INT8_WEIGHT, UINT8, Channels
from tests import laws
from tests.ops.calls import qparams, real_call

IMAGE = (2, 3, 8, 8)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 5), nn.Sigmoid(),
    )


def converted(model, x, config=None, known=True):
    prepared = fxquant.prepare_qat(model, x if known else None, config)
    laws.settle(prepared, x)
    return fxquant.convert(prepared)


def layer_call(weight, bias, x):
    target = real_call((x,), qparams(1.0, 0), {}).target
    weight = torch.tensor(weight)
    scale = weight.abs().amax(1) / 127
    numbers = layer_numbers(weight, bias, scale, INT8_WEIGHT, Channels(), x, target)
    return IntegerCall(numbers, (Operand(x.scheme, None),), {}, 32)


def test_by_hand():
    call = layer_call([[127.0, -64.0], [-1.0, 0.0]], torch.tensor([9.0, 0.0]), qparams(1.0, 100))
    found = op_named("linear").accumulator(call)
    assert found.worst == (26_085 + 9, 127 * 155)
    assert (found.terms, found.bits, found.carrier, found.needs) == (2, 32, torch.float32, 16)
    assert found.proved


def test_the_worst_case_is_reached():
    """Every weight with the code that takes it furthest: nothing tighter could be said."""
    torch.manual_seed(0)
    call = layer_call(torch.randn(6, 20).tolist(), None, qparams(1.0, 31))
    weight = call.numbers.weight.long()
    high = torch.where(weight > 0, 255 - 31, -31)
    ends = torch.stack([(weight * d).sum(1).abs() for d in (high, 224 - 31 - high)])
    assert op_named("linear").accumulator(call).worst == tuple(ends.amax(0).tolist())


def test_the_reach_of_a_code_is_that_of_its_far_side():
    """Products of (q - 200) and (q - 3): 200·252."""
    inputs = tuple(Operand(UINT8, None) for _ in range(2))
    numbers = op_named("mul").numbers(
        real_call((qparams(1.0, 200), qparams(1.0, 3)), qparams(1.0, 0), {})
    )
    found = op_named("mul").accumulator(IntegerCall(numbers, inputs, {}, 32))
    assert found.worst == (200 * 252,)


def test_a_row_says_what_a_node_computes_with():
    x = torch.randn(IMAGE)
    quantized = converted(network(), x)
    found = fxquant.audit(quantized)
    assert [row.operator for row in found.rows] == [
        "quantize", "conv2d → relu", "max_pool2d", "linear", "sigmoid", "dequantize",
    ]
    first, conv, pool, linear, sigmoid, last = found.rows
    module = quantized.fxquant.get_submodule(conv.node)
    assert conv.scheme == UINT8
    assert conv.multiplier == (int(module.multiplier.min()), int(module.multiplier.max()))
    assert conv.shift == (int(module.shift.min()), int(module.shift.max()))
    assert (conv.terms, conv.width, conv.weight_bytes) == (27, 32, 108)
    assert (conv.kernel, conv.why) == (module.kernel.name, module.kernel.why)
    assert int((module.bound + module.bias.abs()).max()).bit_length() + 1 == conv.sum_bits
    assert (pool.scale, pool.zero_point) == (conv.scale, conv.zero_point)
    assert (pool.sum_bits, pool.width, pool.kernel, pool.proved) == (None, None, "codes", True)
    assert linear.terms == 36
    assert sigmoid.multiplier is None
    assert sigmoid.scale == last.scale == pytest.approx(1 / 255)
    assert first.scale == float(quantized.fxquant.quantize_input_1.scale)
    assert found.unproved == ()
    assert found.weight_bytes == 108 + 180


def test_the_kernel_is_the_one_that_was_chosen():
    quantized = converted(network(), torch.randn(IMAGE))
    for choice, name in (("float32", "float32 convolution"), ("plain", "float32")):
        fxquant.use_kernels(quantized, choice)
        found = fxquant.audit(quantized)
        assert {row.kernel for row in found.rows if row.operator == "conv2d → relu"} == {name}


def test_a_slower_kernel_says_why():
    """No float type of 32 bits holds sums of 16-bit codes; no int8 kernel takes them."""
    config = fxquant.QuantConfig(activation=fxquant.QuantScheme(bits=12, symmetric=False))
    quantized = converted(network(), torch.randn(IMAGE), config)
    conv = next(row for row in fxquant.audit(quantized).rows if row.operator == "conv2d → relu")
    assert conv.kernel == "float64"
    assert "its codes or weights have more than 8 bits" in conv.why
    assert f"{conv.node}: float64, {conv.why}" in str(fxquant.audit(quantized))


def test_it_prints_as_a_table():
    text = str(fxquant.audit(converted(network(), torch.randn(IMAGE))))
    head, *rows, empty, end = text.split("\n")
    assert head.split()[:4] == ["node", "operator", "codes", "scale"]
    assert len(rows) == 6
    assert empty == ""
    assert end == "2 of 2 sums are proved to fit; 288 weight bytes"
    starts = {line.index("uint8") for line in rows}
    assert starts == {head.index("codes")}


def test_rows_are_frozen():
    row = fxquant.audit(converted(network(), torch.randn(IMAGE))).rows[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.proved = False


def test_copies_and_pickles_are_audited_alike():
    quantized = converted(network(), torch.randn(IMAGE))
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert fxquant.audit(other) == fxquant.audit(quantized)


class Attention(nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.transpose(1, 2), -1)


def test_what_only_shapes_tell_is_proved_with_example_inputs():
    x = torch.randn(2, 6, 50)
    known = fxquant.audit(converted(Attention(), x))
    product, softmax = (row for row in known.rows if row.width)
    assert (product.terms, softmax.terms) == (50, 6)
    assert known.unproved == ()
    unknown = fxquant.audit(converted(Attention(), x, known=False))
    assert [row.node for row in unknown.unproved] == [product.node, softmax.node]
    assert "?" in str(unknown)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(("function", "terms"), [
    (lambda x: F.avg_pool2d(x, x.shape[2]), 64),
    (lambda x: F.avg_pool2d(x, x.size()[2:]), 64),
    (lambda x: F.avg_pool2d(x, (x.shape[2], 2)), 16),
    (lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 4, 2)), 25),  # at most: ceil + 1 of each
    (lambda x: x.sum(x.dim() - 1), 8),
    (lambda x: x.softmax(x.dim() - 1), 8),
])
def test_settings_that_the_graph_computes(function, terms):
    """Example inputs say what they are; without them nobody does, and nothing is proved."""
    x = torch.randn(IMAGE)
    quantized = converted(Function(function), x)
    (row,) = (row for row in fxquant.audit(quantized).rows if row.width)
    assert (row.terms, row.proved) == (terms, True)
    assert fxquant.audit(pickle.loads(pickle.dumps(quantized))) == fxquant.audit(quantized)
    unknown = fxquant.audit(converted(Function(function), x, known=False))
    assert [row.terms for row in unknown.unproved] == [None]


def test_weights_that_were_changed_are_not_proved_by_an_old_bound():
    """The carrier is chosen by the bound that is stored: float32 may be too short for these."""
    quantized = converted(network(), torch.randn(IMAGE))
    row = next(row for row in fxquant.audit(quantized).rows if row.operator == "linear")
    quantized.fxquant.get_submodule(row.node).weight.fill_(127)
    (found,) = fxquant.audit(quantized).unproved
    assert found.node == row.node
    assert found.sum_bits > row.sum_bits


@pytest.mark.parametrize(("make", "first"), [
    (lambda: network(), "prepare_qat, train and convert it first"),
    (lambda: fxquant.prepare_qat(network()), "convert it first"),
])
def test_only_what_convert_returned_can_be_audited(make, first):
    with pytest.raises(StageError, match=rf"audit takes what convert returned.*(?s:.*){first}"):
        fxquant.audit(make())


# ------------------------------------------------------------------------ narrow accumulators

FOUR = QuantConfig(
    activation=QuantScheme(bits=4, signed=False, symmetric=False),
    weight=QuantScheme(bits=4, narrow=True, per_channel=True),
    accumulator_bits=16,
)


def small():
    """At most 9·16 products of 15·7: 15,120; a bias has 16,384, and all have 32,767."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))


def test_narrow_codes_fit_16_bits():
    x = torch.randn(IMAGE)
    prepared = fxquant.prepare_qat(small(), x, FOUR)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    sums = [row for row in fxquant.audit(quantized).rows if row.width]
    assert [row.width for row in sums] == [16, 16]
    assert all(row.proved and row.sum_bits <= 16 for row in sums)


def test_bytes_do_not_and_are_told_what_would_hold_them():
    config = dataclasses.replace(FOUR, activation=UINT8)
    with pytest.raises(AccumulatorError, match=r"(?s)channel \d+ of node '_2'.*beyond the 16 bits "
                       r".*set accumulator_bits=18, .*keep_float=\('2',\)"):
        converted(small(), torch.randn(IMAGE), config)
    converted(small(), torch.randn(IMAGE), dataclasses.replace(config, accumulator_bits=20))


def test_a_matrix_product_has_the_same_width():
    x = torch.randn(2, 6, 600)  # of 8·8 at least
    for known in (True, False):
        prepared = fxquant.prepare_qat(Attention(), x if known else None, FOUR)
        laws.settle(prepared, x[..., :20])
        with pytest.raises(AccumulatorError, match="sums 600 products.*beyond the 16 bits"):
            (fxquant.convert(prepared) if known else prepared)(x)


def test_a_bias_may_take_half_of_it():
    """A bias beyond it enlarges the scale of its channel, as 2^30 does for 32 bits."""
    model = nn.Linear(4, 2)
    nn.init.constant_(model.bias, 1e5)
    x = torch.randn(8, 4)
    quantized = converted(model, x, dataclasses.replace(FOUR, accumulator_bits=18))
    bias = quantized.fxquant.get_submodule(fxquant.audit(quantized).rows[1].node).bias
    assert bias.abs().tolist() == [2**16, 2**16]


@pytest.mark.parametrize("bits", [15, 33, 16.0, True])
def test_a_width_is_16_to_32(bits):
    with pytest.raises(ConfigError, match="accumulator_bits is 16 to 32"):
        QuantConfig(accumulator_bits=bits)
