"""Statistics in YAML: collected once, used by whichever calibrator asks for the same."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.errors import ConfigError, FxQuantError, StageError, UncalibratedError
from fxquant.observers import ACIQ, CALIBRATORS, KL, AverageMinMax, Fixed, MinMax, Percentile
from tests.strategies import chain

pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")

SPEC = chain("conv", "bn", "relu", "conv", "sigmoid", head=True)
BATCHES = [SPEC.inputs(4, seed) for seed in range(3)]
ALL = [Fixed(-1.0, 2.0) if kind is Fixed else kind() for kind in CALIBRATORS]


def prepared(calibrator, bits=8):
    scheme = QuantScheme(bits, False, False)
    config = QuantConfig(calibrator=calibrator, activation=scheme)
    return fxquant.prepare_ptq(SPEC.build(), config=config)


def calibrated(calibrator, bits=8):
    network = prepared(calibrator, bits)
    fxquant.calibrate(network, BATCHES)
    return network


def same(one, other) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


@pytest.mark.parametrize("calibrator", ALL, ids=str)
def test_what_is_saved_is_loaded(tmp_path, calibrator):
    first, second = calibrated(calibrator), prepared(calibrator)
    fxquant.save_statistics(first, tmp_path / "stats.yaml")
    fxquant.load_statistics(second, tmp_path / "stats.yaml")
    assert same(first, second)
    x = SPEC.inputs(4, 9)
    assert torch.equal(fxquant.convert(second)(x), first(x))


@pytest.mark.parametrize(
    ("saved", "used"), [(KL(), Percentile(99.0)), (Percentile(), ACIQ("gauss")), (KL(), MinMax())]
)
def test_one_file_serves_other_calibrators_and_bits(tmp_path, saved, used):
    fxquant.save_statistics(calibrated(saved), tmp_path / "stats.yaml")
    network = prepared(used, 4)
    fxquant.load_statistics(network, tmp_path / "stats.yaml")
    assert same(network, calibrated(used, 4))


def text(tmp_path, calibrator=MinMax()) -> str:  # noqa: B008 - a frozen record
    fxquant.save_statistics(calibrated(calibrator), tmp_path / "stats.yaml")
    return (tmp_path / "stats.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: quantize_x", "value: quantise_x", "line 3: .*no value 'quantise_x'; did you mean"),
        ("low:", "lo:", "line 5: there is no 'lo' here; did you mean 'low'"),
        ("low: -", "low: 9", "low and high are finite and in order"),
        ("calibrator: MinMax", "calibrator: AverageMinMax", "are 3 finite numbers"),
        ("calibrator: MinMax", "calibrator: MovingAverage", "cannot use what MovingAverage"),
        ("fxquant: 1", "fxquant: 0", "this is version '0'"),
        ("statistics:", "statistic:", "did you mean 'statistics'"),
        ("value: classifier", "value: quantize_x", "'quantize_x' stands here a second time"),
        ("low:", "data: '1'\n  low:", "has no data"),
        ("- value: quantize_x", "- &x", "nothing is said|no YAML|needs 'value'"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_changes_nothing(tmp_path, old, new, message):
    before = text(tmp_path)
    assert old in before
    (tmp_path / "stats.yaml").write_text(before.replace(old, new, 1))
    network, fresh = prepared(MinMax()), prepared(MinMax())
    with pytest.raises(ConfigError, match=message):
        fxquant.load_statistics(network, tmp_path / "stats.yaml")
    assert same(network, fresh)


@pytest.mark.parametrize(
    ("data", "message"),
    [("1 2", "are 4097 finite numbers"), ("1 two", "holds 'two'"), ("0x9999999999999", "4097"),
     ("0x4096 nan", "finite"), ("0x-5", "4097"), ("0xq", "holds '0xq'"),
     ("0x65536 " * 3, "more than 65536 numbers")],
    ids=lambda value: value[:20],
)
def test_data_that_is_none(tmp_path, data, message):
    lines = text(tmp_path, KL()).splitlines()
    at = next(i for i, line in enumerate(lines) if "data:" in line)
    end = next(i for i in range(at + 1, len(lines)) if "value:" in lines[i])
    lines[at:end] = [f"  data: '{data}'"]
    (tmp_path / "stats.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        fxquant.load_statistics(prepared(KL()), tmp_path / "stats.yaml")


def test_what_is_not_there(tmp_path):
    path, lines = tmp_path / "stats.yaml", text(tmp_path).splitlines()
    path.write_text(lines[0])
    with pytest.raises(ConfigError, match="there is no 'statistics' here"):
        fxquant.load_statistics(prepared(MinMax()), path)
    second = [i for i, line in enumerate(lines) if "value:" in line][1]
    path.write_text("\n".join(lines[:second]))
    with pytest.raises(ConfigError, match="nothing is said of"):
        fxquant.load_statistics(prepared(MinMax()), path)


def test_what_a_calibrator_cannot_use(tmp_path):
    fxquant.save_statistics(calibrated(AverageMinMax()), tmp_path / "stats.yaml")
    with pytest.raises(ConfigError, match=r"KL\(\) cannot use what AverageMinMax\(\) asks for"):
        fxquant.load_statistics(prepared(KL()), tmp_path / "stats.yaml")


def test_other_networks_and_stages(tmp_path):
    path = tmp_path / "stats.yaml"
    with pytest.raises(UncalibratedError, match="'quantize_x' has seen no data"):
        fxquant.save_statistics(prepared(MinMax()), path)
    assert not path.exists()
    fxquant.save_statistics(calibrated(MinMax()), path)
    longer = chain("conv", "relu", "conv", "sigmoid", "conv", "conv", head=True).build()
    with pytest.raises(ConfigError, match="stats.yaml.*the network has no value|nothing is said"):
        fxquant.load_statistics(fxquant.prepare_ptq(longer), path)
    with pytest.raises(StageError, match="load_statistics takes"):
        fxquant.load_statistics(SPEC.build(), path)


EXAMPLE = None


@settings(
    deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(at=st.integers(0, 600), length=st.integers(0, 12), new=st.text(max_size=6))
def test_whatever_is_changed_it_is_read_or_refused(tmp_path_factory, at, length, new):
    global EXAMPLE
    if EXAMPLE is None:
        EXAMPLE = text(tmp_path_factory.mktemp("stats")), prepared(MinMax())
    before, network = EXAMPLE
    path = tmp_path_factory.mktemp("changed") / "stats.yaml"
    path.write_text(before[:at] + new + before[at + length :], encoding="utf-8")
    told = "stats.yaml"
    try:
        fxquant.load_statistics(network, path)
    except FxQuantError as error:
        told = str(error)
    assert "stats.yaml" in told
