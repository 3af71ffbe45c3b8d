"""Fake-quants: values and gradients, against torch's own where that has the same formula."""

import copy
import math
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fxquant.fake_quant import (
    LearnedStep,
    ObservedStep,
    ObservedWeight,
    fake_quantize,
    round_to_grid,
    straight_through,
)
from fxquant.observers import MinMax, MovingAverage, Observer
from fxquant.schemes import INT8_WEIGHT, UINT8, Channels, QParams, QuantScheme, range_to_qparams


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 10), st.integers(0, 255))
def test_values_and_gradients_are_torchs_away_from_ties(seed, scale, zero_point):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, generator=generator) * 200 * scale
    ratio = x / scale
    x = x[(ratio - ratio.floor() - 0.5).abs() > 1e-3]  # torch rounds ties to even, we half-up
    q = QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), UINT8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a = fake_quantize(ours, q)
    b = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, 0, 255)
    torch.testing.assert_close(a, b)
    for y in (a, b):
        y.backward(torch.arange(len(x)).float())
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_ties_go_up_on_both_sides_of_zero():
    """0.5 → 1, -0.5 → 0, 1.5 → 2, -1.5 → -1."""
    x = torch.tensor([0.5, -0.5, 1.5, -1.5])
    q = QParams(torch.tensor(1.0), torch.tensor(10, dtype=torch.int32), UINT8)
    assert fake_quantize(x, q).tolist() == [1.0, 0.0, 2.0, -1.0]


def test_rounding_to_a_grid_never_clamps_and_lets_gradients_through():
    x = torch.tensor([1e4, -3.2, 0.3], requires_grad=True)
    y = round_to_grid(x, torch.tensor(0.5))
    y.sum().backward()
    assert y.tolist() == [1e4, -3.0, 0.5]
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_weight_is_on_the_grid_that_eval_uses():
    weight = torch.randn(6, 4, 3, 3)
    quant = ObservedWeight(INT8_WEIGHT, Channels())
    codes = quant(weight) / quant.scale(weight).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert codes.abs().amax((1, 2, 3)).round().tolist() == [127.0] * 6


def test_parameters_follow_the_data_in_train_and_stand_still_in_eval():
    quant = ObservedStep(UINT8, Observer(MovingAverage()))
    assert not quant.ready
    quant(torch.tensor([-1.0, 3.0]))
    expected = range_to_qparams(torch.tensor(-1.0), torch.tensor(3.0), UINT8)
    assert quant.ready
    assert torch.equal(quant.qparams.scale, expected.scale)
    assert torch.equal(quant.qparams.zero_point, expected.zero_point)
    quant.eval()(torch.tensor([-100.0, 100.0]))
    assert torch.equal(quant.qparams.scale, expected.scale)
    assert set(quant.state_dict()) == {"scale", "zero_point", "observer.low", "observer.high"}


INT4 = QuantScheme(bits=4)


def learned(scheme=UINT8, low=-1.0, high=3.0):
    """A learned step that has seen that range."""
    quant = LearnedStep(scheme, Observer(MovingAverage()))
    quant(torch.tensor([low, high]))
    return quant


def test_a_learned_step_starts_from_the_first_batch_and_then_is_the_optimizers():
    quant = LearnedStep(UINT8, Observer(MovingAverage()))
    assert not quant.ready
    for x in (torch.tensor([float("nan"), 1.0]), torch.ones(0)):  # they say nothing
        quant(x)
    assert not quant.ready
    quant(torch.tensor([-1.0, 3.0]))
    expected = range_to_qparams(torch.tensor(-1.0), torch.tensor(3.0), UINT8)
    assert quant.ready
    before = copy.deepcopy(quant.state_dict())
    assert set(before) == {"step", "zero_point", "observer.low", "observer.high"}
    quant(torch.tensor([-100.0, 100.0]))
    quant.eval()(torch.tensor([-100.0, 100.0]))
    assert all(torch.equal(before[name], value) for name, value in quant.state_dict().items())
    assert torch.equal(quant.qparams.scale, expected.scale)
    assert torch.equal(quant.qparams.zero_point, expected.zero_point)
    assert (quant.scale.dtype, quant.zero_point.dtype) == (torch.float32, torch.int32)
    assert not quant.scale.requires_grad


def test_a_learned_step_starts_where_its_observer_has_been():
    observer = Observer(MinMax())
    observer(torch.tensor([-1.0, 3.0]))
    quant = LearnedStep(UINT8, observer)
    assert quant.ready
    assert torch.equal(quant.scale, learned().scale)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gradient_of_a_learned_step(sign):
    """Step 0.5, codes -8 to 7, 5 features: x / s = 1.25, -0.5, 7.375, 12, -50.

    codes       1, 0 (half-up), 7, 7 (clamped), -8 (clamped)
    slopes  -0.25,         0.5, -0.375,     7,       -8
    ds      (-0.25·1 + 0.5·2 - 0.375·3 + 7·4 - 8·5) / √(5·7) = -12.375 / √35
    """
    quant = learned(INT4, -3.5, 3.5)
    assert float(quant.scale) == 0.5
    with torch.no_grad():
        quant.step.mul_(sign)  # the scale is |step|: its gradient turns around with it
    x = torch.tensor([[0.625, -0.25, 3.6875, 6.0, -25.0]], requires_grad=True)
    y = quant(x)
    assert y.tolist() == [[0.5, 0.0, 3.5, 3.5, -4.0]]
    assert torch.equal(y, fake_quantize(x, quant.qparams))
    dy = torch.arange(1.0, 6.0)
    y.backward(dy[None])
    assert x.grad.tolist() == [[1.0, 2.0, 3.0, 0.0, 0.0]]
    torch.testing.assert_close(quant.step.grad, torch.tensor(sign * -12.375 / 35**0.5))


def test_clamping_is_around_the_zero_point():
    """[-1, 3] in uint8: z = 64, so codes reach from -64 to 191 steps of 4/255."""
    quant = learned()
    quant(torch.tensor([[-9.0, 9.0]])).sum().backward()
    torch.testing.assert_close(quant.step.grad, torch.tensor((191 - 64) / (2 * 191) ** 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_learned_step_takes_any_float(dtype):
    quant = learned()
    x = torch.tensor([-0.5, 0.3, 9.0], dtype=dtype, requires_grad=True)
    y = quant(x)
    y.sum().backward()
    assert y.dtype is x.grad.dtype is dtype
    assert quant.step.grad.dtype is torch.float32
    assert quant.step.grad.isfinite()


def test_an_empty_batch_gives_a_learned_step_no_gradient():
    quant = learned()
    quant(torch.ones(0, requires_grad=True)).sum().backward()
    assert quant.step.grad == 0


@pytest.mark.parametrize("scheme", [UINT8, INT4, QuantScheme(bits=16, symmetric=False)], ids=str)
@pytest.mark.parametrize("step", [0.0, -0.0, -0.3, 1e-45, -1e38, 3e38, float("inf"), -float("inf")])
def test_no_optimizer_step_makes_a_scale_useless(scheme, step):
    quant = learned(scheme)
    with torch.no_grad():
        quant.step.fill_(step)
    assert 0 < float(quant.scale) < float("inf")
    assert 1 / float(quant.scale) < float("inf")
    x = torch.tensor([-1e38, -1.0, 0.0, 1.0, 1e38], requires_grad=True)
    for mode in (True, False):
        y = quant.train(mode)(x)
        assert y.isfinite().all()
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert quant.step.grad.isfinite()


def test_a_wild_optimizer_turns_no_scale_around():
    quant = learned()
    optimizer = torch.optim.SGD(quant.parameters(), lr=1e3)
    for _ in range(5):
        optimizer.zero_grad()
        quant(torch.tensor([-2.0, 0.4, 5.0])).square().sum().backward()
        optimizer.step()
        assert 0 < float(quant.scale) < float("inf")


def test_a_loaded_step_goes_on_and_an_unready_one_starts_anew():
    trained, fresh = learned(), LearnedStep(UINT8, Observer(MovingAverage()))
    with torch.no_grad():
        trained.step.mul_(0.5)
    unready = copy.deepcopy(fresh.state_dict())
    fresh.load_state_dict(trained.state_dict())
    assert fresh.ready
    fresh(torch.tensor([-100.0, 100.0]))
    assert torch.equal(fresh.scale, trained.scale)
    fresh.load_state_dict(unready)
    assert not fresh.ready
    fresh(torch.tensor([-1.0, 3.0]))
    assert torch.equal(fresh.scale, learned().scale)


@settings(deadline=None)
@given(
    st.integers(0, 1000), st.floats(0.01, 10), st.integers(0, 255),
    st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.5, 0.7)]),
)
@example(0, 0.2, 0, (-1.5, 0.7))  # 0.7 / 0.2 is 3.5 in float32 only
def test_limits_are_those_of_an_activation_before_it(seed, scale, zero_point, limits):
    """With numbers, as on the CPU, and with tensors, as elsewhere: values and gradients."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, generator=generator) * 200 * scale
    x[:4] = torch.tensor([0.0, 6.0, -1.5, 0.7])  # where the activations' own gradients end
    q = QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), UINT8)
    one, two, three = (x.clone().requires_grad_() for _ in range(3))
    plain = limits == (-math.inf, math.inf)
    apart = fake_quantize(one if plain else F.hardtanh(one, *limits), q)
    together = fake_quantize(two, q, *limits)
    with patch.object(straight_through, "on_host", lambda x: False):
        elsewhere = fake_quantize(three, q, *limits)
    for y in (apart, together, elsewhere):
        y.backward(torch.arange(len(x)).float())
    for y, source in ((together, two), (elsewhere, three)):
        assert torch.equal(y, apart)
        assert torch.equal(source.grad, one.grad)


@settings(deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([(-math.inf, math.inf), (0.0, math.inf)]),
)
def test_gradients_are_torchs_wherever_a_batch_lies_in_the_range(seed, spread, limits):
    """Inside of it, beyond one end or both: no mask is kept, or one."""
    generator = torch.Generator().manual_seed(seed)
    quant = ObservedStep(UINT8, Observer(MovingAverage()))
    quant(torch.randn(300, generator=generator), *limits)
    x = spread * torch.randn(300, generator=generator)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = quant(ours, *limits)
    limited = F.relu(theirs) if limits[0] == 0 else theirs
    scale, zero_point = float(quant.scale), int(quant.zero_point)
    expected = torch.fake_quantize_per_tensor_affine(limited, scale, zero_point, 0, 255)
    for output in (y, expected):
        output.backward(torch.arange(300.0))
    ratio = x / scale
    clear = (ratio - ratio.floor() - 0.5).abs() > 1e-3
    assert torch.equal(ours.grad[clear], theirs.grad[clear])


def kept_bytes(call):
    """What `call` keeps for its backward pass."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(found.append, lambda t: t):
        y = call()
    del y
    return sum(t.nbytes for t in found)


def test_a_byte_of_each_element_is_kept_where_some_are_clamped_and_nothing_else():
    quant = ObservedStep(UINT8, Observer(MovingAverage(momentum=0.5)))
    batch = torch.linspace(-1, 2, 1000)
    quant(batch)
    x = batch.clone().requires_grad_()
    assert kept_bytes(lambda: quant(x)) == 0
    assert kept_bytes(lambda: quant(2 * x)) == 1000
    assert kept_bytes(lambda: quant(0.1 * x)) == 0
    assert kept_bytes(lambda: quant(x, 0.0, math.inf)) == 1000


def test_gradients_have_gradients():
    """y = fq(x) where x lies in the range: of Σ y³, 3y² first and, through y, 6y then."""
    x = torch.tensor([-3.0, 0.3, 1.0, 9.0], requires_grad=True)
    q = range_to_qparams(torch.tensor(-1.0), torch.tensor(2.0), UINT8)
    y = fake_quantize(x, q)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(first, 3 * y.square() * inside)
    torch.testing.assert_close(second, 6 * y * inside)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 60000.0), (torch.float32, 3e38)])
def test_gradients_where_half_a_step_beyond_the_range_is_no_number_of_the_type(dtype, largest):
    """The last of 4 codes is 60000, say, and the next one would begin at 70000."""
    scheme = QuantScheme(bits=2, signed=False, symmetric=False)
    q = range_to_qparams(torch.tensor(0.0), torch.tensor(largest), scheme)
    x = torch.tensor([-largest, 0.0, largest * 0.99], dtype=dtype, requires_grad=True)
    fake_quantize(x, q).sum().backward()
    assert x.grad.tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer", [ObservedStep, LearnedStep])
def test_a_network_in_half_precision_keeps_the_numbers_of_its_grids(quantizer, dtype):
    fake = quantizer(UINT8, Observer(MinMax()))
    fake(torch.tensor([-1.0, 2.0]))
    before = {name: value.clone() for name, value in fake.state_dict().items()}
    after = fake.to(dtype).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(after[name].dtype is before[name].dtype for name in before)
    assert fake.double().observer.low.dtype is torch.float64
