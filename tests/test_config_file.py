"""Configurations in YAML: what is written comes back, and a mistake is told with its line."""

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import Override, QuantConfig, QuantScheme
from fxquant.errors import ConfigError, FxQuantError, WriteError
from fxquant.fake_quant import FAKE_QUANTS, ByChance, Clipped, Stages, Tanh
from fxquant.observers import CALIBRATORS, KL, Fixed, MeanStd, Percentile
from fxquant.presets import PRESETS

pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")

calibrators = st.one_of(
    *(st.just(kind()) for kind in CALIBRATORS if kind is not Fixed),
    st.builds(Fixed, st.floats(-1e3, 0.0), st.floats(0.0, 1e3)),
    st.builds(Percentile, st.floats(51.0, 100.0)),
    st.builds(MeanStd, st.floats(1e-5, 9.0)),
)
fake_quants = st.one_of(
    *(st.just(kind()) for kind in FAKE_QUANTS),
    st.builds(
        Stages,
        transform=st.sampled_from([Tanh(), Clipped(2.5)]),
        projection=st.just(ByChance()),
        learned=st.booleans(),
    ),
)
bits = st.integers(2, 8)
weights = st.builds(
    QuantScheme, bits=bits, narrow=st.booleans(), per_channel=st.booleans()
)
activations = st.builds(QuantScheme, bits=bits, signed=st.just(True), symmetric=st.booleans())
overrides = st.builds(
    Override,
    path=st.sampled_from(["*", "layer1.*", "a-b: c", "#", "Ω", "yes", "1e3"]),
    operator=st.none() | st.just("conv2d"),
    activation=st.none() | bits | activations,
    weight=bits | weights,
    calibrator=st.none() | calibrators,
    fake_quant=st.none() | fake_quants,
)
configs = st.builds(
    QuantConfig,
    activation=activations,
    weight=weights,
    accumulator_bits=st.integers(16, 32),
    calibrator=calibrators,
    fake_quant=fake_quants,
    weight_fake_quant=st.none() | fake_quants,
    rounding=st.sampled_from(["half_up", "fp32_rne"]),
    batch_norm=st.just("fold"),
    equalize=st.booleans(),
    first_last_bits=st.none() | bits,
    overrides=st.lists(overrides, max_size=2).map(tuple),
    keep_float=st.lists(st.sampled_from(["head", "a.b.*", "null"]), max_size=2).map(tuple),
)
quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(tmp_path, text: str) -> QuantConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return fxquant.load_config(path)


@quick
@given(configs)
def test_what_is_saved_is_loaded(tmp_path, config):
    path = tmp_path / "config.yaml"
    fxquant.save_config(config, path)
    assert fxquant.load_config(path) == config
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize("known", PRESETS, ids=lambda known: known.name)
def test_presets_are_loaded_by_name_and_changed(tmp_path, known):
    assert load(tmp_path, f"fxquant: 1\npreset: {known.name}\n") == known.config
    assert fxquant.preset(known.name) is known
    changed = load(tmp_path, f"fxquant: 1\npreset: {known.name}\nconfig: {{calibrator: KL}}\n")
    assert changed == replace(known.config, calibrator=KL())


def test_a_file_as_people_write_it(tmp_path):
    config = load(
        tmp_path,
        """
        fxquant: 1
        config:
          weight: {bits: 4, narrow: yes, per_channel: true}
          first_last_bits: 8
          calibrator: {kind: Percentile, percent: 99}
          overrides:
            - path: layer1.*
              weight: 6
            - operator: add
              activation: {bits: 8}
              calibrator: {kind: MeanStd, stds: 1e1}
          keep_float: [head]
        """,
    )
    add = Override(operator="add", activation=QuantScheme(8), calibrator=MeanStd(10.0))
    assert config == QuantConfig(
        weight=QuantScheme(4, narrow=True, per_channel=True),
        first_last_bits=8,
        calibrator=Percentile(99.0),
        overrides=(Override(path="layer1.*", weight=6), add),
        keep_float=("head",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("config: {}", "line 1: the version is missing"),
        ("fxquant: 2", "line 1: this is version '2' of the format; this fxquant reads 1"),
        ("fxquant: true", "version 'true'"),
        ("fxquant: 1\nconfg: {}", "line 2: there is no 'confg' here; did you mean 'config'"),
        ("fxquant: 1\nconfig:\n  weigth: {}", "line 3: .*'weigth' here; did you mean 'weight'"),
        ("fxquant: 1\nconfig:\n  weight:\n    bit: 4", "line 4: .*'bit'.*did you mean 'bits'"),
        ("fxquant: 1\nconfig:\n  weight: {bits: 17}", "line 3: a scheme has 1 to 16 bits"),
        ("fxquant: 1\nconfig:\n  weight: {bits: four}", "line 3: a whole number belongs here"),
        ("fxquant: 1\nconfig:\n  weight: 8", "line 3: 'key: value' pairs belong here, not '8'"),
        ("fxquant: 1\nconfig:\n  widen: 1", "line 3: true or false belongs here, not '1'"),
        ("fxquant: 1\nconfig:\n\n  fake_quant: LSG", "line 4: 'LSG' is none of.*mean 'LSQ'"),
        ("fxquant: 1\nconfig: {equalize: true}", "line 2: equalize=True needs batch_norm='fold'"),
        ("fxquant: 1\nconfig: {calibrator: Kl}", "line 2: 'Kl' is none of.*did you mean 'KL'"),
        ("fxquant: 1\nconfig: {calibrator: {}}", "'kind' is missing, one of MinMax"),
        ("fxquant: 1\nconfig: {calibrator: Fixed}", "Fixed needs 'low', 'high', too"),
        ("fxquant: 1\nconfig: {calibrator: {kind: KL, percent: 9}}", "there is no 'percent' here"),
        ("fxquant: 1\nconfig: {calibrator: [KL]}", "belong here, not a list"),
        ("fxquant: 1\nconfig: {overrides: {}}", "a list belongs here"),
        ("fxquant: 1\nconfig: {overrides: [{weight: 4}]}", "says which calls it means"),
        ("fxquant: 1\nconfig: {keep_float: [1]}", "a text belongs here, not '1'"),
        ("fxquant: 1\npreset: w4a9", "line 2: there is no preset 'w4a9'.*did you mean 'w4a8'"),
        ("fxquant: 1\nfxquant: 1", "line 2: 'fxquant' stands here a second time"),
        ("fxquant: 1\n1: 2", "line 2: a key is a name, got '1'"),
        ("- fxquant", "line 1: 'key: value' pairs belong here, not a list"),
        ("fxquant: [1", "line 2: this is no YAML"),
        ("fxquant: 1\n---\nfxquant: 1", "this is no YAML"),
        ("fxquant: 1\nconfig: &a {}\npreset: *a", r"line 3: aliases \(\*a\) are not read"),
        ("fxquant: 1\npreset: !!python/object/apply:os.getcwd []", "line 2: a single value"),
        ("fxquant: 1\npreset: !!python/name:os.getcwd", "line 2: this cannot be read"),
        *(
            (f"fxquant: 1\npreset: !!{tag} ''", f"line 2: this cannot be read: '' as {tag}")
            for tag in ("int", "float", "bool", "timestamp")
        ),
        ("fxquant: 1\npreset: 2026-11-21", "line 2: a number or a text belongs here"),
        ("[" * 5000, "no YAML|too deep"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=r"config\.yaml.*" + message):
        load(tmp_path, text)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: .*No such file"):
        fxquant.load_config(tmp_path / "nothing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        fxquant.load_config(tmp_path / "binary.yaml")
    with pytest.raises(WriteError, match="cannot be written"):
        fxquant.save_config(QuantConfig(), tmp_path / "no" / "folder.yaml")
    with pytest.raises(ConfigError, match="there is no preset 'int9'.*did you mean 'int8'"):
        fxquant.preset("int9")


EXAMPLE = """fxquant: 1
preset: ptq
config:
  weight: {bits: 4, narrow: true}
  calibrator: {kind: ACIQ, distribution: gauss}
  overrides: [{path: a.*, weight: 6}]
"""


@quick
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 12), st.text(max_size=6))
def test_whatever_is_changed_it_is_read_or_refused(tmp_path, at, length, text):
    changed = EXAMPLE[:at] + text + EXAMPLE[at + length :]
    try:
        read = load(tmp_path, changed)
    except FxQuantError as error:
        read = str(error)
    assert isinstance(read, QuantConfig) or "config.yaml" in read
