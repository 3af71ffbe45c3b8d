"""Fake-quants: values and gradients, against torch's own where that has the same formula."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.fake_quant import ActivationFakeQuant, WeightFakeQuant, fake_quantize, round_to_grid
from fxquant.observers import MovingAverage
from fxquant.schemes import INT8_WEIGHT, UINT8, Channels, QParams, range_to_qparams


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
    quant = WeightFakeQuant(INT8_WEIGHT, Channels())
    codes = quant(weight) / quant.scale(weight).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert codes.abs().amax((1, 2, 3)).round().tolist() == [127.0] * 6


def test_parameters_follow_the_data_in_train_and_stand_still_in_eval():
    quant = ActivationFakeQuant(UINT8, MovingAverage())
    assert not quant.ready
    quant(torch.tensor([-1.0, 3.0]))
    expected = range_to_qparams(torch.tensor(-1.0), torch.tensor(3.0), UINT8)
    assert quant.ready
    assert torch.equal(quant.qparams.scale, expected.scale)
    assert torch.equal(quant.qparams.zero_point, expected.zero_point)
    quant.eval()(torch.tensor([-100.0, 100.0]))
    assert torch.equal(quant.qparams.scale, expected.scale)
    assert set(quant.state_dict()) == {"scale", "zero_point", "observer.low", "observer.high"}
