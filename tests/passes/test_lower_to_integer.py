"""lower_to_integer: integers between quantize and dequantize, and nothing else."""

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant.errors import AccumulatorError, NonFiniteError, UncalibratedError
from tests import laws
from tests.strategies import NetSpec, Step, chain


def converted(spec, config=None):
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    laws.settle(prepared)
    return prepared, fxquant.convert(prepared)


class Watch(fx.Interpreter):
    """Collects the dtype of every tensor between quantize and dequantize."""

    def run_node(self, n):
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op == "call_module" and "dequantize" not in n.name:
            self.dtypes = {*getattr(self, "dtypes", set()), value.dtype}
        return value


def test_only_integers_inside():
    steps = (Step("conv"), Step("relu"), Step("cat_conv", (0, 1)), Step("shuffle"))
    spec = NetSpec(steps, head=True)
    _, quantized = converted(spec)
    watch = Watch(quantized)
    watch.run(spec.inputs())
    assert watch.dtypes == {torch.uint8}
    names = [n.name for n in quantized.graph.nodes]
    assert sum(n.startswith("quantize") for n in names) == 1
    assert sum(n.startswith("dequantize") for n in names) == 1


def test_dropout_switches_and_training_branches_are_gone():
    _, quantized = converted(chain("conv", "dropout", "drop_path", "conv_functional", "identity"))
    assert {n.target for n in quantized.graph.nodes if n.op == "call_module"} == {
        "fxquant.quantize_x",
        "fxquant.steps_0",
        "fxquant.conv2d",
        "fxquant.dequantize_conv2d",
    }


def test_the_integer_network_holds_integers_and_boundary_scales_only():
    _, quantized = converted(chain("conv", "bn", "relu", head=True))
    assert list(quantized.parameters()) == []
    floats = {name for name, b in quantized.named_buffers() if b.is_floating_point()}
    assert all("quantize" in name for name in floats)
    assert quantized.fxquant.steps_0.weight.dtype is torch.int8
    assert quantized.fxquant.steps_0.bias.dtype is torch.int32
    assert int(quantized.fxquant.steps_0.weight.min()) >= -127


def test_every_number_has_its_own_memory():
    """A shared zero point would be loaded, moved or changed through another's name."""
    spec = NetSpec((Step("conv"), Step("cat_conv", (0, 1))), head=True, outputs=(0, 1))
    _, quantized = converted(spec)
    places = [buffer.data_ptr() for buffer in quantized.state_dict().values()]
    assert len(set(places)) == len(places)


def test_a_float_island():
    spec = chain("conv", "relu", "conv", "relu", "conv")
    model = spec.build()
    model.steps[2] = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softsign())
    prepared = fxquant.prepare_qat(model, config=fxquant.QuantConfig(keep_float=("steps.2",)))
    laws.settle(prepared, spec.inputs())
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(spec.inputs()), prepared(spec.inputs()))
    names = [n.name for n in quantized.graph.nodes if "quantize" in n.name]
    assert len(names) == 4  # in, out to the island, in again, out


@pytest.mark.parametrize("module", [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Sigmoid()], ids=str)
def test_an_operator_that_is_kept_in_float_stays_there(module):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), module, nn.Conv2d(4, 4, 1))
    prepared = fxquant.prepare_qat(model, config=fxquant.QuantConfig(keep_float=("1",)))
    x = torch.randn(2, 4, 8, 8)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    assert type(quantized.get_submodule("1")) is type(module)


def test_no_data_no_integers():
    prepared = fxquant.prepare_qat(chain("conv").build())
    with pytest.raises(UncalibratedError, match=r"(?s)2 of 2 values have no range.*train\(\)"):
        fxquant.convert(prepared)


def test_a_diverged_weight_is_named():
    prepared, _ = converted(chain("conv"))
    prepared.steps.get_submodule("0").weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the weight of node 'steps_0'"):
        fxquant.convert(prepared)


def test_a_sum_that_may_overflow_is_refused_with_its_channel():
    """70,000 products of 255 and 127 reach 2.27e9 > 2^31, in channel 1 only."""
    model = nn.Linear(70_000, 2)
    nn.init.constant_(model.weight, 1.0)
    model.weight.data[0, 1:] = 0
    prepared = fxquant.prepare_qat(model)
    laws.settle(prepared, torch.rand(1, 70_000))
    with pytest.raises(AccumulatorError, match="channel 1 of node"):
        fxquant.convert(prepared)


def test_a_bias_counts_towards_the_sum():
    """60,000 products of 255 and 127 reach 1.94e9; the bias, 29,000·255·127, adds 0.94e9."""
    model = nn.Linear(60_000, 1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 0.0)
    x = torch.linspace(0, 1, 60_000)[None]
    fxquant.convert(_settled(model, x))
    nn.init.constant_(model.bias, -29_000.0)
    with pytest.raises(AccumulatorError, match="may reach 28"):
        fxquant.convert(_settled(model, x))


def _settled(model, x):
    prepared = fxquant.prepare_qat(model)
    laws.settle(prepared, x)
    return prepared
