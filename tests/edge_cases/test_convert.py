"""Edge cases 60 to 69: the integers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import AccumulatorError
from fxquant.intmath import accumulator_limit
from fxquant.sites.flow import sites
from tests import laws
from tests.edge_cases.checks import IMAGE, Net, contract, conv, explains, kept, left_alone, refused

INPUT = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3))
TRAIN = laws.CONFIGS["train"]


def net():
    return Net(
        lambda s, x: s.head(s.bn(s.a(x)).relu().flatten(1)),
        a=conv(),
        bn=nn.BatchNorm2d(4),
        head=nn.Linear(256, 3),
    )


@pytest.mark.parametrize("name", laws.CONFIGS)
def test_case_60_training_goes_on(name):
    """Kept: the prepared model trains on as if convert had never been called."""
    model, states = net(), []
    for converts in (False, True):
        prepared = fxquant.prepare_qat(model, INPUT, laws.CONFIGS[name]).train()
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            if converts and step:
                before = prepared.code
                fxquant.convert(prepared)(INPUT)
                assert prepared.training
                assert prepared.code == before
            optimizer.zero_grad()
            prepared(INPUT).square().mean().backward()
            optimizer.step()
        states.append(prepared.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_case_61_bias():
    """Kept: a bias is the integer nearest to b / (s_x·s_w), in int32."""
    for prepared, quantized in kept(net(), INPUT).values():
        site, numbers = prepared.fxquant.head, quantized.fxquant.head
        scale = site.sources[0].scale * site.weight_quant.scale(prepared.head.weight)
        expected = torch.floor(prepared.head.bias.double() / scale.double() + 0.5)
        assert numbers.bias.dtype is torch.int32
        assert (numbers.bias - expected).abs().max() <= 1


@pytest.mark.parametrize("weight", [0.0, 1e-12, 1e-30])
def test_case_61_bias_that_does_not_fit(weight):
    """Kept: a bias beyond 2^30 steps enlarges the scale of its channel until it fits."""
    model = Net(lambda s, x: s.a(x), a=conv())
    model.a.weight.data[0] = weight
    model.a.bias.data[0] = 1000.0
    for prepared, quantized in kept(model, INPUT).values():
        assert abs(int(quantized.fxquant.a.bias[0])) <= accumulator_limit(32) // 2
        y = quantized(INPUT)[:, 0]
        step = float(prepared.fxquant.a.output.scale)
        torch.testing.assert_close(y, torch.full_like(y, 1000.0), rtol=0, atol=step)


@pytest.mark.parametrize("ratio", [1e-6, 0.5, 30.0, 1e4])
def test_case_62_multipliers(ratio):
    """Kept: a rescale by 1 or more, and by next to nothing, is as exact as any other."""
    model = Net(lambda s, x: s.a(x), a=nn.Conv2d(4, 4, 1, bias=False))
    model.a.weight.data = torch.eye(4).reshape(4, 4, 1, 1)
    prepared = fxquant.prepare_qat(model)
    laws.settle(prepared, INPUT)
    output = prepared.fxquant.a.output
    for value in (output.scale, output.observer.low, output.observer.high):
        value /= ratio * 127  # as if training had seen other outputs
    quantized = fxquant.convert(prepared)
    n = quantized.fxquant.a
    factor = n.multiplier.double() * 2.0 ** -n.shift.double()
    source = prepared.fxquant.a.sources[0].scale.double()
    scale = prepared.fxquant.a.weight_quant.scale(model.a.weight).double()
    expected = source * scale / output.scale.double()
    torch.testing.assert_close(factor, expected, rtol=2.0**-20, atol=0)
    assert bool((factor >= 1).all()) is (ratio > 1.0)
    for x in (INPUT, INPUT / 1e3, INPUT * 1e3):
        laws.assert_equal(quantized(x), prepared(x))


PADS = {
    "conv": lambda s, x: s.a(x),
    "dilated conv": lambda s, x: F.conv2d(x, s.a.weight, padding=2, dilation=2),
    "same": lambda s, x: F.conv2d(x, s.a.weight, padding="same"),
    "transposed conv": lambda s, x: F.conv_transpose2d(x, s.a.weight, stride=2, padding=1),
    "zeros": lambda s, x: F.pad(s.a(x), (1, 2, 0, 1)),
    "negative width": lambda s, x: F.pad(s.a(x), (-1, 2, 0, 0)),
    "a constant": lambda s, x: F.pad(s.a(x), (1, 1), value=3.5),
    "a constant out of range": lambda s, x: F.pad(s.a(x), (1, 1), value=-40.0),
    "module": lambda s, x: s.pad(s.a(x)),
    "the input": lambda s, x: s.a(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]),
    "avg pool": lambda s, x: F.avg_pool2d(s.a(x), 3, 1, 1),
}


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("forward", PADS.values(), ids=PADS)
def test_case_63_padding(forward, sign):
    """Kept: what is padded with is the integer that stands for it, 0 or any other constant."""
    model = Net(forward, a=conv(), pad=nn.ConstantPad2d((1, 0, 2, 0), 0.75))
    kept(model, (INPUT.abs() + 0.5) * sign)


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_case_63_padding_of_another_kind(padding_mode):
    """Kept: a conv that pads with what it reads pads with the same integers."""
    layer = nn.Conv2d(4, 4, 3, padding=1, padding_mode=padding_mode)
    kept(Net(lambda s, x: s.a(x), a=layer), INPUT)


LAYERS = {
    "conv": conv(),
    "depthwise": conv(groups=4),
    "linear": nn.Linear(8, 5),
    "transposed": nn.ConvTranspose2d(4, 4, 3, groups=2),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_case_64_bound(layer):
    """Kept: no input takes a sum of products beyond the bound that is stored with its channel."""
    (result, *_) = kept(Net(lambda s, x: s.a(x), a=layer), INPUT).values()
    n = result.quantized.fxquant.a
    zero, weight = int(n.x_zero), n.weight.long()
    extremes = torch.tensor([-zero, 255 - zero])
    products = torch.stack([weight * d for d in extremes])
    if layer is LAYERS["transposed"]:  # [in, out/groups, …] to channels first
        products = products.unflatten(1, (2, 2)).transpose(2, 3).flatten(1, 2)
    top = products.amax(0).flatten(1).sum(1)
    bottom = products.amin(0).flatten(1).sum(1)
    assert torch.equal(n.bound, torch.maximum(top, -bottom))


def test_case_64_sum_beyond_32_bits():
    """Refused: a channel whose sum could leave the accumulator is named."""
    model = Net(lambda s, x: s.a(x), a=nn.Linear(70_000, 2))
    nn.init.constant_(model.a.weight, 1.0)
    model.a.weight.data[0, 1:] = 0
    prepared = fxquant.prepare_qat(model)
    laws.settle(prepared, torch.rand(1, 70_000))
    with pytest.raises(AccumulatorError) as caught:
        fxquant.convert(prepared)
    words = ("channel 1 of", "keep_float=('a',)")
    explains(caught.value, *words, module="a", line="lambda s, x: s.a(x)", node="a")


JOINS = {
    "two": lambda s, x: s.a(x) + x,
    "five": lambda s, x: s.a(x) + s.b(x) + x + s.a(x).relu() + 0.0 * x,
    "grouped otherwise": lambda s, x: (s.a(x) + s.b(x)) + (x + s.a(x)),
    "a partial sum read twice": lambda s, x: (y := s.a(x) + x) + s.b(y),
    "one value twice": lambda s, x: (y := s.a(x)) + y,
    "that broadcast": lambda s, x: s.a(x) + s.b(x).mean((2, 3), keepdim=True),
    "in place": lambda s, x: s.a(x).add_(s.b(x)),
    "of large and small": lambda s, x: s.a(x) + s.tiny(x),
    "concat": lambda s, x: torch.cat([s.a(x), x, s.tiny(x)], 1),
    "concat with itself": lambda s, x: torch.cat([x, x], 1),
    "concat of rows": lambda s, x: torch.cat([s.a(x), s.tiny(x)], -1),
    "concat of concats": lambda s, x: torch.cat([torch.cat([x, s.a(x)], 1), s.b(x)], 1),
}


@pytest.mark.parametrize("forward", JOINS.values(), ids=JOINS)
def test_case_65_sums_and_concats(forward):
    """Kept: sums of any number of values, of any ranges, are rounded once, and concats too."""
    model = Net(forward, a=conv(), b=conv(groups=2), tiny=conv())
    model.tiny.weight.data *= 1e-4
    kept(model, INPUT)


WEIGHTS = {
    "softmax": lambda s, x: s.a(x) * s.alpha.softmax(-1)[0] + s.alpha.softmax(-1)[1] * s.b(x),
    "of either sign": lambda s, x: s.alpha[0] * s.a(x) - s.alpha[2] * s.b(x),
    "zero": lambda s, x: s.alpha[3] * s.a(x) + s.alpha[1] * s.b(x),
    "some": lambda s, x: s.alpha[0] * s.a(x) + x + s.alpha[2] * s.b(x).relu(),
    "products of alphas": lambda s, x: (s.alpha[0] * s.alpha[1]) * s.a(x) + s.alpha[2] * x,
    "of large and small": lambda s, x: 1e3 * s.alpha[0] * s.a(x) + s.alpha[1] * s.tiny(x),
    "one value twice": lambda s, x: s.alpha[0] * (y := s.a(x)) + s.alpha[1] * y,
}


@pytest.mark.parametrize("forward", WEIGHTS.values(), ids=WEIGHTS)
def test_case_65_weighted_sums(forward):
    """Kept: weights that parameters decide go into the multipliers, so the sum is rounded once."""
    model = Net(forward, a=conv(), b=conv(groups=2), tiny=conv())
    model.tiny.weight.data *= 1e-4
    model.alpha = nn.Parameter(torch.tensor([0.7, -0.3, 1.9, 0.0]))
    for prepared, _ in kept(model, INPUT).values():
        names = [site.op.name for _, site in sites(prepared)]
        assert {"mul", "add", "softmax"}.isdisjoint(names)


def test_case_65_weights_that_the_input_decides():
    """Kept: a product with a number that the input decides is rounded like any other."""
    model = Net(lambda s, x: s.a(x) * s.b(x).mean() + x, a=conv(), b=conv())
    for prepared, _ in kept(model, INPUT).values():
        assert "mul" in [site.op.name for _, site in sites(prepared)]


POOLS = {
    "plain": {"kernel_size": 2},
    "padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "pad not counted": {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False},
    "ceil": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "ceil, pad not counted": {
        "kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False,
    },
    "not square": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    "divisor": {"kernel_size": 2, "divisor_override": 7},
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_case_66_average_pools(pool):
    """Kept: every window is divided by the number that torch divides it by."""
    kept(Net(lambda s, x: s.pool(s.a(x)), a=conv(), pool=nn.AvgPool2d(**pool)), INPUT)
    kept(Net(lambda s, x: F.avg_pool2d(s.a(x).relu(), **pool), a=conv()), INPUT)


def test_case_66_ties():
    """Kept: a mean half way between two integers is rounded up, as everything is."""
    prepared = fxquant.prepare_qat(nn.AvgPool2d((1, 2)))
    laws.settle(prepared, torch.tensor([[[[-100.0, 155.0]]]]))  # scale 1
    x = torch.tensor([[[[-3.0, -2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 2.0]]]])
    assert fxquant.convert(prepared)(x).flatten().tolist() == [-2.0, 0.0, 1.0, 2.0]
    assert prepared(x).flatten().tolist() == [-2.0, 0.0, 1.0, 2.0]


def test_case_66_divisor_below_the_window():
    """Refused: with a divisor below its size a window gives more than a mean."""

    def forward(s, x):
        return F.avg_pool2d(s.a(x), 2, divisor_override=3)

    model = Net(forward, a=conv())
    refused(model, INPUT, node="avg_pool2d", module="", line="divisor_override=3")


READ_TWICE = {
    "a sum": (lambda s, x: s.b((y := s.a(x)).relu()) + y, "relu", "'a' is also read by 'add'"),
    "an output": (lambda s, x: (F.relu6(y := s.a(x)), y), "relu6", "'a' is also read by 'output'"),
    "a sum, of a sum": (
        lambda s, x: (y := s.a(x) + x).relu() + s.b(y), "relu", "'add' is also read by 'b'",
    ),
}


@pytest.mark.parametrize(("forward", "node", "reason"), READ_TWICE.values(), ids=READ_TWICE)
def test_case_67_clamp_not_for_all(forward, node, reason):
    """Left alone: a clamp stays by itself where somebody reads the value before it."""
    model = Net(forward, a=conv(), b=conv())
    left_alone(model, INPUT, "fuse_conv_bn_relu", node, reason)


def test_case_67_clamp_for_all():
    """Kept: a clamp goes into its layer where all read the value behind it."""
    model = Net(lambda s, x: s.b(y := s.a(x).relu()) + y, a=conv(), b=conv())
    for prepared, quantized in kept(model, INPUT).values():
        assert [site.op.name for _, site in sites(prepared)] == ["conv2d", "conv2d", "add"]
        assert int(quantized.fxquant.a.low) == int(quantized.fxquant.a.y_zero)


ALIKE = {
    "relu": (lambda s, x: s.b((y := s.a(x)).relu()) + s.c(F.relu(y)), "relu"),
    "relu6": (lambda s, x: s.b(F.relu6(y := s.a(x))) + s.c(s.six(y)), "relu6"),
    "relu and clamp": (lambda s, x: s.b((y := s.a(x)).relu()) + y.clamp(min=0), "relu"),
    "three, one read twice": (
        lambda s, x: s.b(r := F.relu(y := s.a(x))) + s.c(y.relu()) + s.d(torch.relu(y)) + r,
        "relu",
    ),
}


@pytest.mark.parametrize(("forward", "name"), ALIKE.values(), ids=ALIKE)
def test_case_67_several_identical_clamps(forward, name):
    """Kept: clamps of one value that are all the same are one, and go into its layer."""
    model = Net(forward, a=conv(), b=conv(), c=conv(), d=conv(), six=nn.ReLU6())
    for prepared, quantized in kept(model, INPUT).values():
        assert str(prepared.fxquant.a.activation) == name
        assert {"relu", "relu6", "clamp"}.isdisjoint(s.op.name for _, s in sites(prepared))
        assert (quantized.fxquant.a.low == quantized.fxquant.a.y_zero).all()


def test_case_67_several_different_clamps():
    """Left alone: clamps of one value that differ stay by themselves."""
    model = Net(lambda s, x: s.b((y := s.a(x)).relu()) + F.relu6(y), a=conv(), b=conv())
    for node, other in (("relu", "relu6"), ("relu6", "relu")):
        reason = f"'a' is also read by '{other}'"
        left_alone(model, INPUT, "fuse_conv_bn_relu", node, reason)


@pytest.fixture(scope="module")
def converted():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return contract(net(), (INPUT,), TRAIN)


def test_case_68_batches(converted):
    """Kept: a sample's result depends neither on the batch around it nor on its place there."""
    x = torch.randn(9, *IMAGE[1:])
    for model in converted:
        together = model(x)
        laws.assert_equal(torch.cat([model(row[None]) for row in x]), together)
        laws.assert_equal(model(x.flip(0)).flip(0), together)
        laws.assert_equal(model(x.contiguous(memory_format=torch.channels_last)), together)


def test_case_68_modes(converted):
    """Kept: the integer network is the same in train() and eval()."""
    _, quantized = converted
    expected = quantized(INPUT)
    laws.assert_equal(quantized.train()(INPUT), expected)
    laws.assert_equal(quantized.eval()(INPUT), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_case_68_threads(converted, threads):
    """Kept: the number of threads changes no bit."""
    _, quantized = converted
    expected, before = quantized(INPUT), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        laws.assert_equal(quantized(INPUT), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_case_68_devices(converted, device):
    """Kept: the device changes no bit."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no such device here")
    for model in converted:
        moved = copy.deepcopy(model).to(device)
        laws.assert_equal(moved(INPUT.to(device)).cpu(), model(INPUT))


def test_case_68_compiled(converted):
    """Kept: `torch.compile` changes no bit."""
    _, quantized = converted
    compiled = torch.compile(quantized, backend="aot_eager")
    laws.assert_equal(compiled(INPUT), quantized(INPUT))


def test_case_69_copies(converted):
    """Kept: deepcopy gives the same network, at every stage."""
    for model in converted:
        again = copy.deepcopy(model)
        laws.assert_equal(again(INPUT), model(INPUT))
        assert again.state_dict().keys() == model.state_dict().keys()
        assert fxquant.explain(again) == fxquant.explain(model)
    laws.assert_equal(fxquant.convert(copy.deepcopy(converted[0]))(INPUT), converted[1](INPUT))


def test_case_69_without_pickle(converted):
    """Kept: both networks come back from files that hold tensors and nothing else."""
    prepared, quantized = converted
    fresh = fxquant.prepare_qat(net())
    fresh.load_state_dict(_through_a_file(prepared.state_dict()))
    laws.assert_equal(fresh.eval()(INPUT), prepared(INPUT))
    other = fxquant.convert(fresh)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(_through_a_file(quantized.state_dict()))
    laws.assert_equal(other(INPUT), quantized(INPUT))


def _through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
