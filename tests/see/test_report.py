"""The report of a network, as the page is told it; a browser looks at it in test_browser.py.

Multiply-adds by hand: 4 → 4 channels of 3 × 3 on 8 × 8 are 4·64·36 = 9,216; 24 → 3 features are 72.
"""

import json
import math
import os

import pytest
import torch

import fxquant
from fxquant import QuantConfig
from fxquant.audit import Audit
from fxquant.errors import ConfigError, DataError, StageError, WriteError
from fxquant.schemes import UINT8, QParams
from fxquant.see.histogram import BINS, Distribution
from tests import laws
from tests.see.test_visualize import data_of
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "avg_pool", "sigmoid", head=True)


@pytest.fixture(scope="module")
def prepared():
    gm = fxquant.prepare_qat(SPEC.build(), SPEC.inputs(), QuantConfig(batch_norm="fold"))
    laws.settle(gm)
    return gm


def told(path):
    return data_of(path.read_text())


def test_of_a_prepared_network(prepared, tmp_path):
    found = fxquant.report(prepared, SPEC.inputs(), tmp_path / "report.html")
    assert os.listdir(tmp_path) == ["report.html"]
    page = told(tmp_path / "report.html")
    assert page["compared"]
    assert [layer["node"] for layer in page["layers"]] == [row.node for row in found.errors.rows]
    assert found.errors == fxquant.compare(fxquant.as_float(prepared), prepared, SPEC.inputs())
    assert isinstance(found.audit, Audit)
    assert page["audit"]["result"] == found.audit.result
    assert [step["name"] for step in page["passes"]][-1] == "insert_fake_quant"
    layers = {layer.row.node: layer for layer in found.layers}
    assert layers["steps_0"].multiplies == 9_216
    assert layers["classifier"].multiplies == 72
    assert found.multiplies >= 9_216 + 72
    assert layers["steps_0"].weight_bytes == 144
    assert 0 < found.integer_bytes < found.float_bytes


def test_histograms_hold_every_value(prepared, tmp_path):
    batches = [SPEC.inputs(seed=seed) for seed in range(3)]
    found = fxquant.report(prepared, batches, tmp_path / "report.html")
    by_name = {layer.row.node: layer for layer in found.layers}
    conv = by_name["steps_0"]
    assert sum(conv.values.counts) == 3 * 2 * 4 * 64
    assert sum(conv.weights.counts) == 144
    assert conv.weights.outside == 0.0  # a weight is never clipped
    assert by_name["sigmoid"].values.range == pytest.approx((0.0, 1.0))
    assert by_name["sigmoid"].weights is None


def test_of_a_converted_network(prepared, tmp_path):
    quantized = fxquant.convert(prepared)
    found = fxquant.report(quantized, SPEC.inputs(), tmp_path / "alone.html")
    assert not told(tmp_path / "alone.html")["compared"]
    assert found.errors.equal
    assert found.float_bytes is None
    assert max(abs(found.layers[1].weights.low), found.layers[1].weights.high) == 127
    beside = fxquant.report(quantized, SPEC.inputs(), tmp_path / "b.html", reference=SPEC.build())
    assert told(tmp_path / "b.html")["compared"]
    assert not beside.errors.equal


def test_what_does_not_convert_is_reported_too(tmp_path):
    gm = fxquant.prepare_qat(SPEC.build(), SPEC.inputs())
    laws.settle(gm)
    with torch.no_grad():
        gm.get_parameter("classifier.bias").fill_(math.inf)
    found = fxquant.report(gm, SPEC.inputs(), tmp_path / "report.html")
    assert "holds NaN or infinity" in found.audit
    assert told(tmp_path / "report.html")["audit"]["result"] == found.audit


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_of_layers_of_integers_between_floats(mode, tmp_path):
    gm = fxquant.prepare_qat(SPEC.build(), SPEC.inputs(), QuantConfig(mode=mode))
    found = fxquant.report(gm, SPEC.inputs(), tmp_path / "report.html")
    conv = found.layers[0]
    assert (conv.row.operator, sum(conv.weights.counts)) == ("conv2d", 144)
    assert found.integer_bytes < found.float_bytes
    assert "mode='static'" in found.audit
    beside = fxquant.report(fxquant.convert(gm), SPEC.inputs(), tmp_path / "r.html", reference=gm)
    assert beside.errors.equal
    assert beside.layers[0].weights.high <= 127


def test_of_a_network_without_operators(tmp_path):
    spec = chain("identity")
    quantized = fxquant.convert(fxquant.prepare_qat(spec.build()))
    found = fxquant.report(quantized, spec.inputs(), tmp_path / "r.html", spec.build())
    assert str(found.errors).endswith("there is no operator to compare")
    assert told(tmp_path / "r.html")["layers"] == []


def test_numbers_that_json_lacks(prepared, tmp_path):
    fxquant.report(fxquant.convert(prepared), SPEC.inputs(), tmp_path / "r.html", prepared)
    assert {layer["sqnr"] for layer in told(tmp_path / "r.html")["layers"]} == {"inf"}


@pytest.mark.parametrize("name", ["report", "report.htm", "html"])
def test_another_ending_is_refused(prepared, name, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        fxquant.report(prepared, SPEC.inputs(), tmp_path / name)


def test_where_it_cannot_be_written_is_said_before_any_work(prepared, tmp_path):
    def batches():
        raise AssertionError
        yield

    with pytest.raises(WriteError, match=r"no/r\.html cannot be written: there is no folder"):
        fxquant.report(prepared, batches(), tmp_path / "no" / "r.html")


def test_what_was_not_prepared_is_refused(prepared, tmp_path):
    with pytest.raises(StageError, match="report takes what prepare_qat or convert returned"):
        fxquant.report(SPEC.build(), SPEC.inputs(), tmp_path / "r.html")
    with pytest.raises(DataError, match="no batch"):
        fxquant.report(prepared, [], tmp_path / "r.html")
    assert not os.listdir(tmp_path)


# Histograms


def test_a_histogram_by_hand():
    """0 … 63 in 64 bins; the grid holds 0 … 2.55, so that from 3 on all lies outside."""
    q = QParams(torch.tensor(0.01), torch.tensor(0, dtype=torch.int32), UINT8)
    distribution = Distribution(q)
    distribution.add(torch.arange(64.0))
    found = distribution.histogram()
    assert found.counts == (1,) * BINS
    assert (found.low, found.high, found.outside) == (0.0, 63.0, 61 / 64)
    assert found.range == pytest.approx((0.0, 2.55))
    distribution.add(torch.tensor([-9.0, 99.0]))  # beyond the first batch
    assert distribution.histogram().counts[0] == distribution.histogram().counts[-1] == 2


def test_a_histogram_of_one_value_and_of_none():
    distribution = Distribution()
    assert distribution.histogram() is None
    distribution.add(torch.empty(0))
    assert distribution.histogram() is None
    distribution.add(torch.full((3,), 2.0))
    assert sum(distribution.histogram().counts) == 3
    assert json.dumps(distribution.histogram().low)
