"""Bad values anywhere: one clear error of ours, nothing changed, no file left half-written."""

import contextlib
import copy
import dataclasses
import math
import os
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import LSQ, Override, Phase, PhaseSchedule, QuantConfig, QuantScheme
from fxquant.errors import ConfigError, DataError, FxQuantError, WriteError
from fxquant.fake_quant import FAKE_QUANTS, PROJECTIONS, TRANSFORMS
from fxquant.observers import CALIBRATORS, Fixed
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "conv", head=True)
BATCHES = [SPEC.inputs(4, seed) for seed in range(2)]
NEEDED = {Fixed: {"low": -1.0, "high": 1.0}, Override: {"path": "steps.0", "weight": 4}}
RECORDS = (
    *(QuantConfig, QuantScheme, Override, Phase),
    *(*CALIBRATORS, *FAKE_QUANTS, *TRANSFORMS, *PROJECTIONS),
)
FIELDS = [(kind, field.name) for kind in RECORDS for field in dataclasses.fields(kind)]
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 1, 1e300, 1e-300])
odd = (
    numbers
    | st.text(max_size=3)
    | st.sampled_from([None, True, False, b"8", 1j, (), [], {}, ("",), (None,), [1], {"bits": 8}])
    | st.builds(object)
    | st.sampled_from([torch.tensor(3), torch.zeros(2), torch.zeros(0), QuantScheme, LSQ, LSQ()])
)
quick = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(field=st.sampled_from(FIELDS), value=odd)
def test_every_field_of_every_record(tmp_path, field, value):
    """What is accepted is a record that YAML writes and reads."""
    kind, name = field
    try:
        record = kind(**NEEDED.get(kind, {}) | {name: value})
    except ConfigError as error:
        assert len(str(error)) < 10_000  # noqa: PT017 - most values are refused
        return
    pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")
    config = _config_of(record)
    if config is not None:
        fxquant.save_config(config, tmp_path / "c.yaml")
        assert fxquant.load_config(tmp_path / "c.yaml") == config


def _config_of(record):
    with contextlib.suppress(ConfigError):  # not every scheme is one of activations
        if isinstance(record, QuantConfig):
            return record
        if isinstance(record, Override):
            return QuantConfig(overrides=(record,))
        if isinstance(record, CALIBRATORS):
            return QuantConfig(calibrator=record)
        if isinstance(record, FAKE_QUANTS):
            return QuantConfig(fake_quant=record)
        if isinstance(record, QuantScheme):
            return QuantConfig(weight=record)
    return None


# ------------------------------------------------------------------------ data


def nowhere(x):
    return torch.empty(x.shape, device="meta")


def with_value(value):
    def spoil(x):
        spoiled = x.clone()
        spoiled.view(-1)[len(spoiled.view(-1)) // 2] = value
        return spoiled

    return spoil


BAD_BATCHES = {
    "NaN": with_value(math.nan),
    "infinity": with_value(-math.inf),
    "no example": lambda x: x[:0],
    "no pixels": lambda x: x[..., :0],
    "other channels": lambda x: x[:, :1],
    "fewer dimensions": lambda x: x[0, 0],
    "complex": lambda x: x.to(torch.complex64),
    "without values": nowhere,
    "nothing": lambda x: None,
    "a dictionary": lambda x: {"x": x},
    "a text": lambda x: "x",
    "an empty tuple": lambda x: (),
    "an array": lambda x: x.numpy(),
    "a text in a tuple": lambda x: ("x", 1),
}
READERS = {
    "calibrate": fxquant.calibrate,
    "correct_bias": fxquant.correct_bias,
    "learn_rounding": lambda p, b: fxquant.learn_rounding(p, b, steps=1),
    "sensitivity": lambda p, b: fxquant.sensitivity(SPEC.build(), b, bits=(4,)),
    "reestimate_batch_norm": fxquant.reestimate_batch_norm,
}
READY = {}


def ready(reader: str):
    """A network that has its ranges; its batch norms live where it is they that are measured."""
    if not READY:
        ptq, qat = fxquant.prepare_ptq(SPEC.build()), fxquant.prepare_qat(SPEC.build())
        fxquant.calibrate(ptq, BATCHES)
        fxquant.calibrate(qat, BATCHES)
        READY.update(dict.fromkeys(READERS, ptq) | {"reestimate_batch_norm": qat})
    return copy.deepcopy(READY[reader])


def same(one, other) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_a_bad_batch_is_named_and_changes_nothing(reader, bad):
    prepared = ready(reader)
    before = copy.deepcopy(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="batch 1"):
            READERS[reader](prepared, [BATCHES[0], BAD_BATCHES[bad](BATCHES[1])])
    assert same(prepared, before)
    assert [m.training for m in prepared.modules()] == [m.training for m in before.modules()]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "batches", [None, 3, math.nan, [], iter(()), torch.tensor(1.0)],
    ids=lambda batches: type(batches).__name__,  # the same in every worker
)
def test_no_batches_at_all(reader, batches):
    with pytest.raises(DataError, match=r"no batch|batches are many"):
        READERS[reader](ready(reader), batches)


def test_an_output_without_numbers_is_told():
    """A loss that is NaN tells nothing of a layer."""
    with pytest.raises(DataError, match="the loss of batch 1 is nan"):
        fxquant.sensitivity(
            SPEC.build(), BATCHES, bits=(4,),
            loss=lambda y, batch: y.sum() * (1 if batch is BATCHES[0] else math.nan),
        )


# ------------------------------------------------------------------------ arguments

ARGUMENTS = {
    "example_inputs": lambda v: fxquant.prepare_qat(SPEC.build(), v),
    "config": lambda v: fxquant.prepare_ptq(SPEC.build(), None, v),
    "share": lambda v: fxquant.calibrate(ready("calibrate"), BATCHES, v),
    "rate": lambda v: fxquant.learn_rounding(ready("learn_rounding"), BATCHES, steps=1, rate=v),
    "steps": lambda v: fxquant.learn_rounding(
        ready("learn_rounding"), BATCHES, steps=min(v, 2) if type(v) is int else v
    ),
    "blocks": lambda v: fxquant.learn_rounding(ready("learn_rounding"), BATCHES, v, steps=1),
    "bits": lambda v: fxquant.sensitivity(SPEC.build(), BATCHES, bits=v),
    "config of sensitivity": lambda v: fxquant.sensitivity(SPEC.build(), BATCHES, (4,), v),
    "size": lambda v: fxquant.choose_bits(_found(), size=v),
    "bit_operations": lambda v: fxquant.choose_bits(_found(), bit_operations=v),
    "found": lambda v: fxquant.choose_bits(v, size=1e9),
    "phase": lambda v: fxquant.set_phase(ready("calibrate"), v),
    "round": lambda v: PhaseSchedule(ready("calibrate"), round=v),
    "steps of a schedule": lambda v: PhaseSchedule(ready("calibrate")).load_state_dict(v),
    "kernels": lambda v: fxquant.use_kernels(fxquant.convert(ready("calibrate")), v),
    "preset": fxquant.preset,
    "share of weights": lambda v: fxquant.fix_weights(ready("calibrate"), v),
}


def _found():
    if "found" not in READY:
        READY["found"] = fxquant.sensitivity(SPEC.build(), BATCHES, bits=(4, 8))
    return READY["found"]


@settings(deadline=None, max_examples=60)
@given(argument=st.sampled_from(sorted(ARGUMENTS)), value=odd)
def test_arguments(argument, value):
    with contextlib.suppress(FxQuantError):
        ARGUMENTS[argument](value)


# ------------------------------------------------------------------------ files

SCALARS = (
    *(".nan", ".inf", "-1", "0", "17", "1e400", "-3.3e38", "''", "null", "yes", "[]", "{}"),
    *("[1]", "{kind: KL}", "'*'", "1_0", "0x10", "~", "!!float 3", "2026-11-21", "9" * 400),
)
CONFIG = """fxquant: 1
preset: w4a8
config:
  weight: {bits: 4, narrow: true, per_channel: true}
  activation: {bits: 8, signed: false, symmetric: false}
  calibrator: {kind: Percentile, percent: 99.9}
  fake_quant: {kind: Stages, transform: {kind: Clipped, stds: 3.0}, learned: false}
  accumulator_bits: 32
  multiplier_bits: 31
  rounding: half_up
  batch_norm: fold
  first_last_bits: 8
  overrides: [{path: steps.0, weight: 6}, {operator: conv2d, activation: 7}]
  keep_float: [classifier]
"""


@st.composite
def changed(draw, text: str):
    """The text with one of its values replaced."""
    starts = [i for i, c in enumerate(text) if c == ":" and text[i + 1 : i + 2] == " "]
    at = draw(st.sampled_from(starts)) + 2
    ends = [text.find(end, at) for end in (",", "}", "]", "\n")]
    end = min(end for end in ends if end >= 0)
    return text[:at] + draw(st.sampled_from(SCALARS)) + text[end:]


@quick
@given(text=changed(CONFIG))
def test_values_of_a_configuration(tmp_path, text):
    pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    try:
        config = fxquant.load_config(path)
    except ConfigError as error:
        told = str(error)
        assert "config.yaml" in told
        return
    with contextlib.suppress(FxQuantError):  # such as an override that matches nothing
        network = fxquant.prepare_ptq(SPEC.build(), config=config)
        if config.mode == "static":
            fxquant.calibrate(network, BATCHES)
        x = BATCHES[0]
        assert torch.equal(fxquant.convert(network)(x), network.eval()(x))


@quick
@given(data=st.data(), calibrator=st.sampled_from(["MinMax", "MeanStd", "KL"]))
def test_values_of_statistics(tmp_path, data, calibrator):
    """Whatever numbers they are, the network has finite scales, or is as it was."""
    pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")
    (kind,) = (kind for kind in CALIBRATORS if kind.__name__ == calibrator)
    if calibrator not in READY:
        network = fxquant.prepare_ptq(SPEC.build(), config=QuantConfig(calibrator=kind()))
        fxquant.calibrate(network, BATCHES)
        fxquant.save_statistics(network, tmp_path / "good.yaml")
        READY[calibrator] = network, (tmp_path / "good.yaml").read_text()
    network, good = copy.deepcopy(READY[calibrator])
    before = copy.deepcopy(network)
    path = tmp_path / "stats.yaml"
    path.write_text(data.draw(changed(good)))
    try:
        fxquant.load_statistics(network, path)
    except ConfigError as error:
        told = str(error)
        assert "stats.yaml" in told
        assert same(network, before)
        return
    x = BATCHES[0]
    with contextlib.suppress(FxQuantError):  # such as a bias that no accumulator holds
        y = fxquant.convert(network)(x)
        assert torch.equal(y, network.eval()(x))
        assert y.isfinite().all()


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk is full when the file is moved to its place: the old one stays, nothing else."""
    pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")
    fxquant.save_config(QuantConfig(), tmp_path / "c.yaml")
    before = (tmp_path / "c.yaml").read_bytes()
    full = OSError(28, "no space left on device")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(WriteError, match="cannot be written: no space left"):
        fxquant.save_config(QuantConfig(widen=False), tmp_path / "c.yaml")
    with pytest.raises(WriteError, match="cannot be written: no space left"):
        fxquant.save_statistics(ready("calibrate"), tmp_path / "s.yaml")
    assert os.listdir(tmp_path) == ["c.yaml"]
    assert (tmp_path / "c.yaml").read_bytes() == before
    with pytest.raises(ConfigError, match="takes a QuantConfig, got 3"):
        fxquant.save_config(3, tmp_path / "d.yaml")


# ------------------------------------------------------------------------ the command line

SMALL = "tests.command.small:network"
DIGITS = ("--data", "digits", "--size", "16", "--channels", "1", "--limit", "16", "--batch", "16")
WORDS = ("nan", "inf", "-1", "0", "", "x", "1e400", "9" * 20, "/no/folder/x", "2.5", "*", "\0")
OPTIONS = (
    *("weights", "classes", "data", "channels", "batch", "limit", "calibrate", "stats", "config"),
    *("preset", "mode", "activations", "activation-bits", "weight-bits", "accumulator-bits"),
    *("first-last-bits", "multiplier-bits", "clip", "stds", "percent", "no-clip", "keep-float"),
)


@settings(
    deadline=None, max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(option=st.sampled_from(OPTIONS), value=st.sampled_from(WORDS))
def test_options_of_the_command_line(tmp_path, monkeypatch, capsys, option, value):
    for package in ("typer", "rich", "sklearn", "yaml", "safetensors"):
        pytest.importorskip(package, reason=f"{package} is in the extra `demo`")
    from fxquant.cli import main

    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.chdir(tmp_path)
    more = {"stds": ("--clip", "std"), "percent": ("--clip", "percentile")}.get(option, ())
    arguments = ("quantize", SMALL, *DIGITS, "--no-evaluate", "--out", "q.st", *more)
    monkeypatch.setattr(sys, "argv", ["fxquant", *arguments, f"--{option}", value])
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr()
    if exit_.value.code in (0, None):
        assert os.listdir(tmp_path) == ["q.st"]
        os.remove("q.st")
    else:
        assert not os.listdir(tmp_path)
        assert "Traceback" not in printed.err
        assert exit_.value.code == 2 or "fxquant: " in printed.err


@pytest.mark.parametrize("option", ["out", "save-stats", "save-config"])
@pytest.mark.parametrize(("path", "message"), [("no/x", "there is no folder 'no'"), (".", "is a")])
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path, monkeypatch, capsys, option, path, message
):
    for package in ("typer", "rich", "yaml"):
        pytest.importorskip(package, reason=f"{package} is in the extra `demo`")
    from fxquant.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fxquant", "quantize", "nowhere:f", f"--{option}", path])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
