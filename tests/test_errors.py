"""The catalogue of wrong uses: each is one error of ours that says what, where and what to do.

A row is a wrong use, the error, and three things that its message holds: what is wrong, where it
is, and what to do about it. Where a setting is wrong, the setting's name is the place, and what it
may be is what to do.
"""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import fxquant
from fxquant import Override, QuantConfig, QuantScheme, convert, prepare_qat
from fxquant.errors import (
    AccumulatorError,
    CaptureError,
    ConfigError,
    DataError,
    ExportError,
    FxQuantError,
    NonFiniteError,
    ShapeError,
    StageError,
    UncalibratedError,
    UnsupportedOperatorError,
    WriteError,
)

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HERE = r"test_errors\.py:\d+"


class Net(nn.Module):
    """A convolution, a batch norm and a linear layer, or whatever `function` makes of them."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)
        self.function = function
        self.register_buffer("table", torch.zeros(3))

    def forward(self, x):
        if self.function is not None:
            return self.function(self, x)
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def prepared(function=None, config=None):
    return prepare_qat(Net(function), X, config)


def trained(function=None, config=None, x=X):
    p = prepared(function, config)
    p.train()(x)
    return p


def diverged(name):
    """A trained network one of whose parameters became NaN since."""
    p = trained()
    with torch.no_grad():
        p.get_parameter(name).view(-1)[0] = math.nan
    return p


def born_with(name, value):
    """A network trained although a parameter was never finite."""
    net = Net()
    with torch.no_grad():
        net.get_parameter(name).view(-1)[0] = value
    p = prepare_qat(net, X)
    p.train()(X)
    return p


@dataclass(frozen=True)
class Wrong:
    """A wrong use, by name, and what its message must hold (regular expressions)."""

    use: str
    call: Callable[[], Any]
    error: type[FxQuantError]
    what: str
    where: str
    advice: str = "What to do: "


def capture(use, function, what, where=HERE, advice="What to do: "):
    return Wrong(use, lambda: prepared(function), CaptureError, what, where, advice)


def setting(use, name, what, advice, **settings):
    return Wrong(use, lambda: QuantConfig(**settings), ConfigError, what, name, advice)


def export(use, examples, error, what, where, advice):
    def call():
        pytest.importorskip("onnx", reason="onnx is in the extra `onnx`")
        fxquant.export_onnx(convert(trained()), "network.onnx", examples)

    return Wrong(use, call, error, what, where, advice)


def scheme(use, what, advice, **settings):
    name = "bits|signed|symmetric|narrow"
    return Wrong(use, lambda: QuantScheme(**settings), ConfigError, what, name, advice)


CATALOGUE = (
    # at the wrong stage
    Wrong("a function is prepared", lambda: prepare_qat(F.relu, X), CaptureError, "a function", "prepare_qat"),
    Wrong("a class is prepared", lambda: prepare_qat(Net, X), CaptureError, "a type", "prepare_qat"),
    Wrong("nothing is prepared", lambda: prepare_qat(None), CaptureError, "NoneType", "prepare_qat"),
    Wrong("prepared twice", lambda: prepare_qat(trained(), X), StageError, "a fake-quant graph", "prepare_qat"),
    Wrong("prepared once converted", lambda: prepare_qat(convert(trained()), X), StageError, "an integer graph", "prepare_qat"),
    Wrong("a float model is converted", lambda: convert(Net()), StageError, "got a Net", "convert"),
    Wrong("nothing is converted", lambda: convert(None), StageError, "NoneType", "convert"),
    Wrong("converted twice", lambda: convert(convert(trained())), StageError, "an integer graph", "convert"),
    Wrong("a float model is audited", lambda: fxquant.audit(Net()), StageError, "got a Net", "audit"),
    Wrong("a prepared model is audited", lambda: fxquant.audit(trained()), StageError, "a fake-quant graph", "audit", "convert it first"),
    Wrong("a float model is explained", lambda: fxquant.explain(Net()), StageError, "got a Net", "explain"),
    Wrong("biases of a float model", lambda: fxquant.correct_bias(Net(), [X]), StageError, "got a Net", "correct_bias"),
    Wrong("statistics of a float model", lambda: fxquant.reestimate_batch_norm(Net(), [X]), StageError, "got a Net", "reestimate_batch_norm"),
    # no data, or bad data
    Wrong("converted without data", lambda: convert(prepared()), UncalibratedError, "4 of 4 values have no range", "node 'quantize_x'"),
    Wrong("converted after NaN data", lambda: convert(trained(x=X * math.nan)), UncalibratedError, "no finite data", "node 'quantize_x'"),
    Wrong("converted after empty data", lambda: convert(trained(lambda s, x: s.conv(x), x=X[:0])), UncalibratedError, "no finite data", "node 'quantize_x'"),
    Wrong("biases before data", lambda: fxquant.correct_bias(prepared(), [X]), UncalibratedError, "no finite data", "'conv'"),
    Wrong("biases from no batch", lambda: fxquant.correct_bias(trained(), []), ConfigError, "no batch", "correct_bias|measure"),
    Wrong("statistics of an empty batch", lambda: fxquant.reestimate_batch_norm(trained(), [X[:0]]), ConfigError, "is empty", "batch 0"),
    # parameters that are no numbers
    Wrong("a weight is NaN from the first", lambda: convert(born_with("conv.weight", math.nan)), NonFiniteError, "NaN", r"'conv\.weight'"),
    Wrong("a bias is infinite", lambda: convert(born_with("fc.bias", math.inf)), NonFiniteError, "infinity", r"'fc\.bias'"),
    Wrong("a weight diverged", lambda: convert(diverged("fc.weight")), NonFiniteError, "weight", f"node 'fc'.*{HERE}"),
    Wrong("a batch norm diverged", lambda: convert(diverged("bn.weight")), NonFiniteError, "batch_norm", f"node 'conv'.*{HERE}"),
    Wrong("a sum leaves its accumulator", lambda: convert(trained(config=QuantConfig(accumulator_bits=16))), AccumulatorError, "27 products and may reach", f"channel . of node 'conv'.*{HERE}", r"accumulator_bits=1[89]"),
    # what cannot be captured
    capture("a decision on values", lambda s, x: s.conv(x) if x.sum() > 0 else x, "control flow"),
    capture("values taken to numpy", lambda s, x: s.conv(x) + float(x.detach().numpy().sum()), "no number that shapes decide"),
    capture("a part is overwritten", lambda s, x: (x.__setitem__(0, 0), s.conv(x))[1], "torch.cat or torch.where"),
    capture("a buffer is written to", lambda s, x: s.conv(x) + s.table.add_(1).sum(), "writes to 'table'"),
    capture("an attribute is set", lambda s, x: (setattr(s, "seen", x), s.conv(x))[1], "'seen'", "forward of the model"),
    capture("a call under no_grad", lambda s, x: torch.no_grad()(s.conv)(x), "no_grad"),
    capture("what its type decides", lambda s, x: s.conv(x if torch.is_tensor(x) else x[0]), "other outputs than the model", "Net"),
    Wrong("a loop over an unknown shape", lambda: prepare_qat(Net(lambda s, x: sum(s.conv(x).unbind()))), CaptureError, "iterated", HERE, "pass example_inputs"),
    Wrong("a submodule called class", lambda: prepare_qat(nn.ModuleDict({"class": nn.Linear(2, 2)})), CaptureError, "'class'", "ModuleDict", "rename"),
    Wrong("a hook on the model", lambda: prepare_qat(hooked(), X), CaptureError, "forward hooks", "Net", "register them on what prepare_qat returns"),
    # examples that do not fit
    Wrong("examples of another shape", lambda: prepare_qat(Net(), X[:, :2]), CaptureError, "channels", HERE, "pass example_inputs that it runs on"),
    Wrong("examples of another dtype", lambda: prepare_qat(Net(), X.double()), CaptureError, "type", HERE, "pass example_inputs that it runs on"),
    Wrong("too many examples", lambda: prepare_qat(Net(), (X, X)), CaptureError, "3 were given", "Net.forward", "pass example_inputs that it runs on"),
    Wrong("an example on another device", lambda: prepare_qat(Net(), X.to("meta")), CaptureError, "device", HERE, "pass example_inputs that it runs on"),
    Wrong("an index that is no integer", lambda: prepare_qat(nn.Embedding(4, 4), torch.randn(2)), CaptureError, "Long, Int", "Embedding.forward", "pass example_inputs that it runs on"),
    Wrong("verify without examples", lambda: prepare_qat(Net(), None, QuantConfig(verify=True)), ConfigError, "example_inputs", "verify=True", "needs example_inputs"),
    Wrong("another shape than prepared for", lambda: trained(lambda s, x: s.conv(x) * x.shape[-1] ** -0.5)(torch.randn(2, 3, 9, 9)), ShapeError, "prepared for example inputs", HERE, "example_inputs of the new shapes"),
    Wrong("nothing goes in", lambda: trained()(None), DataError, "got a NoneType", "a quantized network", "torch.as_tensor"),
    Wrong("text goes in", lambda: convert(trained())("x"), DataError, "got a str", "a quantized network", "torch.as_tensor"),
    Wrong("complex numbers in training", lambda: trained(x=X.to(torch.complex64)), DataError, "complex64", "a quantized network", "view_as_real"),
    Wrong("complex numbers in eval()", lambda: trained().eval()(X.to(torch.complex64)), DataError, "complex64", "a quantized network", "view_as_real"),
    Wrong("complex numbers once converted", lambda: convert(trained())(X.to(torch.complex64)), DataError, "complex64", "a quantized network", "view_as_real"),
    # ways out, with examples of another kind
    export("complex examples", X.to(torch.complex64), ExportError, "complex64", "batch of 2", "example inputs that it takes"),
    export("sparse examples", X.to_sparse(), ConfigError, "sparse_coo", "example_inputs", "to_dense"),
    export("examples in bfloat16", X.bfloat16(), ExportError, "bfloat16", "the network takes", "torch.float32"),
    export("more examples than arguments", (X, X), ConfigError, "2 arguments", "takes 1: x", "those of one call"),
    export("no examples", None, ConfigError, "NoneType", "example_inputs", "arguments of one call"),
    export("empty examples", X[:0], ConfigError, "no row", "example_inputs", "arguments of one call"),
    Wrong("golden inputs without numbers", lambda: fxquant.export_bundle(convert(trained()), "golden", X.to("meta")), ConfigError, "no numbers", "golden_inputs", "a batch of your data"),
    Wrong("a float model is exported", lambda: fxquant.export_program(Net(), X), StageError, "an integer network", "exported", "what `convert` gives"),
    # files and paths
    Wrong("a network is loaded from None", lambda: fxquant.load(None), ConfigError, "None", "path", "a string or a Path"),
    Wrong("a network is saved to None", lambda: fxquant.save(trained(), None), ConfigError, "None", "path", "a string or a Path"),
    Wrong("a float model is saved", lambda: fxquant.save(Net(), "net"), StageError, "got a Net", "save"),
    Wrong("a path with a null", lambda: fxquant.load("a\0b"), ConfigError, "no null", r"a\\x00b", "a path"),
    Wrong("a configuration from None", lambda: fxquant.load_config(None), ConfigError, "None", "path", "a string or a Path"),
    Wrong("a file in no folder", lambda: fxquant.save(trained(), "nowhere/net"), WriteError, "No such file", "nowhere/net"),
    # what has no integers
    Wrong("an operator without integers", lambda: prepared(lambda s, x: s.conv(x).sort().values), UnsupportedOperatorError, "no integer form", f"node 'sort'.*{HERE}", "keep_float"),
    Wrong("a number of the values", lambda: prepared(lambda s, x: s.conv(x) * x.max().item()), UnsupportedOperatorError, "no integer form", f"node 'item'.*{HERE}", "keep_float"),
    Wrong("a weight that is parametrized", lambda: prepare_qat(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), torch.randn(2, 4)), UnsupportedOperatorError, "no integer form", "in '0'", r"remove_parametrizations\(model.get_submodule\('0'\)"),
    Wrong("a module without integers", lambda: prepare_qat(nn.Sequential(nn.LSTM(4, 4)), torch.randn(2, 3, 4)), UnsupportedOperatorError, "no integer form", "in '0'", r"keep_float=\('0',\)"),
    # settings
    Wrong("a dictionary as config", lambda: prepare_qat(Net(), X, {"bits": 8}), ConfigError, "'bits'", "config", "is a QuantConfig"),
    Wrong("the class as config", lambda: prepare_qat(Net(), X, QuantConfig), ConfigError, "class", "config", "is a QuantConfig"),
    Wrong("a path that matches nothing", lambda: prepare_qat(Net(), X, QuantConfig(keep_float=("fcc",))), ConfigError, "no submodule matches 'fcc'", "keep_float", "did you mean 'fc'"),
    Wrong("an override that matches nothing", lambda: prepare_qat(Net(), X, QuantConfig(overrides=(Override(path="com", weight=QuantScheme(bits=4, narrow=True)),))), ConfigError, "'com'", "overrides|Override", "did you mean"),
    setting("overrides that are none", "overrides", r"\[1\]", "a tuple", overrides=[1]),
    setting("a string of paths", "keep_float", "'fc'", "a tuple of paths", keep_float="fc"),
    Wrong("half precision in float", lambda: prepare_qat(Net().half(), X.half(), QuantConfig(keep_float=("fc",))), ConfigError, "torch.float16", "keep_float: 'fc'", r"model\.float\(\)"),
    setting("a number for a scheme", "weight", "8", "is a QuantScheme", weight=8),
    setting("an asymmetric weight", "weight", "symmetric=False", "need a symmetric scheme", weight=QuantScheme(symmetric=False)),
    setting("activations per channel", "activation", "per_channel=True", "one scale per tensor", activation=QuantScheme(per_channel=True)),
    setting("a rounding that is none", "rounding", "'half_upp'", "'half_up', 'half_even'", rounding="half_upp"),
    setting("batch norms thawed", "batch_norm", "'thaw'", "'train' or 'fold'", batch_norm="thaw"),
    setting("equalized under batch norms", "equalize", "undoes", "needs batch_norm='fold'", equalize=True),
    setting("absorbed under batch norms", "absorb_high_bias", "folded", "needs batch_norm='fold'", absorb_high_bias=True),
    setting("corrected under batch norms", "correct_bias", "folded", "needs batch_norm='fold'", correct_bias=True),
    setting("a wide accumulator", "accumulator_bits", "64", "16 to 32", accumulator_bits=64),
    scheme("one bit too many", "17", "1 to 16 bits", bits=17),
    scheme("bits as text", "'8'", "1 to 16 bits", bits="8"),
    scheme("symmetric and unsigned", "signed=False", "needs signed", signed=False),
    scheme("narrow and unsigned", "signed=False", "needs signed", signed=False, symmetric=False, narrow=True),
    scheme("wide and unsigned", "bits=16", "need signed", bits=16, signed=False, symmetric=False),
)


def hooked():
    net = Net()
    net.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize("wrong", CATALOGUE, ids=lambda wrong: wrong.use)
def test_a_wrong_use_is_told_what_where_and_what_to_do(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, on odd data
        with pytest.raises(wrong.error) as caught:
            wrong.call()
    message = str(caught.value)
    for part in (wrong.what, wrong.where, wrong.advice):
        assert re.search(part, message, re.DOTALL), message
    assert "torch" not in caught.traceback[-1].path.parts
    assert not list(tmp_path.iterdir())


def test_the_catalogue_is_long_and_names_each_use_once():
    assert len({wrong.use for wrong in CATALOGUE}) == len(CATALOGUE) >= 60
