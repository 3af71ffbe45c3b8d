"""Random modules of torch.nn under random configs: right to the bit, or an error of ours.

A few in every run; `pytest --fuzz 30 tests/test_fuzz.py` goes on for 30 minutes.
"""

import contextlib
import dataclasses
import inspect
import time
import warnings

import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.errors import ConfigError, FxQuantError
from fxquant.fake_quant import FAKE_QUANTS
from fxquant.observers import CALIBRATORS, Fixed
from fxquant.rounding import ROUNDINGS
from tests import laws

SHAPES = [(2, 4), (2, 4, 6), (2, 4, 6, 6), (2, 4, 4, 4, 4)]
NUMBERS = [4, 1, 2, 3]
OPTIONS = {
    "affine": [False], "bias": [False], "ceil_mode": [True], "dilation": [2], "dim": [0, 1, -1],
    "groups": [2, 4], "inplace": [True], "padding": [0, 1, (1,), "same"], "stride": [1, 2],
    "padding_mode": ["zeros", "circular", "reflect"], "batch_first": [True],
    "approximate": ["tanh"],
}  # fmt: skip


def _is_layer(kind):
    """Made of numbers, and a function of one tensor."""
    return (
        inspect.isclass(kind)
        and issubclass(kind, nn.Module)
        and "Loss" not in kind.__name__
        and not kind.__name__.startswith(("Lazy", "Module", "Parameter", "Container"))
    )


LAYERS = [kind for name, kind in sorted(vars(nn).items()) if _is_layer(kind)]


@st.composite
def layers(draw):
    """Any of torch.nn, made with small numbers; an identity where torch refuses them."""
    kind = draw(st.sampled_from(LAYERS))
    taken = inspect.signature(kind.__init__).parameters
    needed = [p for p in [*taken.values()][1:] if p.default is p.empty]
    numbers = [draw(st.sampled_from(NUMBERS)) for p in needed if p.kind < p.VAR_POSITIONAL]
    known = sorted(OPTIONS.keys() & taken.keys())
    chosen = draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []
    options = {name: draw(st.sampled_from(OPTIONS[name])) for name in chosen}
    with contextlib.suppress(Exception):  # whatever torch says of them
        torch.manual_seed(0)
        return kind(*numbers, **options)
    return nn.Identity()


SCHEME = {
    "bits": st.integers(2, 16), "symmetric": st.booleans(), "signed": st.booleans(),
    "narrow": st.booleans(), "per_channel": st.booleans(), "power_of_two": st.booleans(),
}  # fmt: skip
CONFIG = {
    "mode": st.sampled_from(["static", "dynamic", "weight_only"]),
    "group_size": st.just(2),
    "accumulator_bits": st.sampled_from([24, 16]),
    "calibrator": st.sampled_from([kind() for kind in CALIBRATORS if kind is not Fixed]),
    "widen": st.just(False),
    "fake_quant": st.sampled_from([kind() for kind in FAKE_QUANTS]),
    "rounding": st.sampled_from([rounding.name for rounding in ROUNDINGS]),
    "batch_norm": st.just("fold"),
    "equalize": st.just(True),
    "absorb_high_bias": st.just(True),
    "correct_bias": st.just(True),
    "first_last_bits": st.just(8),
}


def changed(draw, record, fields):
    """`record` with some of its fields as drawn, where they go together."""
    for name in draw(st.lists(st.sampled_from(sorted(fields)), unique=True)):
        with contextlib.suppress(ConfigError):
            record = dataclasses.replace(record, **{name: draw(fields[name])})
    return record


@st.composite
def configs(draw):
    """Any that is one."""
    config = QuantConfig()
    for name in ("activation", "weight"):
        scheme = changed(draw, getattr(config, name), SCHEME)
        with contextlib.suppress(ConfigError):
            config = dataclasses.replace(config, **{name: scheme})
    return changed(draw, config, CONFIG)


def goes_through_or_is_refused(model, config, x):
    """The whole road: prepared, trained for a step, converted, equal; or the error's name."""
    try:
        prepared = fxquant.prepare_qat(model, x, config).train()
        prepared(x).sum().backward()
        fxquant.calibrate(prepared, [x])
        quantized = fxquant.convert(prepared.eval())
    except FxQuantError as error:
        return type(error).__name__
    laws.assert_equal(quantized(x), prepared(x))
    return "equal"


@settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(
    modules=st.lists(layers(), min_size=4, max_size=12),
    config=configs(),
    shape=st.sampled_from(SHAPES),
)
def some_modules(modules, config, shape):
    x = torch.randn(shape, requires_grad=True)
    model = nn.Sequential()
    for module in modules:
        longer = nn.Sequential(*model, module)
        if len(model) < 3 and torch_runs(longer, x):
            model = longer
    assume(len(model))
    event(goes_through_or_is_refused(model, config, x))


def torch_runs(model, x):
    """A number comes out, in eval() and in training."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = [model.eval()(x), model.train()(x)]
        return all(y.requires_grad and y.numel() and y.isfinite().all() for y in outputs)
    return False


def test_only_our_errors_come_out(minutes):
    until = time.monotonic() + 60 * minutes
    some_modules()
    while time.monotonic() < until:
        some_modules()
