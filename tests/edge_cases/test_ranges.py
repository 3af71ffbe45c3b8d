"""Edge cases 49 to 59: ranges, observers and fake-quants."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import QuantScheme
from fxquant.errors import UncalibratedError
from fxquant.fake_quant import LearnedStep, fake_quantize
from fxquant.observers import MinMax, MovingAverage, Observer
from fxquant.rounding import HALF_UP, divide_half_up, rescale_of, shift_half_up
from fxquant.schemes import UINT8, QParams, code_of, quantize, range_to_qparams, round_half_up
from fxquant.sites.flow import sites
from tests import laws
from tests.edge_cases.checks import IMAGE, Net, contract, conv, explains, kept, settle_norms

INPUT = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3))
TRAIN = laws.CONFIGS["train"]


def net():
    return Net(lambda s, x: s.b(s.bn(s.a(x)).relu()), a=conv(), b=conv(), bn=nn.BatchNorm2d(4))


DATA = {
    "all zero": torch.zeros(IMAGE),
    "constant": torch.full(IMAGE, 3.0),
    "one element": torch.randn(1, 4, 1, 1),
    "denormal": INPUT * 1e-42,
    "huge": INPUT * 1e37,
}


@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_case_49_odd_data(x):
    """Kept: zeros, constants, single elements, denormal and huge numbers have finite scales."""
    model = Net(lambda s, x: s.b(s.a(x).relu()), a=conv(), b=conv())
    results = kept(model, x, near=None)
    for prepared, _ in results.values():
        for _, site in sites(prepared):
            assert 0 < float(site.quantizer.scale) < float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_case_49_batches_that_say_nothing(value):
    """Kept: a batch with NaN or infinity in it, or an empty one, moves no range that sees it."""
    prepared = fxquant.prepare_qat(Net(lambda s, x: s.b(s.a(x)), a=conv(), b=conv()))
    laws.settle(prepared, INPUT)
    entrance = prepared.fxquant.quantize_x  # behind it infinity is the end of the range
    before = copy.deepcopy(entrance.state_dict())
    odd = INPUT.clone()
    odd[0, :, 0, 0] = value
    prepared.train()
    for x in (odd, INPUT[:0]):
        prepared(x)
    assert all(torch.equal(before[k], v) for k, v in entrance.state_dict().items())


@pytest.mark.parametrize("x", [INPUT * float("nan"), INPUT[:0]], ids=["NaN", "empty"])
def test_case_49_no_finite_data(x):
    """Refused: a network that has seen nothing but NaN, or nothing at all, is not converted."""
    prepared = fxquant.prepare_qat(Net(lambda s, x: s.a(x), a=conv()))
    prepared.train()(x)
    with pytest.raises(UncalibratedError) as caught:
        fxquant.convert(prepared)
    words = ("it has seen no finite data", "train() mode first")
    explains(caught.value, *words, module="", line=None, node="quantize_x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_case_49_float_types(dtype):
    """Kept: ranges are float32, or float64 in a float64 network, whatever floats come by."""
    result = contract(net().to(dtype), (INPUT.to(dtype),), TRAIN)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert result.prepared.fxquant.quantize_x.output.observer.low.dtype is wide
    for observer in (Observer(MinMax()), Observer(MovingAverage())):
        assert observer(INPUT.to(dtype)).dtype is dtype
        assert observer.low == INPUT.to(dtype).min().float()


@pytest.mark.parametrize(("low", "high"), [(2.0, 5.0), (-5.0, -2.0), (1e-30, 1e-30), (0.0, 3.0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_case_50_one_sided_range(low, high, symmetric):
    """Kept: a range that lies on one side of 0 is widened to hold it."""
    scheme = QuantScheme(symmetric=symmetric)
    q = range_to_qparams(torch.tensor(low), torch.tensor(high), scheme)
    zero = quantize(torch.zeros(()), q)
    assert scheme.qmin <= int(q.zero_point) <= scheme.qmax
    assert int(zero) == int(q.zero_point)
    assert float(fake_quantize(torch.zeros(()), q)) == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_case_50_one_sided_data(sign):
    """Kept: data of one sign, padded with zeros that are exact."""
    config = {name: replace(c, activation=QuantScheme()) for name, c in laws.CONFIGS.items()}
    for configs in (laws.CONFIGS, config):
        kept(Net(lambda s, x: s.a(x), a=conv()), (INPUT.abs() + 1) * sign, configs=configs)


ZEROS = {
    "mul": lambda s, x: s.a(x).mul(0.0),
    "strided": lambda s, x: s.a(x)[:, :, ::2, ::2].mul(0.0),
    "in a sum": lambda s, x: s.a(x) + x * 0.0,
    "of the input": lambda s, x: x * 0.0,
    "before a conv": lambda s, x: s.b(s.a(x) * 0),
    "of zeros": lambda s, x: s.a(x.mul(0.0)).mul(0.0),
}


@pytest.mark.parametrize("forward", ZEROS.values(), ids=ZEROS)
def test_case_51_zero_operator(forward):
    """Kept: zeros keep the range of what they were made of, so no scale is 0 or infinite."""
    for prepared, quantized in kept(Net(forward, a=conv(), b=conv()), INPUT).values():
        for _, site in sites(prepared):
            assert 0 < float(site.quantizer.scale) < float("inf")
            assert site.op.name != "zero" or site.quantizer is site.sources[0]
        assert quantized(INPUT).isfinite().all()


NARROW = QuantScheme(narrow=True)
SCHEMES = {
    "weights": {"weight": NARROW},
    "weights per channel, 4 bits": {"weight": QuantScheme(bits=4, narrow=True, per_channel=True)},
    "activations": {"activation": NARROW},
    "activations, not symmetric": {"activation": QuantScheme(narrow=True, symmetric=False)},
}


@pytest.mark.parametrize("schemes", SCHEMES.values(), ids=SCHEMES)
def test_case_52_narrow_range(schemes):
    """Kept: with a narrow range no code is the lowest one."""
    model = Net(lambda s, x: s.b(s.a(x).relu()), a=conv(), b=conv())
    configs = {name: replace(config, **schemes) for name, config in laws.CONFIGS.items()}
    for _, quantized in kept(model, INPUT, configs=configs, near=None).values():
        scheme = schemes.get("weight", fxquant.QuantConfig().weight)
        assert int(quantized.fxquant.a.weight.min()) >= -scheme.qmax
        if "activation" in schemes:
            codes = quantized.fxquant.quantize_x(INPUT * 100)
            assert int(codes.min()) == schemes["activation"].qmin == -127


SAME = {
    "relu behind a pool": lambda s, y: F.max_pool2d(y, 3, 1, 1).relu(),
    "relu6 behind a pool": lambda s, y: F.relu6(F.max_pool2d(y, 3, 1, 1)),
    "max pool": lambda s, y: F.max_pool2d(y, 2),
    "avg pool": lambda s, y: F.avg_pool2d(y, 2),
    "slice": lambda s, y: y[:, :, 1:, ::2],
    "reshape": lambda s, y: y.reshape(2, 4, 4, 16),
    "transpose": lambda s, y: y.transpose(2, 3).contiguous(),
    "channel shuffle": lambda s, y: F.channel_shuffle(y, 2),
    "chunk": lambda s, y: torch.chunk(y, 2, 2)[1],
    "identity": lambda s, y: s.same(y),
    "dropout": lambda s, y: F.dropout(y, 0.5, s.training),
    "pad": lambda s, y: F.pad(y, (1, 0, 0, 1)),
    "clone": lambda s, y: y.clone(),
}


@pytest.mark.parametrize("between", SAME.values(), ids=SAME)
def test_case_53_same_parameters(between):
    """Kept: what only picks, moves or averages in windows has the parameters of what it reads."""
    model = Net(lambda s, x: s.b(between(s, s.a(x))), a=conv(), b=conv(), same=nn.Identity())
    for prepared, quantized in kept(model, INPUT).values():
        assert prepared.fxquant.b.sources[0] is prepared.fxquant.a.output
        assert torch.equal(quantized.fxquant.b.x_zero, quantized.fxquant.a.y_zero)


def test_case_54_one_rounding():
    """Kept: real numbers and integers alike are rounded half-up, in training and in integers."""
    ties = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    expected = [-2, -1, 0, 1, 2, 3]
    q = QParams(torch.tensor(1.0), torch.tensor(100, dtype=torch.int32), UINT8)
    assert round_half_up(ties).tolist() == expected
    assert fake_quantize(ties, q).tolist() == expected
    assert [int(code) - 100 for code in quantize(ties, q)] == expected
    assert [int(code) - 100 for code in code_of(ties, q)] == expected
    halves = (ties * 2).to(torch.int64)
    assert shift_half_up(halves, torch.tensor(1)).tolist() == expected
    assert divide_half_up(halves, torch.tensor(2)).tolist() == expected
    rescale = rescale_of(torch.tensor(0.5, dtype=torch.float64))
    ends = torch.tensor(-128), torch.tensor(127)
    codes = HALF_UP.requantize(halves, rescale, torch.tensor(0), *ends, torch.int8)
    assert codes.tolist() == expected


def test_case_54_ties_in_a_network():
    """Kept: a value half way between two codes becomes the same code before and after convert."""
    model = Net(lambda s, x: F.max_pool2d(x, 1))
    prepared = fxquant.prepare_qat(model)
    laws.settle(prepared, torch.tensor([[[[-100.0, 155.0]]]]))  # scale 1
    ties = torch.arange(-8, 8).reshape(1, 1, 4, 4) + 0.5
    trained = prepared.fxquant.quantize_x.output(ties)  # as training rounds
    assert torch.equal(prepared(ties), trained)
    assert torch.equal(trained, torch.floor(ties + 0.5))
    assert torch.equal(fxquant.convert(prepared)(ties), trained)


LEARNED = {name: replace(c, fake_quant=fxquant.LSQ()) for name, c in laws.CONFIGS.items()}


def test_case_55_learned_step():
    """Kept: learned scales start from the first batch's range, and are parameters before it."""
    model = Net(lambda s, x: s.b(s.a(x).relu()).sigmoid(), a=conv(), b=conv())
    for prepared, _ in kept(model, INPUT, configs=LEARNED).values():
        steps = [name for name, _ in prepared.named_parameters() if name.endswith("output.step")]
        assert len(steps) == 3  # the input, a and b; a sigmoid's range is known
        q = prepared.fxquant.quantize_x.output
        first = range_to_qparams(INPUT.min(), INPUT.max(), UINT8)
        assert torch.equal(q.scale, first.scale)
        assert torch.equal(q.zero_point, first.zero_point)


@pytest.mark.parametrize("rate", [0.1, 10.0, 1e4])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("config", LEARNED.values(), ids=LEARNED)
def test_case_55_wild_steps(config, optimizer, rate):
    """Kept: no step of an optimizer, however large, makes a scale 0, negative or infinite."""
    prepared = fxquant.prepare_qat(net(), config=config).train()
    trainer = optimizer(prepared.parameters(), lr=rate)  # before there is data
    quantizers = [m for m in prepared.modules() if isinstance(m, LearnedStep)]
    for step in range(4):
        trainer.zero_grad()
        prepared(INPUT).tanh().square().mean().backward()
        before = [float(quantizer.scale) for quantizer in quantizers]
        trainer.step()
        after = [float(quantizer.scale) for quantizer in quantizers]
        assert all(0 < scale < float("inf") for scale in after)
        assert step > 0 or before != after  # they do learn
    quantized = fxquant.convert(prepared.eval())
    laws.assert_equal(quantized(INPUT), prepared(INPUT))
    fresh = fxquant.prepare_qat(net(), config=config)
    fresh.load_state_dict(prepared.state_dict())
    laws.assert_equal(fresh.eval()(INPUT), prepared(INPUT))


def test_case_55_zero_gradient_count():
    """Kept: as many values get a zero gradient as are clipped, those and no others."""
    quantizer = LearnedStep(UINT8, Observer(MovingAverage()))
    quantizer(INPUT)
    with torch.no_grad():
        quantizer.step.mul_(0.5)
    x = (INPUT * 2).requires_grad_()
    quantizer(x).sum().backward()
    codes = round_half_up(x.detach() / quantizer.scale) + quantizer.zero_point
    clipped = (codes < UINT8.qmin) | (codes > UINT8.qmax)
    assert 0 < int(clipped.sum()) < x.numel()
    assert torch.equal(x.grad == 0, clipped)


# what each of two ranks reads, step by step
UNEVEN = (
    (INPUT, INPUT[:1] * 3),
    (INPUT[:0], INPUT + 1),
    (INPUT * 2, INPUT * float("nan")),
    (INPUT[:0], INPUT * float("inf")),  # neither says anything
    (INPUT[:1] - 1, INPUT),
)


def _train_a_rank(rank, folder):
    """What one process does: ranges of its own batches, agreed upon, left in a file."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.manual_seed(0)
    prepared = fxquant.prepare_qat(two_convs()).train()
    for batches in UNEVEN:
        prepared(batches[rank])
    torch.save(prepared.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_convs():
    return Net(lambda s, x: s.b(s.a(x).relu()), a=conv(), b=conv())


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_case_56_ranks_agree(tmp_path):
    """Kept: ranks agree on every range, batches of odd sizes, empty ones and NaN included."""
    torch.multiprocessing.spawn(_train_a_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # one process that sees the batches of both ranks that say anything
    entrance = Observer(MovingAverage())
    for batches in UNEVEN:
        entrance(torch.cat([x for x in batches if x.isfinite().all()]))
    for end, expected in entrance.state_dict().items():
        assert torch.equal(first[f"fxquant.quantize_x.output.observer.{end}"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_case_57_autocast(dtype):
    """Kept: autocast may go on around training, and changes no integer."""
    prepared = fxquant.prepare_qat(net()).train()
    with torch.autocast("cpu", dtype):
        for _ in range(2):
            prepared(INPUT).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in prepared.parameters())
    assert prepared.fxquant.a.output.scale.dtype is torch.float32
    quantized = fxquant.convert(prepared.eval())
    expected = quantized(INPUT)
    with torch.autocast("cpu", dtype):
        laws.assert_equal(quantized(INPUT), expected)
        laws.assert_equal(prepared(INPUT), expected)


def test_case_58_eval_moves_nothing():
    """Kept: in eval() no observer, no scale and no statistic moves."""
    for prepared, _ in kept(net(), INPUT).values():
        before = copy.deepcopy(prepared.state_dict())
        prepared.eval()(INPUT * 100)
        assert all(torch.equal(before[k], v) for k, v in prepared.state_dict().items())


def test_case_58_state_dict():
    """Kept: whether a range is known, and which, travels in the state_dict."""
    model = settle_norms(net())
    for name, (prepared, quantized) in kept(model, INPUT).items():
        fresh = fxquant.prepare_qat(model, config=laws.CONFIGS[name])
        fresh.load_state_dict(prepared.state_dict())
        laws.assert_equal(fresh.eval()(INPUT), quantized(INPUT))
        fresh.load_state_dict(fxquant.prepare_qat(model, config=laws.CONFIGS[name]).state_dict())
        with pytest.raises(UncalibratedError):
            fxquant.convert(fresh)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_case_58_phases(steps):
    """Kept: the steps so far, and with them what is frozen, travel as well."""
    starts = {"round": 1, "freeze_ranges": 2, "freeze_batch_norm": 3}
    trained, resumed = (fxquant.prepare_qat(net()).train() for _ in range(2))
    phases = fxquant.PhaseSchedule(trained, **starts)
    for _ in range(steps):
        trained(INPUT)
        phases.step()
    resumed.load_state_dict(trained.state_dict())
    for step in range(steps, 5):
        before = resumed.bn.running_mean.clone()
        laws.assert_equal(resumed(INPUT), trained(INPUT))
        assert torch.equal(resumed.bn.running_mean, before) is (step >= 3)
        phases.step()
        resumed.load_state_dict(trained.state_dict())


def test_case_59_one_scale_formula():
    """Kept: the scales that training rounds with are those of the integers."""
    model = Net(lambda s, x: s.b(s.a(x).relu()), a=conv(), b=conv())
    for prepared, quantized in kept(model, INPUT).values():
        site, numbers = prepared.fxquant.a, quantized.fxquant.a
        scale = site.weight_quant.scale(prepared.a.weight).reshape(-1, 1, 1, 1)
        rounded = site.weight_quant(prepared.a.weight.detach())
        torch.testing.assert_close(rounded, numbers.weight * scale, rtol=1e-6, atol=0)
        (source,) = site.sources
        observed = range_to_qparams(source.observer.low, source.observer.high, UINT8)
        for q in (source.qparams, quantized.fxquant.quantize_x.qparams):
            assert torch.equal(q.scale, observed.scale)
            assert torch.equal(q.zero_point, observed.zero_point)
        factor = source.scale.double() * scale.flatten().double() / site.output.scale.double()
        expected = rescale_of(factor)
        assert torch.equal(numbers.multiplier, expected.multiplier)
        assert torch.equal(numbers.shift, expected.shift)
