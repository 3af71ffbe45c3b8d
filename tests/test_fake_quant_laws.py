"""What is true of every fake-quant: laws written once; and the gradients of the papers, by hand."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import (
    BINARY,
    INQ,
    LSQ,
    PACT,
    TERNARY,
    TQT,
    TWN,
    DoReFa,
    LSQPlus,
    QuantConfig,
    QuantScheme,
)
from fxquant.errors import ConfigError
from fxquant.fake_quant import (
    FAKE_QUANTS,
    PROJECTIONS,
    TRANSFORMS,
    ByChance,
    Clipped,
    FakeQuant,
    Stages,
    Stochastic,
    Tanh,
    Transform,
)
from fxquant.observers import MinMax, Observer
from fxquant.schemes import UINT8, Channels, dequantize, quantize, round_half_up
from fxquant.sites.flow import sites
from tests import laws
from tests.strategies import chain, net_specs

METHODS = (
    *(kind() for kind in FAKE_QUANTS),
    Stages(Tanh(), ByChance(), learned=True),
    Stages(Clipped(2.0)),
)
BY_CHANCE = (Stochastic(), Stages(Tanh(), ByChance(), learned=True))
EVERY = pytest.mark.parametrize("method", METHODS, ids=str)
UINT4, INT4_WEIGHT = UINT8.with_bits(4), BINARY.with_bits(4)
WEIGHTS = (BINARY, TERNARY, INT4_WEIGHT, QuantScheme(bits=3), QuantScheme(bits=8, narrow=True))


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def activation(method: FakeQuant, scheme: QuantScheme, *batches: torch.Tensor):
    quant = method.activation(scheme, Observer(MinMax()))
    for batch in batches:
        quant(batch)
    return quant


def train_a_little(prepared, spec, rate=0.05):
    """Three steps; what they do to learned numbers is the point, not what is learned."""
    prepared.train()
    parameters = list(prepared.parameters())
    for seed in range(3):
        found = [y for y in laws.flat(prepared(spec.inputs(4, seed))) if y is not None]
        loss = sum(y.tanh().square().mean() for y in found)
        if not loss.requires_grad:
            continue
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    parameter -= rate * grad.clamp(-1, 1)


@settings(max_examples=40, deadline=None)
@given(
    spec=net_specs(5), method=st.sampled_from(METHODS), bits=st.integers(1, 8),
    per_channel=st.booleans(), fold=st.booleans(),
)
def test_what_is_trained_is_what_is_converted(spec, method, bits, per_channel, fold):
    laws.capture(spec.build())  # or it is refused honestly
    config = QuantConfig(
        activation=UINT8.with_bits(max(bits, 2)),
        weight=QuantScheme(bits=bits, narrow=True, per_channel=per_channel),
        batch_norm="fold" if fold else "train",
        fake_quant=method,
    )
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    train_a_little(prepared, spec)
    quantized, x = fxquant.convert(prepared), spec.inputs(3, seed=7)
    laws.assert_equal(quantized(x), prepared.eval()(x))
    fresh = fxquant.prepare_qat(spec.build(), config=config)
    fresh.load_state_dict(prepared.state_dict())
    laws.assert_equal(fresh.eval()(x), prepared(x))


@EVERY
def test_training_rounds_as_eval_does(method):
    """Weights and activations; what is drawn by chance lies within a step."""
    steps = 1.01 if method in BY_CHANCE else 0.01  # a float32 product may be the neighbour
    for seed, shift in enumerate((0.0, 2.0, -2.0)):
        x = values(seed, 4, 50) + shift
        quant = activation(method, UINT4, x)
        nearest = dequantize(quantize(x, quant.qparams), quant.qparams)
        assert ((quant(x) - nearest).abs() <= steps * quant.qparams.scale).all()
        assert torch.allclose(quant.eval()(x), nearest)
    for seed, scheme in enumerate(WEIGHTS):
        weight, channels = values(seed, 6, 3, 3), Channels()
        if scheme.bits == 1:
            continue
        quant = method.weight(scheme, channels, weight)
        if isinstance(method, INQ):  # until then training does not round
            quant.fix(weight, 1.0)
        scale = channels.spread(quant.scale(weight), weight)
        codes = round_half_up(quant.transform(weight) / scale).clamp(scheme.qmin, scheme.qmax)
        assert ((quant(weight) - codes * scale).abs() <= steps * scale).all()
        assert torch.allclose(quant.eval()(weight), codes * scale, rtol=1e-4)


@EVERY
def test_a_first_batch_without_numbers_says_nothing(method):
    quant = activation(method, UINT8, torch.tensor([math.nan, 1.0]), torch.ones(0))
    assert not quant.ready
    quant(torch.tensor([[-1.0, 3.0]]))
    assert quant.ready
    before = copy.deepcopy(quant.state_dict())
    quant.eval()(torch.tensor([[-50.0, 50.0]]))
    assert all(torch.equal(before[name], value) for name, value in quant.state_dict().items())


@EVERY
@pytest.mark.parametrize("number", [0.0, -0.0, -0.3, 1e-45, -1e38, 3e38, math.inf, -math.inf])
def test_no_optimizer_makes_a_scale_useless(method, number):
    x = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 3.0]], requires_grad=True)
    weight = values(0, 4, 3).requires_grad_()
    of_weight = method.weight(INT4_WEIGHT, Channels(), weight)
    for quant, source in ((activation(method, UINT4, x), x), (of_weight, weight)):
        with torch.no_grad():
            for parameter in quant.parameters():
                parameter.fill_(number)
        scale = quant.scale(weight) if source is weight else quant.qparams.scale
        assert (scale > 0).all()
        assert scale.isfinite().all()
        assert (1 / scale).isfinite().all()
        y = quant(source)
        y.sum().backward()
        assert y.isfinite().all()
        assert source.grad.isfinite().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_float_is_quantized(method, dtype):
    x = values(0, 4, 30).to(dtype).requires_grad_()
    y = activation(method, UINT8, x)(x)
    weight = values(1, 4, 3).to(dtype).requires_grad_()
    w = method.weight(INT4_WEIGHT, Channels(), weight)(weight)
    (y.sum() + w.sum()).backward()
    assert y.dtype is w.dtype is x.grad.dtype is weight.grad.dtype is dtype


@EVERY
def test_half_precision_keeps_the_numbers_of_grids(method):
    quant = method.weight(INT4_WEIGHT, Channels(), values(0, 4, 3))
    before = copy.deepcopy(quant.state_dict())
    after = quant.to(torch.float16).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# ------------------------------------------------------------------------ gradients of the papers


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 100), bits=st.integers(2, 8), per_channel=st.booleans())
def test_lsq_of_weights_in_plain_python(seed, bits, per_channel):
    """ds = Σ dy · (q - w/s, or the end where clamped) / √(n·Q); the start is 2·E|w| / √Q."""
    scheme = QuantScheme(bits=bits, narrow=True, per_channel=per_channel)
    weight, dy = values(seed, 3, 5), values(seed + 1, 3, 5)
    quant = LSQ().weight(scheme, Channels(), weight)
    top, groups = scheme.qmax, [[0], [1], [2]] if per_channel else [[0, 1, 2]]
    starts = []
    for rows in groups:
        size = [abs(float(w)) for row in rows for w in weight[row]]
        starts.append(min(2 * sum(size) / len(size) / top**0.5, max(size) / top))
    assert quant.step.tolist() == pytest.approx(starts)
    with torch.no_grad():
        quant.step.mul_(0.7)
    source = weight.clone().requires_grad_()
    quant(source).backward(dy)
    for number, rows in enumerate(groups):
        s, total = quant.step[number].item(), 0.0
        for row in rows:
            for w, d in zip(weight[row].tolist(), dy[row].tolist(), strict=True):
                code = math.floor(w / s + 0.5)
                total += d * (code - w / s if abs(code) <= top else math.copysign(top, code))
        factor = 1 / math.sqrt(5 * len(rows) * top)
        assert float(quant.step.grad[number]) == pytest.approx(total * factor, rel=1e-3, abs=1e-4)
    scale = quant.scale(weight)[:, None]
    assert torch.equal(source.grad, dy * ((weight / scale + 0.5).floor().abs() <= top))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 100), bits=st.integers(2, 8), shift=st.sampled_from([-1.0, 0.0, 2.0]))
def test_lsq_plus_in_plain_python(seed, bits, shift):
    """ds = Σ dy · (q - (x - b)/s, or the end), db = Σ dy where clamped, both / √(n·Q)."""
    scheme = UINT8.with_bits(bits)
    x, dy = values(seed, 4, 20) + shift, values(seed + 1, 4, 20)
    quant = activation(LSQPlus(), scheme, x)
    with torch.no_grad():
        quant.step.mul_(0.6)
        quant.offset.mul_(0.6)
    quant(x).backward(dy)
    s, z = float(quant.qparams.scale), int(quant.qparams.zero_point)
    assert z == min(max(math.floor(-quant.offset.item() / s + 0.5), 0), scheme.qmax)
    ds = db = 0.0
    for value, d in zip(x.flatten().tolist(), dy.flatten().tolist(), strict=True):
        code = math.floor(value / s + 0.5) + z
        clamped = min(max(code, 0), scheme.qmax)
        ds += d * (clamped - (value / s + z) if code == clamped else clamped)
        db += d * (code != clamped)
    factor = 1 / math.sqrt(20 * scheme.qmax)
    assert float(quant.step.grad) == pytest.approx(ds * factor, rel=1e-3, abs=1e-3)
    assert float(quant.offset.grad) == pytest.approx(db * factor, rel=1e-3, abs=1e-4)


def test_lsq_plus_starts_where_the_error_of_the_first_batch_is_least():
    """One outlier of 100 among a thousand values below 1: 4 bits do without it."""
    x = torch.cat((values(0, 1000).sigmoid(), torch.tensor([100.0])))[None]
    assert activation(LSQPlus(), UINT4, values(0, 1, 1000).sigmoid()).step.item() < 0.1
    with_outlier = activation(LSQPlus(), UINT4, x)
    assert with_outlier.step.item() == pytest.approx(100 / 15 * 0.9, rel=0.2)


def test_finite_differences_of_what_is_rounded():
    """With what rounding adds held as it is, y is smooth in s and b; its slopes are LSQ+'s."""
    x = values(3, 6, 30).double()
    quant = activation(LSQPlus(), UINT4, x.float())
    with torch.no_grad():
        quant.step.mul_(0.7)
    s, z = float(quant.qparams.scale), int(quant.qparams.zero_point)
    b = -z * s
    codes = (x.float() / quant.qparams.scale + 0.5).floor().double() + z
    added = codes - (x - b) / s

    def y(s, b):
        q = ((x - b) / s + added).clamp(0, 15)  # rounding adds the same, whatever s and b
        inside = (codes >= 0) & (codes <= 15)
        return torch.where(inside, x + added * s, q * s + b).sum()

    quant(x.float()).sum().backward()
    factor, h = 1 / math.sqrt(30 * 15), 1e-6
    ds, db = (y(s + h, b) - y(s - h, b)) / 2 / h, (y(s, b + h) - y(s, b - h)) / 2 / h
    assert float(quant.step.grad) == pytest.approx(float(ds) * factor, rel=1e-3)
    assert float(quant.offset.grad) == pytest.approx(float(db) * factor, rel=1e-3)


def test_pact_by_hand():
    """Clipped at 3 with codes 0 to 15: steps of 1/5. Nothing below 0 was seen."""
    quant = activation(PACT(), UINT4, torch.tensor([[0.0, 3.0]]))
    assert int(quant.qparams.zero_point) == 0
    x = torch.tensor([[-1.0, 0.09, 0.11, 2.0, 3.5, 9.0]], requires_grad=True)
    y = quant(x)
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0, 0.2, 2.0, 3.0, 3.0]]))
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    assert x.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 0.0, 0.0]]
    assert float(quant.clip.grad) == 11


def test_pact_of_what_goes_below_zero():
    """Clipped at ±3.5 with codes 0 to 15 around 8: 7 steps of 1/2 above."""
    quant = activation(PACT(), UINT4, torch.tensor([[-1.0, 3.5]]))
    assert int(quant.qparams.zero_point) == 8
    x = torch.tensor([[-9.0, -1.0, 9.0]], requires_grad=True)
    y = quant(x)
    assert y.tolist() == [[-3.5, -1.0, 3.5]]
    y.backward(torch.tensor([[1.0, 2.0, 5.0]]))
    assert x.grad.tolist() == [[0.0, 2.0, 0.0]]
    assert float(quant.clip.grad) == 5 - 1


def test_tqt_by_hand():
    """t = log2 3: 2^2 / 2^3 = 1/2. x/s = 1.25, -20 clamped to -8: dt = s·ln2·(1 - 1.25, -8)."""
    quant = activation(TQT(), QuantScheme(bits=4), torch.tensor([[-1.0, 1.0]]))
    with torch.no_grad():
        quant.log_threshold.fill_(math.log2(3))
    assert float(quant.qparams.scale) == 0.5
    x = torch.tensor([[0.625, -10.0]], requires_grad=True)
    y = quant(x)
    assert y.tolist() == [[0.5, -4.0]]
    y.backward(torch.tensor([[1.0, 2.0]]))
    assert x.grad.tolist() == [[1.0, 0.0]]
    expected = 0.5 * math.log(2) * (-0.25 * 1 - 8 * 2)
    assert float(quant.log_threshold.grad) == pytest.approx(expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 100), bits=st.integers(2, 8), factor=st.floats(1e-6, 1e6))
def test_scales_of_tqt_are_powers_of_two(seed, bits, factor):
    x = values(seed, 4, 20) * factor
    weight = TQT().weight(QuantScheme(bits=bits, per_channel=True), Channels(), x)
    for shift in (0.0, 100.0 * factor):  # from 0 on, too
        quant = activation(TQT(), UINT8.with_bits(bits), x + shift)
        assert math.frexp(float(quant.qparams.scale))[0] == 0.5
        assert int(quant.qparams.zero_point) == (0 if shift else 2 ** (bits - 1))
    assert all(math.frexp(scale)[0] == 0.5 for scale in weight.scale(x).tolist())


def test_dorefa_by_hand():
    """The largest of each network stays; the gradient is that of tanh, times max|w| / max|tanh w|.
    """
    weight = torch.tensor([[0.5, -2.0, 1.0]], requires_grad=True)
    quant = DoReFa().weight(QuantScheme(bits=4, narrow=True), Channels(), weight)
    bent = [math.tanh(w) * 2 / math.tanh(2) for w in (0.5, -2.0, 1.0)]
    codes = [math.floor(t / (2 / 7) + 0.5) for t in bent]
    torch.testing.assert_close(quant(weight), torch.tensor([codes]) * 2 / 7)
    quant(weight).sum().backward()
    slopes = [(1 - math.tanh(w) ** 2) * 2 / math.tanh(2) for w in (0.5, -2.0, 1.0)]
    torch.testing.assert_close(weight.grad, torch.tensor([slopes]))


def test_binary_and_ternary_by_hand():
    """E|w| = 1: signs times 1. Beyond 0.7 lie 2 and 1.5: their signs times 1.75."""
    weight = torch.tensor([[2.0, -0.3, 0.2, -1.5]], requires_grad=True)
    layer = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    for scheme, method, expected in (
        (BINARY, LSQ(), [[1.0, -1.0, 1.0, -1.0]]),
        (TERNARY, TWN(), [[1.75, 0.0, 0.0, -1.75]]),
    ):
        config = QuantConfig(weight=scheme, fake_quant=method)
        prepared = fxquant.prepare_qat(layer, config=config)
        laws.settle(prepared, values(0, 8, 4))
        (_, site), = sites(prepared)
        weight.grad = None
        y = site.weight_quant(weight)
        assert y.tolist() == expected
        y.backward(torch.ones(1, 4) * 3)
        assert weight.grad.tolist() == [[3.0] * 4]
        codes = next(m for m in fxquant.convert(prepared).modules() if hasattr(m, "bound")).weight
        assert codes.tolist() == [[round(e / max(expected[0])) for e in expected[0]]]


def test_chance_is_right_on_average():
    quant = activation(Stochastic(), QuantScheme(bits=4), torch.tensor([[-7.0, 7.0]]))
    x = torch.tensor([[0.3, -1.25, 4.0, 7.0, -6.9]]).expand(4000, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = quant(x)
    assert torch.equal(y, y.round())
    assert (y.mean(0) - x[0]).abs().max() < 0.03
    assert set(y[:, 2].tolist()) == {4.0}
    assert set(y[:, 0].tolist()) == {0.0, 1.0}


def test_learned_factors_are_trained_and_shipped():
    spec = chain("conv", "relu", "conv_depthwise", head=True)
    config = QuantConfig(weight=INT4_WEIGHT, fake_quant=Stages(Tanh(), learned=True))
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    factors = {n: p.clone() for n, p in prepared.named_parameters() if n.endswith("factor")}
    assert len(factors) == 3
    train_a_little(prepared, spec, rate=0.5)
    after = dict(prepared.named_parameters())
    assert not any(torch.equal(after[name], before) for name, before in factors.items())


@dataclass(frozen=True)
class Cubed(Transform):
    """A user's own."""

    def __call__(self, weight, channels):
        return weight + weight**3


@pytest.mark.parametrize("transform", [*(kind() for kind in TRANSFORMS), Cubed()], ids=str)
@pytest.mark.parametrize("projection", [kind() for kind in PROJECTIONS], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_any_three_stages_compose(transform, projection, learned):
    """y = r·round(t(w) / s), r = s unless it is learned; dw = dy·t'(w), 0 where t is flat."""
    weight = values(0, 3, 5, 3, 3).requires_grad_()
    method = Stages(transform, projection, learned)
    quant = method.weight(INT4_WEIGHT, Channels(), weight)
    if learned:
        with torch.no_grad():
            quant.factor.mul_(torch.tensor([0.5, -2.0, 1.0]))
    shaped = transform(weight, Channels())
    step = Channels().spread(shaped.detach().flatten(1).abs().amax(1) / 7, weight)
    factor = step if not learned else quant.factor.detach().abs().reshape(-1, 1, 1, 1)
    codes = round_half_up(shaped.detach() / step)
    torch.testing.assert_close(quant.eval()(weight), codes * factor)
    expected = torch.autograd.grad(shaped.sum(), weight)[0]
    quant.train()(weight).backward(step / factor * torch.ones_like(weight))
    torch.testing.assert_close(weight.grad, expected)
    spec = chain("conv", "relu", "conv")
    config = QuantConfig(weight=INT4_WEIGHT, weight_fake_quant=method)
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    train_a_little(prepared, spec)
    x = spec.inputs(2, 9)
    assert torch.equal(fxquant.convert(prepared)(x), prepared.eval()(x))


def test_clipping_takes_outliers_in():
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 20.0]], requires_grad=True)
    quant = Stages(Clipped(2.0)).weight(INT4_WEIGHT, Channels(), weight)
    limit = 2 * math.sqrt((6 + 400) / 7)
    assert float(quant.scale(weight)) == pytest.approx(limit / 7)
    quant(weight).sum().backward()
    assert weight.grad.tolist() == [[1.0] * 6 + [0.0]]
    with pytest.raises(ConfigError, match="stds is a positive number, got -1"):
        Clipped(-1)


def test_methods_are_chosen_for_all_for_weights_and_for_single_calls():
    spec = chain("conv", "relu", "conv", "conv")
    config = QuantConfig(
        fake_quant=PACT(), weight_fake_quant=LSQ(),
        overrides=(
            fxquant.Override(path="steps.2", fake_quant=TQT()),
            fxquant.Override(path="steps.3", weight_fake_quant=DoReFa()),
        ),
    )
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    found = [site for _, site in sites(prepared)]
    assert [(type(s.output).__name__, type(s.weight_quant).__name__) for s in found] == [
        ("LearnedClip", "LearnedWeight"),
        ("TrainedThreshold", "TrainedWeightThreshold"),
        ("LearnedClip", "StagedWeight"),
    ]
    entrance = fxquant.Override(operator="quantize", weight_fake_quant=LSQ())
    with pytest.raises(ConfigError, match="sets weight_fake_quant, but what matches"):
        fxquant.prepare_qat(spec.build(), config=QuantConfig(overrides=(entrance,)))


def test_the_page_has_each():
    page = (Path(__file__).parent.parent / "docs/fake_quants.md").read_text()
    assert [kind for kind in FAKE_QUANTS if f"| `{kind.__name__}(" not in page] == []
