"""Post-training quantization: prepare_ptq, calibrate, convert."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxquant
from fxquant import Override, QuantConfig
from fxquant.calibration import quantizers_of
from fxquant.errors import ConfigError, DataError, StageError, UncalibratedError
from fxquant.fake_quant import FAKE_QUANTS, ActivationFakeQuant
from fxquant.observers import Fixed, MinMax, MovingAverage
from tests import laws
from tests.strategies import chain, net_specs

SPEC = chain("conv", "bn", "relu", "dropout", "conv", "sigmoid", head=True)
BATCHES = [SPEC.inputs(4, seed) for seed in range(3)]


def model() -> nn.Module:
    """With running statistics that are not the initial ones."""
    net = SPEC.build().train()
    with torch.no_grad():
        net(SPEC.inputs(16, 9))
    return net.eval()


def ranges(prepared) -> dict[str, tuple[float, float]]:
    quantizers = quantizers_of(prepared)
    return {n.name: (float(q.observer.low), float(q.observer.high)) for n, q in quantizers.items()}


def test_ranges_are_those_of_the_float_network():
    net = model()
    prepared = fxquant.prepare_ptq(net)
    fxquant.calibrate(prepared, BATCHES)
    x = torch.cat(BATCHES)
    relu = torch.relu(net.steps[1](net.steps[0](x))).detach()
    found = ranges(prepared)
    assert found["quantize_x"] == (float(x.min()), float(x.max()))
    torch.testing.assert_close(found["steps_0"], (float(relu.min()), float(relu.max())))


@settings(max_examples=30, deadline=None)
@given(net_specs(5))
def test_eval_is_convert_and_nothing_moves(spec):
    laws.capture(spec.build())  # or it is refused honestly
    prepared = fxquant.prepare_ptq(spec.build())
    assert not prepared.training
    fxquant.calibrate(prepared, [spec.inputs(seed=seed) for seed in range(2)])
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    x = 3 * spec.inputs(seed=7)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())


@pytest.mark.parametrize("fake_quant", FAKE_QUANTS)
def test_a_trained_network_may_be_calibrated_anew(fake_quant):
    config = QuantConfig(fake_quant=fake_quant(), calibrator=MinMax())
    prepared = fxquant.prepare_qat(model(), config=config)
    with torch.no_grad():
        prepared.train()(50 * BATCHES[0])
    prepared.steps[2].eval()
    modes = [m.training for m in prepared.modules()]
    fxquant.calibrate(prepared, BATCHES)
    assert modes == [m.training for m in prepared.modules()]
    fresh = fxquant.prepare_ptq(model(), config=config)
    fxquant.calibrate(fresh, BATCHES)
    assert ranges(prepared)["quantize_x"] == ranges(fresh)["quantize_x"]
    assert torch.equal(fxquant.convert(prepared)(BATCHES[1]), prepared.eval()(BATCHES[1]))


def test_loaders_with_labels_and_shares_of_them():
    data = TensorDataset(torch.cat(BATCHES), torch.arange(12))
    loader = DataLoader(data, batch_size=4)
    done = []
    whole, part, lists = (fxquant.prepare_ptq(model()) for _ in range(3))
    fxquant.calibrate(whole, loader, tell=done.append)
    assert done == [1, 2, 3]
    fxquant.calibrate(lists, iter([(x, "label") for x in BATCHES]))
    assert ranges(whole) == ranges(lists)
    done.clear()
    fxquant.calibrate(part, loader, share=0.05, tell=done.append)
    assert done == [1]
    assert ranges(part)["quantize_x"] == (float(BATCHES[0].min()), float(BATCHES[0].max()))


def test_calibrators_of_the_config_and_of_overrides():
    config = QuantConfig(
        calibrator=MinMax(),
        overrides=(Override(site="quantize_x", calibrator=Fixed(-1.0, 2.0)),),
    )
    prepared = fxquant.prepare_ptq(model(), config=config)
    fxquant.calibrate(prepared, BATCHES)
    found = ranges(prepared)
    assert found["quantize_x"] == (-1.0, 2.0)
    assert (0.0, 1.0) in found.values()  # of the sigmoid, which is known
    default = {type(q.observer.calibrator) for q in quantizers_of(prepared).values()}
    assert default == {MinMax, Fixed}


def test_the_defaults():
    ptq, qat = fxquant.prepare_ptq(model()), fxquant.prepare_qat(model())
    assert quantizers_of(ptq).popitem()[1].observer.calibrator == MinMax()
    assert quantizers_of(qat).popitem()[1].observer.calibrator == MovingAverage()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ptq.modules())
    live = fxquant.prepare_ptq(model(), config=QuantConfig(batch_norm="train"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in live.modules())


NAN = BATCHES[0].clone()
NAN[1, 2, 3, 4] = float("nan")


@pytest.mark.parametrize(
    ("batches", "share", "message"),
    [
        ([], 1.0, "there is no batch"),
        ([BATCHES[0], BATCHES[0][:0]], 1.0, "batch 1 is empty"),
        ([BATCHES[0], NAN], 1.0, r"batch 1, of shape \(4, 4, 8, 8\), holds NaN or infinity"),
        ([BATCHES[0], torch.zeros(1, 99, 8, 8)], 1.0, r"batch 1, of shape \(1, 99, 8, 8\), does"),
        ([BATCHES[0], {"x": 1}], 1.0, "batch 1 is a dict.\nWhat to do: give tensors"),
        ([()], 1.0, "batch 0 holds 0 of 1 arguments"),
        ([("a photograph", 1)], 1.0, "batch 0 does not run"),
        (BATCHES, 0.0, r"share lies in \(0, 1\], got 0.0"),
        (BATCHES, float("nan"), r"share lies in \(0, 1\], got nan"),
        (BATCHES, "all", r"share lies in \(0, 1\], got 'all'"),
        (iter(BATCHES), 0.5, "needs data that knows its length, got a list_iterator"),
    ],
)
def test_data_that_cannot_be_used_loses_nothing(batches, share, message):
    prepared = fxquant.prepare_ptq(model())
    fxquant.calibrate(prepared, BATCHES)
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(DataError, match=message):
        fxquant.calibrate(prepared, batches, share)
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())
    assert not any(m._forward_hooks for m in prepared.modules())
    assert not prepared.training


def test_values_that_are_never_finite_are_named():
    net = model()
    with torch.no_grad():
        net.steps[4].bias.fill_(float("inf"))
    prepared = fxquant.prepare_ptq(net)
    with pytest.raises(UncalibratedError, match="NaN or infinite in every batch, the first at .*4"):
        fxquant.calibrate(prepared, BATCHES)
    assert not any(m.ready for m in prepared.modules() if isinstance(m, ActivationFakeQuant))


def test_only_what_was_prepared_is_calibrated():
    with pytest.raises(StageError, match="calibrate takes what prepare_qat returned"):
        fxquant.calibrate(model(), BATCHES)
    with pytest.raises(StageError, match="prepare_ptq takes a float model"):
        fxquant.prepare_ptq(fxquant.prepare_ptq(model()))
    with pytest.raises(ConfigError, match="config is a QuantConfig, got 8"):
        fxquant.prepare_ptq(model(), config=8)
    with pytest.raises(ConfigError, match="a calibrator is a record such as"):
        QuantConfig(calibrator=MinMax)
