"""Overrides: which calls they mean, what they set, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import fxquant
from fxquant import Override, QuantConfig, QuantScheme
from fxquant.errors import ConfigError
from fxquant.sites.flow import sites
from tests import laws
from tests.strategies import NetSpec, net_specs

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = self.body(x) + self.body(x + 1)
        return self.head(x.mean((2, 3)))


def bits(*overrides: Override, **settings: object) -> dict[str, str]:
    """For each call 'its output's scheme', or 'its weight's → its output's'."""
    config = QuantConfig(overrides=overrides, **settings)
    return schemes(fxquant.prepare_qat(Net(), config=config))


def schemes(prepared: fx.GraphModule) -> dict[str, str]:
    found = {}
    for name, module in prepared.fxquant.named_children():
        output, weight = getattr(module, "output", None), getattr(module, "weight_quant", None)
        if output is not None:
            before = "" if weight is None else f"{weight.scheme} → "
            found[name] = f"{before}{output.scheme}"
    return found


def differences(*overrides: Override, **settings: object) -> dict[str, str]:
    plain = bits()
    return {k: v for k, v in bits(*overrides, **settings).items() if v != plain[k]}


def test_without_any_everything_is_as_the_config_says():
    assert bits() == {
        "quantize_x": "uint8",
        "stem_0": "int8/channel → uint8",
        "body_0": "int8/channel → uint8",
        "add": "uint8",
        "body_2": "int8/channel → uint8",
        "add_1": "uint8",
        "mean": "uint8",
        "head": "int8/channel → uint8",
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            Override(path="body", weight=4),
            {"body_0": "int4/channel → uint8", "body_2": "int4/channel → uint8"},
        ),
        (Override(path="stem.?", activation=4), {"stem_0": "int8/channel → uint4"}),
        (Override(operator="add*", activation=5), {"add": "uint5", "add_1": "uint5"}),
        (Override(site="body_2", weight=QuantScheme(3)), {"body_2": "int3 → uint8"}),
        (Override(operator="quantize", activation=16), {"quantize_x": "int16"}),
        (
            Override(path="*", operator="conv2d", site="*_0", weight=2),
            {"stem_0": "int2/channel → uint8", "body_0": "int2/channel → uint8"},
        ),
    ],
)
def test_which_calls_and_what(override, expected):
    assert differences(override) == expected


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.act, self.flat = nn.ReLU(), nn.Flatten()

    def forward(self, x):
        return self.flat(self.act(self.bn(self.conv(x))))


@pytest.mark.parametrize("batch_norm", ["train", "fold"])
@pytest.mark.parametrize("path", ["bn", "act", "a?t"])
def test_a_module_that_a_layer_took_in_means_what_the_layer_gives(path, batch_norm):
    def prepared(**settings):
        override = Override(path=path, **settings)
        config = QuantConfig(overrides=(override,), batch_norm=batch_norm)
        return fxquant.prepare_qat(Block(), config=config)

    assert schemes(prepared(activation=5))["conv"] == "int8/channel → uint5"
    learned = prepared(fake_quant=fxquant.LSQ())
    (site,) = (site for _, site in sites(learned))
    assert type(site.output).__name__ == "LearnedStep"
    assert type(site.weight_quant).__name__ == "ObservedWeight"  # the weight is not its own
    with pytest.raises(ConfigError, match="sets weight, but what matches, conv, has not a weight"):
        prepared(weight=4)


def test_a_path_of_what_is_not_quantized_by_itself_is_known():
    config = QuantConfig(overrides=(Override(path="flat", activation=4),))
    with pytest.raises(ConfigError, match=r"what lies in 'flat' \(flat\) is not quantized by"):
        fxquant.prepare_qat(Block(), config=config)


def test_the_later_one_wins():
    overrides = (Override(path="*", weight=4), Override(path="body", weight=6, activation=7))
    assert bits(*overrides)["body_0"] == "int6/channel → uint7"
    assert bits(*overrides[::-1])["body_0"] == "int4/channel → uint7"


def test_the_first_and_the_last_layer_by_one_setting():
    low = {"weight": QuantScheme(4, narrow=True), "activation": QuantScheme(4, False, False)}
    assert bits(first_last_bits=8, **low) == {
        "quantize_x": "uint8",
        "stem_0": "int8 → uint4",
        "body_0": "int4 → uint4",
        "add": "uint4",
        "body_2": "int4 → uint4",
        "add_1": "uint4",
        "mean": "uint8",  # what the last layer reads
        "head": "int8 → uint8",
    }
    assert bits(Override(path="head", weight=5), first_last_bits=8, **low)["head"] == "int5 → uint8"


class TwoEnds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.c, self.d = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x, y):
        z = torch.sigmoid(self.a(x) + self.b(y))
        return self.c(z), self.d(z)


def test_there_may_be_several_first_and_last_layers():
    config = QuantConfig(weight=QuantScheme(4), first_last_bits=8)
    prepared = fxquant.prepare_qat(TwoEnds(), config=config)
    weights = {n.name: str(s.weight_quant.scheme) for n, s in sites(prepared) if s.weight_quant}
    assert weights == dict.fromkeys("abcd", "int8")


def test_what_softmax_reads_keeps_its_16_bits_unless_an_override_says_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1))
    low = QuantScheme(4, False, False)

    def output(*overrides):
        config = QuantConfig(activation=low, first_last_bits=8, overrides=overrides)
        return schemes(fxquant.prepare_qat(model, config=config))["_0"].split()[-1]

    assert output() == "int16"
    assert output(Override(operator="linear", activation=6)) == "int6"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"path": "bodi", "weight": 4}, r"overrides\[1\], .*no path matches 'bodi'.*'body'"),
        ({"operator": "conv", "weight": 4}, "no operator matches 'conv'; did you mean 'conv2d'"),
        ({"site": "bodi_2", "weight": 4}, "no site matches 'bodi_2'; did you mean 'body_2'"),
        ({"path": "head", "operator": "conv2d", "weight": 4}, "no call matches all of it"),
        ({"operator": "add_number", "weight": 4}, "sets weight, but .*, add, has not a weight"),
        ({"operator": "max_pool2d", "activation": 4}, "has not a range of its own"),
    ],
)
def test_what_matches_nothing_is_an_error(override, message):
    with pytest.raises(ConfigError, match=message):
        bits(Override(path="stem", weight=4), Override(**override))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 4}, "says which calls it means"),
        ({"path": "a"}, r"Override\(path='a'\) sets nothing"),
        ({"path": "", "weight": 4}, "a name or a pattern, got ''"),
        ({"path": 3, "weight": 4}, "a name or a pattern, got 3"),
        ({"path": "a", "weight": 0}, "1 to 16 bits, got bits=0"),
        ({"path": "a", "activation": QuantScheme(bits=1)}, "activations have 2 to 16 bits"),
        ({"path": "a", "fake_quant": "lsq"}, r"a FakeQuant, such as fxquant.LSQ\(\), got 'lsq'"),
        ({"path": "a", "weight": "4"}, "a QuantScheme or its bits, got '4'"),
        ({"path": "a", "weight": True}, "a QuantScheme or its bits, got True"),
        ({"path": "a", "weight": QuantScheme(symmetric=False)}, "need a symmetric scheme"),
        ({"path": "a", "activation": QuantScheme(per_channel=True)}, "one scale per tensor"),
    ],
)
def test_an_override_checks_itself(settings, message):
    with pytest.raises(ConfigError, match=message):
        Override(**settings)


def test_explain_tells_what_an_override_did():
    prepared = fxquant.prepare_qat(
        Net(), config=QuantConfig(overrides=(Override(path="body", weight=4),))
    )
    assert "weight in int4/channel: Override(path='body')" in fxquant.explain(prepared)


@settings(max_examples=20, deadline=None)
@given(net_specs(4), st.integers(2, 8), st.integers(2, 8), st.integers(2, 8))
def test_eval_is_convert_whatever_the_bits(spec: NetSpec, ends: int, bits: int, entrance: int):
    spec = replace(spec, head=True)  # so that there is something to override
    every = Override(path="*", activation=bits)
    overrides = every, Override(operator="quantize", activation=entrance)
    prepared = fxquant.prepare_qat(
        spec.build(), config=QuantConfig(first_last_bits=ends, overrides=overrides)
    )
    laws.settle(prepared, spec.inputs(seed=0))
    laws.assert_equal(fxquant.convert(prepared)(spec.inputs()), prepared(spec.inputs()))
